"""Orchestration, end to end, on a copy of the project whose notebooks write small files instead of training."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from companion import stages

PROJECT = Path(__file__).resolve().parents[1]
WORK = {
    "micrographs": "for part in ('train-n10', 'test'): write_json(stage.folder / part / 'a.json', {'n': 1})",
    "masks": "import companion.geometry\nwrite_json(stage.folder / 'table.json', stage.parameters['masks'])",
    "detector": (
        "import pandas as pd\nfrom companion.provenance import write_table\n"
        "rows = {'score': [0.2, 0.9], 'mask': [b'a', b'b'], 'made with': [str(stage.parameters)] * 2}\n"
        "write_table(stage.folder / 'predictions.parquet', pd.DataFrame(rows))"
    ),
    "thresholds": "write_json(stage.folder / 'scores.parquet', stage.parameters)",
}
USUAL = "write_json(stage.folder / 'summary.json', stage.parameters)"


def light_project(root: Path, work: dict[str, str]) -> Path:
    """A project folder with its own copy of the package, whose notebooks do what `work` says."""
    for name in ("profiles", "src"):
        shutil.copytree(PROJECT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(PROJECT / "Snakefile", root)
    (root / "notebooks").mkdir()
    for kind in stages.KINDS.values():
        keys = {"split": 1, "n_train": 10, "arm": "EXP", "seed": 1, "masks": "plain", "generator": 1}
        named = [f"{key} = {keys[key]!r}" for key in kind.keys] or ["splits = None"]
        parameters = nbformat.v4.new_code_cell("\n".join(["profile = 'smoke'", "dataset = 'phantom'", *named]))
        parameters.metadata.tags = ["parameters"]
        source = (
            "from companion.provenance import write_json\nfrom companion.stages import begin\n"
            f"stage = begin({kind.name!r}, globals())\n{work.get(kind.name, USUAL)}\nstage.finish()"
        )
        notebook = nbformat.v4.new_notebook(cells=[parameters, nbformat.v4.new_code_cell(source)])
        nbformat.write(notebook, root / "notebooks" / f"{kind.notebook}.ipynb")
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A light project, run once; tests get copies."""
    root = light_project(tmp_path_factory.mktemp("finished"), WORK)
    done = companion(root, "run", "smoke")
    assert done.returncode == 0, done.stderr + log_of(root)
    return root


@pytest.fixture
def project(finished, tmp_path):
    """The light project after its run, a copy for each test: what one test breaks, no other test finds broken."""
    root = tmp_path / "project"
    shutil.copytree(finished, root)
    yield root
    print(log_of(root))  # pytest shows it where the test has failed


def log_of(root: Path) -> str:
    """Snakemake's log of the last run, and what its stages refused."""
    tree = root / "runs" / "smoke" / "phantom"
    texts = [tree / "snakemake.log", *sorted(tree.rglob("error.txt"))]
    return "\n".join(f"--- {p.relative_to(tree)}\n{p.read_text()}" for p in texts if p.is_file())


def environment(root: Path) -> dict[str, str]:
    cleared = {k: v for k, v in os.environ.items() if not k.startswith("COMPANION")}
    return {**cleared, "COMPANION_ROOT": str(root), "PYTHONPATH": str(root / "src")}


def companion(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "companion.cli", *arguments]
    return subprocess.run(command, cwd=root, env=environment(root), capture_output=True, text=True, timeout=300)


def stamps(root: Path) -> dict[str, str]:
    tree = root / "runs" / "smoke" / "phantom"
    return {str(p.parent.relative_to(tree)): p.read_text() for p in sorted(tree.rglob("stamp.json"))}


def rerun(root: Path, *arguments: str) -> set[str]:
    """Addresses whose notebooks ran again."""
    before = stamps(root)
    done = companion(root, "run", "smoke", *arguments)
    assert done.returncode == 0, done.stderr + log_of(root)
    return {address for address, text in stamps(root).items() if before.get(address) != text}


