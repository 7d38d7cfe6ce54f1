"""A run as its user sees it: what is run again, what is not, what is refused. On a small copy of the project."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from project import Project


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Project:
    """A finished run; not to be changed."""
    project = Project(tmp_path_factory.mktemp("done") / "project")
    said = project.companion("run", "tiny")
    assert "16 stages done" in said
    return project


@pytest.fixture
def project(done: Project, tmp_path: Path) -> Project:
    """A copy of the finished run in a folder with a space, a comma and braces, without Snakemake's own records."""
    copy = Project.__new__(Project)
    copy.root = tmp_path / "a copy, {of} it"
    shutil.copytree(done.root, copy.root, ignore=shutil.ignore_patterns(".snakemake"))
    return copy


def test_nothing_is_stale_in_a_copy_elsewhere_whatever_the_times_of_its_files_and_comments_in_a_notebook(project):
    project.write("06_mask_rcnn", more="\n# a comment\n")
    rng = random.Random(1)
    for path in project.tree().rglob("*"):
        moment = rng.uniform(1e9, 2e9)
        os.utime(path, (moment, moment))
    before = project.stamps()
    assert "nothing to do" in project.companion("run", "tiny")
    assert project.stamps() == before


DETECTOR = "split-1/n-2/EXP/seed-1"


@pytest.mark.parametrize(("change", "said", "ran"), [
    (lambda p: p.edit(evaluation={"confidence": 0.5, "iou": 0.3}), "parameters changed: evaluation.iou",
     {"thresholds", "sizes", "significance", "imbalance", "claims", "errors"}),
    # What follows is not run again: its inputs come out as they were.
    (lambda p: p.write("04_latent_diffusion", more="\nunused = 1\n"), "code changed: notebooks/04",
     {"split-1/n-2/model-1/diffusion"}),
    (lambda p: (p.tree() / DETECTOR / "result.json").write_text("["), "outputs changed: result.json", {DETECTOR}),
])  # fmt: skip
def test_a_change_runs_again_what_reads_it_and_nothing_else(project, change, said, ran):
    change(project)
    assert said in project.companion("status", "tiny")
    before = project.stamps()
    project.companion("run", "tiny")
    assert project.ran(before) == ran


def test_a_new_seed_and_a_new_size_train_nothing_that_is_there(project):
    project.edit(seeds=[1, 2, 3], sizes=[2, 1])
    before = project.stamps()
    project.companion("run", "tiny")
    ran = project.ran(before)
    assert {"split-1/n-2/EXP/seed-3", "split-1/n-1/EXP/seed-1", "thresholds"} <= ran
    assert not {name for name in ran if name.startswith("split-1/n-2") and not name.endswith("seed-3")}


def test_a_changed_entry_on_the_command_line_has_a_folder_of_its_own_and_trains_nothing(project):
    before = project.stamps()
    # Before it has begun: what of the unchanged run would have to run again.
    assert "10 of 16 stages fresh, 6 stale" in project.companion("status", "tiny", "--set", "evaluation.iou=0.3")
    project.companion("run", "tiny", "--set", "evaluation.iou=0.3")
    assert project.stamps() == before
    changed = project.stamps("tiny+evaluation.iou-0.3")
    assert changed["thresholds"]["parameters"]["evaluation.iou"] == 0.3
    trained = {name for name in changed if name.startswith("split-")}
    assert all(changed[name] == before[name] for name in trained) and len(trained) == 10


def test_what_two_profiles_have_in_common_is_done_once(project):
    shutil.copy(project.root / "profiles" / "tiny.yaml", project.root / "mine.yaml")
    project.companion("run", "mine.yaml")
    assert project.stamps("mine") == project.stamps()


