"""Every notebook as a reader uses it: each cell run twice in a row, with variables of the reader's own around."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
from IPython.core.interactiveshell import InteractiveShell
from traitlets.config import Config

from companion.config import load_profile
from companion.workflow import book, freshness, job

ROOT = Path(__file__).resolve().parents[1]
TREE = ROOT / "runs" / "smoke" / "phantom"
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def smoke(tmp_path_factory) -> Path:
    """A copy of the finished smoke run, which notebooks may write into."""
    if freshness.read_stamp(TREE / "claims") is None:
        assert os.environ.get("COMPANION_REQUIRE_BOOK") != "1", "no smoke run: `make smoke` makes it"
        pytest.skip("no smoke run: `make smoke` makes it")
    runs = tmp_path_factory.mktemp("runs")
    shutil.copytree(TREE, runs / "smoke" / "phantom")
    if (real := ROOT / "results" / "real").is_dir():
        shutil.copytree(real, runs / "real")
    return runs


@pytest.fixture
def shell(monkeypatch):
    """A notebook's shell in this process: a kernel would load all packages anew. `make smoke` has run the kernels."""
    monkeypatch.chdir(ROOT)
    yield InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
    InteractiveShell.clear_instance()
    plt.close("all")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_cell_can_be_run_twice(name, smoke, shell, monkeypatch):
    monkeypatch.setenv("COMPANION_RUNS", str(smoke))
    P = load_profile("real" if name == book.REAL else "smoke")
    if name not in (folders := book.shown(P, smoke / P.name / P.dataset)):
        pytest.skip("no run on real micrographs is committed")
    folder = folders[name]
    stamp = freshness.read_stamp(folder)
    given = {key: int(value) if key in job.NUMBERS else value for key, value in stamp["keys"].items()}
    cells = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells
    declared, *others = [cell.source for cell in cells if cell.cell_type == "code"]
    papermills = "# Parameters\n" + "".join(f"{key} = {value!r}\n" for key, value in given.items())
    mine = "x, k, table, path, name, masks_of_mine = 1, 'a', [2], None, 3.0, {}"
    for source in (mine, declared, papermills, *(cell for cell in others for _ in range(2))):
        shell.run_cell(source, store_history=True).raise_error()
    made = {name for name in freshness.outputs(folder) if not name.startswith("figures/")}
    assert {name for name in stamp["outputs"] if not name.startswith("figures/")} <= made