def test_a_second_run_has_nothing_to_do(project):
    done = companion(project, "run", "smoke")
    assert "nothing to do" in done.stdout
    assert rerun(project) == set()


def test_a_moved_tree_without_flags_is_still_fresh(project):
    for flag in (project / "runs").rglob(".done"):
        flag.unlink()
    for index, path in enumerate(sorted((project / "runs").rglob("*.json"))):
        os.utime(path, (index, index))
    assert rerun(project) == set()


def test_a_changed_parameter_reruns_what_reads_it(project):
    profile = project / "profiles" / "smoke.yaml"
    kept = profile.read_text()
    profile.write_text(kept + "\nevaluation: {bootstrap: 77}\n")
    studies = {"split-1/n-10/generator-1/faithfulness", "annotation-bias", "feedback-loop", "distribution-shift"}
    assert rerun(project) == {"thresholds", "sizes", "significance", "imbalance", "claims", "errors", *studies}
    profile.write_text(kept)
    assert "thresholds" in rerun(project)


def test_a_changed_package_file_reruns_what_imports_it_and_nothing_else(project):
    with open(project / "src/companion/geometry.py", "a") as file:
        file.write("# changed\n")
    states = companion(project, "status", "smoke").stdout
    assert states.count("companion/geometry.py") == 2
    (counts,) = re.findall(r"^(\d+) of (\d+) stages fresh, (\d+) stale$", states, re.MULTILINE)
    fresh, total, stale = map(int, counts)
    assert total == len(stamps(project)) == fresh + stale and stale > 2, "what reads the masks may change with them"
    # The masks come out as before, so what reads them is left alone.
    assert rerun(project) == {"split-1/n-10/simulated-plain", "split-1/n-10/simulated-rare"}


def test_a_changed_notebook_reruns_it_and_what_follows(project):
    path = project / "notebooks" / "09_significance.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].source = notebook.cells[1].source.replace("stage.parameters)", "{'changed': 1})")
    nbformat.write(notebook, path)
    assert rerun(project) == {"significance", "claims"}


def test_a_damaged_artifact_is_made_again(project):
    (project / "runs/smoke/phantom/split-1/n-10/statistics/summary.json").write_text("")
    assert rerun(project) == {"split-1/n-10/statistics"}


def test_a_foreign_file_goes_and_a_missing_executed_copy_comes_back(project):
    tree = project / "runs/smoke/phantom"
    foreign = tree / "sizes" / "foreign.json"
    foreign.write_text("{}")
    (tree / "errors" / "notebook.ipynb").unlink()
    assert rerun(project) == {"sizes", "errors"}
    assert not foreign.exists() and (tree / "errors" / "notebook.ipynb").exists()


def test_what_a_notebook_refuses_is_one_message(project):
    path = project / "notebooks" / "11_claims.ipynb"
    kept = path.read_text()
    path.write_text(
        kept.replace(
            "stage.finish()", "from companion.errors import CompanionError\\nraise CompanionError('too few images: 3')"
        )
    )
    done = companion(project, "run", "smoke")
    path.write_text(kept)
    assert done.returncode == 2
    assert done.stderr.strip() == "error in claims: too few images: 3"
    assert rerun(project) <= {"claims"}


def test_a_kernel_that_is_killed_is_one_message(project):
    path = project / "notebooks" / "11_claims.ipynb"
    kept = path.read_text()
    path.write_text(kept.replace("stage.finish()", "import os\\nos.kill(os.getpid(), 9)"))
    done = companion(project, "run", "smoke")
    path.write_text(kept)
    assert done.returncode == 2
    assert "error in claims: 11_claims: the kernel ended before the notebook did" in done.stderr
    assert "--cores" in done.stderr and "Traceback" not in done.stderr
    assert rerun(project) <= {"claims"}


