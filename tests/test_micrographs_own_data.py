"""Notebook 01 on micrographs of one's own: one class, two pixel sizes, label maps, a split file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import papermill
import pytest
import yaml
from conftest import ellipse_patches

from companion import layout
from companion.micrographs.images import write_grey
from companion.micrographs.importers import import_dataset
from companion.micrographs.patches import load_patches


def shown_by(name: str, parameters: dict[str, object], executed: Path) -> list[str]:
    """What the cells of a notebook show, as HTML, Markdown or text."""
    made = papermill.execute_notebook(
        layout.notebook(name), executed, parameters, kernel_name="python3", language="python", progress_bar=False
    )
    found = [output.get("data", {}) for cell in made.cells for output in cell.get("outputs", [])]
    return [data.get("text/html") or data.get("text/markdown") or data.get("text/plain", "") for data in found]


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Parameters of a run on ten micrographs of 192 px with dark ellipses of one class, one without any."""
    folder = tmp_path_factory.mktemp("own")
    tiles = ellipse_patches(90, size=64, classes=1, seed=4)
    pixels, ids = (np.asarray(a).reshape(10, 3, 3, 64, 64).swapaxes(2, 3).reshape(10, 192, 192)
                   for a in (tiles.images, tiles.instances))  # fmt: skip
    for k in range(10):
        label = np.where(ids[k] > 0, 255, 0).astype(np.uint8)
        write_grey(folder / "images" / f"frame{k}_{70 if k else 300}kx.png", pixels[k])
        write_grey(folder / "labels" / f"frame{k}_{70 if k else 300}kx.png", label if k else 0 * label)
    scale = "70kx=0.8,300kx=0.4"
    made = import_dataset("labelmap", folder / "images", folder / "labels", ["loop"], scale, folder / "steel")
    lists = {"train": made.files[1:7], "test": [made.files[k] for k in (0, 7, 8)]}
    (folder / "mine.yaml").write_text(yaml.safe_dump(lists))
    profile = {"sizes": [4, 6], "n_test": 3, "n_val": 1, "splits": [1, str(folder / "mine.yaml")],
               "patches": {"size": 64, "train_stride": 48, "test_stride": 48}}  # fmt: skip
    (folder / "own.yaml").write_text(yaml.safe_dump(profile))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPANION_RUNS", str(folder / "runs"))
        yield folder / "runs" / "own" / "steel", {"profile": str(folder / "own.yaml"), "dataset": str(made.folder)}


@pytest.mark.parametrize("split", ["1", "mine"])
def test_notebook_01_runs_on_a_data_set_with_one_class(own, split, tmp_path):
    tree, parameters = own
    shown = shown_by("01_micrographs", {**parameters, "split": split}, tmp_path / "01.ipynb")
    assert any("The truth of steel is not known" in said for said in shown)
    lacking = "1 test micrograph(s) have 0.4 nm per px, which none of the first 4"
    assert any(lacking in said for said in shown) == (split == "mine")
    captions = [said.split("<caption>")[1].split("</caption>")[0] for said in shown if "<caption>" in said]
    assert len(captions) == 5 and all("(steel, own profile)" in caption for caption in captions)
    for part, micrographs in (("train-n4", 4), ("train-n6", 6), ("test", 3)):
        patches = load_patches(tree / f"split-{split}" / "micrographs" / part)
        assert patches.index["image"].nunique() == micrographs and patches.classes == ("loop",)
        assert len(patches) == 9 * micrographs and patches.table["class"].eq(1).all()
    assert (tree / f"split-{split}" / "micrographs" / "val").is_dir() == (split == "1")
