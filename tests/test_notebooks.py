"""Every notebook as a reader uses it: each cell run twice in a row, with variables of the reader's own around."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nbformat
import papermill
import pytest

from companion.config import load_profile
from companion.workflow import book, freshness

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


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_cell_can_be_run_twice(name, smoke, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_RUNS", str(smoke))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    P = load_profile("real" if name == book.REAL else "smoke")
    if name not in (folders := book.shown(P, smoke / P.name / P.dataset)):
        pytest.skip("no run on real micrographs is committed")
    folder = folders[name]
    stamp = freshness.read_stamp(folder)
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    cells = []
    for cell in notebook.cells:
        cells += [cell] if cell.cell_type != "code" or "parameters" in cell.metadata.get("tags", []) else [cell, cell]
    mine = nbformat.v4.new_code_cell("x, k, table, path, name, masks_of_mine = 1, 'a', [2], None, 3.0, {}")
    notebook.cells = [*cells[:1], mine, *cells[1:]]
    for cell in notebook.cells:
        cell.pop("id", None)
    nbformat.write(notebook, tmp_path / "twice.ipynb")
    given = {key: int(value) if key in ("n_train", "seed") else value for key, value in stamp["keys"].items()}
    papermill.execute_notebook(
        tmp_path / "twice.ipynb", tmp_path / "out.ipynb", given, cwd=ROOT, kernel_name="python3", language="python",
        progress_bar=False,
    )  # fmt: skip
    made = {name for name in freshness.outputs(folder) if not name.startswith("figures/")}
    assert {name for name in stamp["outputs"] if not name.startswith("figures/")} <= made