def test_kernels_are_spoken_to_through_files_and_leave_none(project):
    path = project / "notebooks" / "08_sizes_and_splits.ipynb"
    kept = path.read_text()
    told = "from ipykernel.connect import get_connection_info\\nwrite_json(stage.folder / 'kernel.json', "
    told += "get_connection_info(unpack=True) | {'key': ''})\\nstage.finish()"
    path.write_text(kept.replace("stage.finish()", told))
    assert "sizes" in rerun(project)
    made = json.loads((project / "runs/smoke/phantom/sizes/kernel.json").read_text())
    assert made["transport"] == "ipc" and not Path(made["ip"]).parent.exists()
    path.write_text(kept)
    rerun(project)


def test_a_run_reads_its_tree_once(project):
    (project / "runs/smoke/phantom/thresholds/stamp.json").unlink()
    stages_file = project / "src/companion/stages.py"
    counted = "def states(profile: Profile) -> dict[str, list[str] | None]:\n"
    text = stages_file.read_text()
    assert counted in text
    note = f"    print('', file=open({str(project / 'read.txt')!r}, 'a'))\n"
    before, body = text.split(counted)
    documentation, end, rest = body.partition('"""\n    found: ')
    stages_file.write_text(before + counted + documentation + '"""\n' + note + end.removeprefix('"""\n') + rest)
    assert "thresholds" in rerun(project)
    assert (project / "read.txt").read_text().count("\n") == 1, "by the face; Snakemake takes its flags"
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--rerun-triggers", "mtime", "--dry-run", "--config"]
    for synchronised in ([], [f"synchronised={project}/runs/smoke/other"]):
        (project / "read.txt").unlink()
        given = [*command, "profile=smoke", *synchronised]
        done = subprocess.run(given, cwd=project, env=environment(project), capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert (project / "read.txt").read_text().count("\n") == 1, "Snakemake by itself, or with another tree's word"


@pytest.mark.parametrize(("cores", "warned"), [("2", True), ("3", False)])
def test_too_few_cores_for_detectors_side_by_side_are_told(project, cores, warned):
    (project / "profiles" / "side.yaml").write_text("threads: 1\njobs_per_device: 3\nsplits: [7777]\n")
    (project / "notebooks" / "01_micrographs.ipynb").write_text("{}")  # the run ends there
    said = " ".join(companion(project, "run", "side", "--cores", cores).stdout.split())
    assert ("3 detectors side by side need 3 cores (threads: 1); of 2 cores, 2 at a time" in said) == warned, said


@pytest.mark.parametrize("told", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_runs_continue(project, told):
    (project / "runs/smoke/phantom/split-1/micrographs/stamp.json").unlink()
    (project / "runs/smoke/phantom/thresholds/stamp.json").unlink()
    command = [sys.executable, "-m", "companion.cli", "run", "smoke"]
    process = subprocess.Popen(command, cwd=project, env=environment(project), stdout=subprocess.PIPE, text=True)
    working = project / "runs/smoke/phantom/split-1/micrographs"
    for _ in range(600):  # until papermill has begun to write its copy
        if any(working.glob(".tmp-*")):
            break
        time.sleep(0.1)
    process.send_signal(told)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "continues from here" in out
    assert not subprocess.run(["pgrep", "-f", f"snakemake --snakefile {project}"], capture_output=True).stdout
    assert {"split-1/micrographs", "thresholds"} & rerun(project)
    assert not any(working.glob(".tmp-*"))
    assert rerun(project) == set()


def test_a_run_outlives_its_terminal(project):
    (project / "runs/smoke/phantom/thresholds/stamp.json").unlink()
    command = [sys.executable, "-m", "companion.cli", "run", "smoke"]
    process = subprocess.Popen(command, cwd=project, env=environment(project), stdout=subprocess.PIPE, text=True)
    working = project / "runs/smoke/phantom/thresholds"
    for _ in range(600):
        if any(working.glob(".tmp-*")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGHUP)
    process.stdout.close()
    assert process.wait(timeout=120) == 0
    said = (project / "runs/smoke/phantom/terminal.log").read_text()
    assert "stages done in" in said and "companion bundle smoke" in said
    assert rerun(project) == set()


def test_the_reference_is_drawn_again_by_what_trains_nothing(project, tmp_path):
    rerun(project)
    packed = companion(project, "bundle", "smoke", "--out", str(tmp_path / "bundle"))
    assert packed.returncode == 0, packed.stderr
    assert "results/reference/smoke/phantom" in companion(project, "unbundle", str(tmp_path / "bundle")).stdout
    assert (
        f"{len(stamps(project))} of {len(stamps(project))} stages fresh"
        in companion(project, "status", "reference").stdout
    )
    code = "from companion import reference as r\nwith r.runs_in(r.redrawn()): print(*r.redraw(r.find(), 2))"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=project, env=environment(project), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    again = set(done.stdout.split())
    assert {"split-1/micrographs", "split-1/n-10/simulated-plain", "thresholds", "claims"} <= again
    assert not {address for address in again if "EXP" in address or "diffusion" in address or "rare" in address}
    tree = project / "_build/reference/smoke/phantom"
    found = {str(p.parent.relative_to(tree)): json.loads(p.read_text()) for p in sorted(tree.rglob("stamp.json"))}
    assert found.keys() == stamps(project).keys()
    assert {address for address, stamp in found.items() if "left_out" not in stamp} == again
    notebook = project / "notebooks" / "06_mask_rcnn.ipynb"
    kept = notebook.read_text()
    notebook.write_text(kept.replace("stage.finish()", "stage.finish()  # otherwise"))
    shown = companion(project, "status", "reference").stdout
    refused = companion(project, "bundle", "smoke", "--out", str(tmp_path / "bundle"))
    notebook.write_text(kept)
    assert "code changed: notebooks/06_mask_rcnn.ipynb" in shown and "reads split-1/n-10/EXP/seed-1 and" in shown
    assert refused.returncode == 2 and "is not complete; `companion run smoke`" in refused.stderr


def test_a_run_whose_command_was_killed_is_not_joined_by_a_second(project):
    (project / "runs/smoke/phantom/claims/stamp.json").unlink()
    command = [sys.executable, "-m", "companion.cli", "run", "smoke"]
    process = subprocess.Popen(command, cwd=project, env=environment(project), stdout=subprocess.DEVNULL)
    lock, snakemake = project / "runs/smoke/phantom/.lock", []
    while not snakemake:
        assert process.poll() is None, "the run ended before it had started Snakemake"
        snakemake = psutil.Process(process.pid).children()
    process.kill()
    process.wait()
    done = companion(project, "run", "smoke")
    assert done.returncode == 2 and "another run is working" in done.stderr
    psutil.wait_procs(snakemake, timeout=60)
    assert lock.exists() and rerun(project) == set()


def test_two_runs_on_one_tree_are_refused(project):
    import fcntl

    with open(project / "runs/smoke/phantom/.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = companion(project, "run", "smoke")
    assert done.returncode == 2 and "another run is working on runs/smoke/phantom" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "smok"], "did you mean 'smoke'"),
        (["run", "smoke", "--split", "none.yaml"], "neither a number nor an existing split file"),
        (["run", "smoke", "--cores", "0"], "--cores"),
        (["run", "smoke", "--spit", "1"], "--spit"),
        (["run", "smoke", "--dataset", "loops_316"], "loops_316"),
        (["evaluate", "no.parquet", "no.json"], "no.json"),
    ],
)
def test_unusable_command_lines_exit_with_2(project, arguments, said):
    before = stamps(project)
    done = companion(project, *arguments)
    assert done.returncode == 2 and said in done.stderr and "Traceback" not in done.stderr
    assert stamps(project) == before


def test_stamps_are_json(project):
    assert all(json.loads(text)["outputs"] for text in stamps(project).values())
