"""Every notebook as a reader uses it: each cell twice, beside variables of their own, and on their own micrographs."""

import os
import shutil
from pathlib import Path

import joblib
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import papermill
import pytest
import yaml
from conftest import ellipse_patches
from IPython.core.interactiveshell import InteractiveShell
from matplotlib.figure import Figure
from project import NAMES, ROOT
from traitlets.config import Config

from companion import layout, plots
from companion.config import load_profile
from companion.detection import predict
from companion.diffusion import quality, sample
from companion.masks import compare
from companion.micrographs.images import write_grey
from companion.micrographs.importers import import_dataset
from companion.micrographs.patches import load_patches
from companion.workflow import book, freshness, job

TREE = ROOT / "runs" / "smoke" / "phantom"


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


def drawn(figure: Figure, folder: Path, name: str) -> Figure:
    """Lay out and draw a figure, in place of `plots.save`: `make smoke` has written its pixels and its SVG."""
    figure.draw_without_rendering()
    plt.close(figure)
    return figure


@pytest.fixture
def shell(monkeypatch, two_deals, tmp_path):
    """A notebook's shell in this process: a kernel would load all packages anew. `make smoke` has run the kernels.

    What draws images, detects and judges is not computed again where a cell asks for the same a second time.
    """
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(plots, "save", drawn)
    slow = ((sample.LatentDiffusion, "sample"), (predict, "predict"), (quality, "judge"), (compare, "compare"))
    for owner, name in slow:
        known = joblib.Memory(tmp_path, verbose=0).cache(getattr(owner, name))
        monkeypatch.setattr(owner, name, lambda *given, known=known, **named: known(*given, **named))
    shell = InteractiveShell.instance(config=Config(HistoryManager={"enabled": False}))
    yield shell
    shell.reset()  # the variables of one notebook are not kept beside those of the next
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


def test_notebook_01_runs_on_a_data_set_with_one_class_and_a_split_file(tmp_path, monkeypatch):
    # Ten micrographs of 192 px with dark ellipses of one class, one without any.
    tiles = ellipse_patches(90, size=64, classes=1, seed=4)
    pixels, ids = (np.asarray(a).reshape(10, 3, 3, 64, 64).swapaxes(2, 3).reshape(10, 192, 192)
                   for a in (tiles.images, tiles.instances))  # fmt: skip
    for k in range(10):
        label = np.where(ids[k] > 0, 255, 0).astype(np.uint8)
        write_grey(tmp_path / "images" / f"frame{k}_{70 if k else 300}kx.png", pixels[k])
        write_grey(tmp_path / "labels" / f"frame{k}_{70 if k else 300}kx.png", label if k else 0 * label)
    scale = "70kx=0.8,300kx=0.4"
    made = import_dataset("labelmap", tmp_path / "images", tmp_path / "labels", ["loop"], scale, tmp_path / "steel")
    lists = {"train": made.files[1:7], "test": [made.files[k] for k in (0, 7, 8)]}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(lists))
    profile = {"sizes": [4, 6], "n_test": 3, "n_val": 1, "splits": [str(tmp_path / "mine.yaml")],
               "patches": {"size": 64, "train_stride": 48, "test_stride": 48}}  # fmt: skip
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(profile))
    monkeypatch.setenv("COMPANION_RUNS", str(tmp_path / "runs"))
    given = {"profile": str(tmp_path / "own.yaml"), "dataset": str(made.folder), "split": "mine"}
    settings = {"kernel_name": "python3", "language": "python", "progress_bar": False}
    source = layout.notebook("01_micrographs")
    executed = papermill.execute_notebook(source, tmp_path / "01.ipynb", given, **settings)
    data = [output.get("data", {}) for cell in executed.cells for output in cell.get("outputs", [])]
    shown = [one.get("text/html") or one.get("text/markdown") or one.get("text/plain", "") for one in data]
    assert any("The truth of steel is not known" in said for said in shown)
    tree, warning = tmp_path / "runs" / "own" / "steel", "1 test micrograph(s) have 0.4 nm per px, which none"
    run = book.Run(load_profile(tmp_path / "own.yaml", str(made.folder)), tree, tree)
    assert any(warning in said for said in shown) and f"- Split mine: {warning}" in book.warned(run, {"keys": {}})
    captions = [said.split("<caption>")[1].split("</caption>")[0] for said in shown if "<caption>" in said]
    assert len(captions) == 5 and all("(steel, own profile)" in caption for caption in captions)
    here = tree / "split-mine" / "micrographs"
    for part, micrographs in (("train-n4", 4), ("train-n6", 6), ("test", 3)):
        patches = load_patches(here / part)
        assert patches.index["image"].nunique() == micrographs and patches.classes == ("loop",)
        assert len(patches) == 9 * micrographs and patches.table["class"].eq(1).all()
    assert not (here / "val").exists()
