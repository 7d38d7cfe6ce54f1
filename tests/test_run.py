"""A run as its user sees it: what is run again, what is not, what is refused. On a small copy of the project."""

import fcntl
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import pytest
from project import Project
from test_micrographs import make_dataset

TRAINED = "split-1/n-2/EXP/seed-1"
PAGES = {"thresholds", "sizes", "significance", "imbalance", "claims", "errors"}


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Project:
    """A finished run, made once for all processes that test side by side; not to be changed."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with open(base / "done.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (base / "done").exists():
            made = Project(base / "made")
            assert "14 stages done" in made.companion("run", "tiny")
            made.root.rename(base / "done")
    return Project(base / "done")


@pytest.fixture
def project(done: Project, tmp_path) -> Project:
    """A copy of the finished run in a folder with a space, a comma and braces."""
    return Project(tmp_path / "a copy, {of} it", of=done)


def test_nothing_is_stale_in_a_copy_elsewhere_whatever_the_times_of_its_files_and_comments_in_a_notebook(project):
    project.write("06_mask_rcnn", more="\n# a comment\n")
    rng = random.Random(1)
    for path in project.tree().rglob("*"):
        moment = rng.uniform(1e9, 2e9)
        os.utime(path, (moment, moment))
    before = project.stamps()
    assert "nothing to do" in project.companion("run", "tiny")
    assert project.stamps() == before


def test_a_change_runs_again_what_it_changes_and_an_error_is_told_and_stops_nothing_else(project):
    project.write("04_latent_diffusion", more="\nunused = 1\n")  # what follows it finds its inputs as they were
    project.write("12_errors", more="\nraise ValueError('the reason')\n")
    (project.tree() / TRAINED / "result.json").write_text("[")
    said = project.companion("status", "tiny")
    assert "code changed: notebooks/04" in said and "outputs changed: result.json" in said
    before = project.stamps()
    said = project.companion("run", "tiny", code=2)
    assert "error in errors" in said and "the reason" in said and "Traceback" not in said
    assert project.ran(before) == {"split-1/n-2/model-1/diffusion", TRAINED}
    project.write("12_errors")
    before = project.stamps()
    project.companion("run", "tiny")
    assert project.ran(before) == {"errors"}


def test_a_new_seed_and_a_new_size_train_nothing_that_is_there(project):
    project.edit(seeds=[1, 2], sizes=[2, 1], evaluation={"confidence": 0.5, "iou": 0.3})
    assert "parameters changed: evaluation.iou" in project.companion("status", "tiny")
    before = project.stamps()
    project.companion("run", "tiny")
    ran = project.ran(before)
    assert {"split-1/n-2/EXP/seed-2", "split-1/n-1/EXP/seed-1", *PAGES} <= ran
    assert not {name for name in ran if name.startswith("split-1/n-2") and not name.endswith("seed-2")}


def test_what_two_profiles_have_in_common_is_done_once_and_changed_ones_have_folders_of_their_own(project, tmp_path):
    for path in project.tree().rglob("stamp.json"):  # longer ago than the clocks of a cluster may differ
        path.write_text(path.read_text().replace('"started": "20', '"started": "19'))
    before = project.stamps()
    # Before it has begun: what of the unchanged run would have to run again.
    assert "8 of 14 stages fresh, 6 stale" in project.companion("status", "tiny", "--set", "evaluation.iou=0.3")
    shutil.copy(project.root / "profiles" / "tiny.yaml", project.root / "mine.yaml")
    (damaged := project.root / "data" / "phantom-0").mkdir(parents=True)
    for name in ("annotations", "truth"):
        (damaged / f"{name}.json").write_text('{"images": [{"file_name": "gone.png"}]}')
    said = project.companion("run", "mine.yaml", "--set", "evaluation.iou=0.3")
    assert "gone.png" in said and "This phantom is drawn again" in said and not damaged.exists()
    assert "as made before" in said  # by the other run
    assert project.stamps() == before
    changed = project.stamps("mine+evaluation.iou-0.3")
    assert changed["thresholds"]["parameters"]["evaluation.iou"] == 0.3
    assert changed.keys() == before.keys()
    assert {name for name, stamp in changed.items() if stamp != before[name]} == PAGES
    make_dataset(tmp_path / "small", n=4)
    said = project.companion("run", "tiny", "--dataset", str(tmp_path / "small"), code=2)
    assert "patches.size 128: smaller in split 1: m" in said
    make_dataset(own := tmp_path / "own", categories=[{"id": k, "name": f"class {k}"} for k in (3, 5, 7)])
    assert "no micrograph shows class 5;" in project.companion("run", "tiny", "--dataset", str(own), code=2)


def test_a_notebook_run_by_hand_reads_the_run_and_writes_beside_it(project):
    before = project.stamps()
    given = "load_profile(profile, dataset=dataset"
    notebook = nbformat.read(project.root / "notebooks" / "07_thresholds.ipynb", as_version=4)
    notebook.cells[1].source += "iou: float = None\n"
    notebook.cells[2].source = notebook.cells[2].source.replace(given, f"{given}, changes={{'evaluation.iou': iou}}")
    nbformat.write(notebook, project.root / "by_hand.ipynb")
    command = [sys.executable, "-m", "papermill", "by_hand.ipynb", "out.ipynb", "-p", "iou", "0.3"]
    subprocess.run(command, env=project.environment, cwd=project.root, check=True, capture_output=True)
    assert (project.tree("tiny+evaluation.iou-0.3") / "thresholds" / "result.json").is_file()
    assert project.stamps() == before and "14 of 14" in project.companion("status", "tiny")
    command[-2] = "ioo"
    refused = subprocess.run(command, env=project.environment, cwd=project.root, capture_output=True, text=True)
    assert refused.returncode != 0 and "ioo: no such parameter; did you mean 'iou'?" in refused.stderr
    shutil.rmtree(project.root / "runs")
    refused = subprocess.run(command[:-4], env=project.environment, cwd=project.root, capture_output=True, text=True)
    assert "no run in runs/tiny/phantom: `companion run tiny` makes it" in refused.stderr


@pytest.mark.parametrize(("words", "said"), [
    (["run", "tinny"], "no profile 'tinny': did you mean 'tiny'?"),
    (["run", "tiny", "--set", "evaluation.iuo=0.3"], "evaluation.iuo: no such parameter; did you mean 'iou'?"),
    (["run", "tiny", "--set", "evaluation.iou"], "should be an entry of the profile and its value"),
    (["run", "tiny", "--set", "detection.weights=no.pth"], "weights: there is no file"),
    (["status", "tiny", "--dataset", "loop_316L"], "did you mean 'loops_316L'?"),
    (["run", "tiny", "--split", "none.yaml"], "neither a number nor an existing split file"),
    (["run", "tiny", "--set", "evaluation.iou=[0.3"], "while parsing a flow sequence"),
])  # fmt: skip
def test_bad_input_is_one_message_before_any_work(done, words, said):
    before = sorted(done.root.rglob("*"))
    assert said in done.companion(*words, code=2)
    assert sorted(done.root.rglob("*")) == before


def test_a_second_run_beside_the_first_is_refused_and_an_interrupted_one_goes_on(project):
    for arm in ("EXP", "EXP+GEN"):
        shutil.rmtree(project.tree() / "split-1" / "n-2" / arm)
    before = project.stamps()
    command = [sys.executable, "-m", "companion.cli", "run", "tiny"]
    running = subprocess.Popen(command, env=project.environment, cwd=project.root, stdout=subprocess.PIPE)
    while not list(project.tree().rglob(".tmp-*.ipynb")):
        assert running.poll() is None
        time.sleep(0.1)
    assert "another run is working" in project.companion("run", "tiny", code=2)
    running.send_signal(signal.SIGTERM)
    assert running.wait(60) == 130 and b"the same command continues" in running.stdout.read()
    project.companion("run", "tiny")
    assert project.ran(before) == {TRAINED, "split-1/n-2/EXP+GEN/seed-1"}


def test_a_bundle_goes_on_elsewhere_by_snakemake_alone_and_a_damaged_one_is_refused_whole(project, tmp_path):
    shutil.rmtree(project.tree() / "claims")
    said = project.companion("plan", "tiny")
    assert "1 of 14 stages to run, none of which was timed before" in said
    out = tmp_path / "bundle"
    assert "is not complete" in project.companion("bundle", "tiny", "--set", "evaluation.iou=0.3", "--out", "x", code=2)
    project.companion("bundle", "tiny", "--out", str(out))
    shutil.rmtree(project.root / "runs")
    assert "13 stages of tiny on phantom: runs/tiny/phantom" in project.companion("unbundle", str(out))
    before = project.stamps()
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--config", "profile=tiny"]
    subprocess.run(command, env=project.environment, cwd=project.root, check=True, capture_output=True)
    assert project.ran(before) == {"claims"}
    shutil.rmtree(project.root / "runs")
    (out / "tiny" / "phantom" / "thresholds" / "result.json").write_text("[]")
    (out / "tiny" / "phantom" / "sizes" / "stamp.json").write_text("{")
    (out / "tiny" / "phantom" / "errors" / "notebook.ipynb").unlink()
    said = project.companion("unbundle", str(out), code=2)
    assert "thresholds: result.json is not what was packed" in said and "sizes: stamp.json cannot be read" in said
    assert "errors: [Errno 2] No such file" in said
    assert not (project.root / "runs").exists()
    assert "not complete" in project.companion("bundle", "tiny", code=2)