def test_a_notebook_run_by_hand_reads_the_run_and_writes_beside_it(project):
    before = project.stamps()
    name = project.root / "notebooks" / "07_thresholds.ipynb"
    content = json.loads(name.read_text())
    sources = ["".join(cell["source"]) for cell in content["cells"]]
    content["cells"][1]["source"] = sources[1] + "iou = None\n"
    given = "load_profile(profile, dataset=dataset"
    content["cells"][2]["source"] = sources[2].replace(given, f"{given}, changes={{'evaluation.iou': iou}}")
    by_hand = project.root / "07_by_hand.ipynb"
    by_hand.write_text(json.dumps(content))
    command = [sys.executable, "-m", "papermill", by_hand.name, "out.ipynb", "-p", "iou", "0.3"]
    subprocess.run(command, env=project.environment, cwd=project.root, check=True, capture_output=True)
    assert (project.tree("tiny+evaluation.iou-0.3") / "thresholds" / "result.json").is_file()
    assert project.stamps() == before and "16 of 16" in project.companion("status", "tiny")
    command[-2] = "ioo"
    refused = subprocess.run(command, env=project.environment, cwd=project.root, capture_output=True, text=True)
    assert refused.returncode != 0 and "ioo: no such parameter; did you mean 'iou'?" in refused.stderr


@pytest.mark.parametrize(("words", "said"), [
    (["run", "tinny"], "no profile 'tinny': did you mean 'tiny'?"),
    (["run", "tiny", "--set", "evaluation.iuo=0.3"], "evaluation.iuo: no such parameter; did you mean 'iou'?"),
    (["run", "tiny", "--set", "evaluation.iou"], "should be an entry of the profile and its value"),
    (["run", "tiny", "--split", "none.yaml"], "neither a number nor an existing split file"),
])  # fmt: skip
def test_bad_input_is_one_message_before_any_work(done, words, said):
    before = sorted(done.root.rglob("*"))
    assert said in done.companion(*words, code=2)
    assert sorted(done.root.rglob("*")) == before


def test_a_notebook_that_fails_is_told_by_its_error_and_the_rest_goes_on(project):
    project.write("12_errors", more="\nraise ValueError('the reason')\n")
    said = project.companion("run", "tiny", code=2)
    assert "error in errors" in said and "the reason" in said and "Traceback" not in said
    project.write("12_errors")
    project.companion("run", "tiny")
    assert "16 of 16 stages fresh" in project.companion("status", "tiny")


def test_a_second_run_beside_the_first_is_refused_and_an_interrupted_one_goes_on(project):
    for name in ("EXP/seed-1", "EXP/seed-2"):
        shutil.rmtree(project.tree() / "split-1" / "n-2" / name)
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
    assert project.ran(before) == {"split-1/n-2/EXP/seed-1", "split-1/n-2/EXP/seed-2"}


def test_plan_tells_what_is_left_by_what_it_took_and_snakemake_alone_does_it(project):
    shutil.rmtree(project.tree() / "claims")
    said = project.companion("plan", "tiny")
    assert "1 of 16 stages to run, about" in said or "1 of 16 stages to run, more than" in said
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--config", "profile=tiny"]
    subprocess.run(command, env=project.environment, cwd=project.root, check=True, capture_output=True)
    assert "16 of 16 stages fresh" in project.companion("status", "tiny")


def test_a_bundle_goes_on_elsewhere_and_a_damaged_one_is_refused_whole(project, tmp_path):
    shutil.rmtree(project.tree() / "claims")
    out = tmp_path / "bundle"
    project.companion("bundle", "tiny", "--out", str(out), "--partial")
    shutil.rmtree(project.root / "runs")
    assert "15 stages of tiny on phantom: runs/tiny/phantom" in project.companion("unbundle", str(out))
    before = project.stamps()
    project.companion("run", "tiny")
    assert project.ran(before) == {"claims"}
    shutil.rmtree(project.root / "runs")
    (out / "tiny" / "phantom" / "thresholds" / "result.json").write_text("[]")
    (out / "tiny" / "phantom" / "sizes" / "stamp.json").write_text("{")
    said = project.companion("unbundle", str(out), code=2)
    assert "thresholds: result.json is not what was packed" in said and "sizes: stamp.json cannot be read" in said
    assert not (project.root / "runs").exists()
    assert "not complete" in project.companion("bundle", "tiny", "--out", str(tmp_path / "other"), code=2)
