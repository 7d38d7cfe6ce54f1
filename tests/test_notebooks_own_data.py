"""Notebooks 01-03 on micrographs of one's own: one class, imported from label maps, seconds instead of a run."""

from __future__ import annotations

import ast
import json

import numpy as np
import pytest
import yaml
from conftest import ellipse_patches

from companion import paths
from companion.micrographs.importers import import_dataset
from companion.micrographs.images import write_grey


def run_notebook(name: str, parameters: dict[str, object]) -> list[str]:
    """Run a notebook's code cells with `parameters` in one namespace; what its cells show, as HTML or text."""
    shown: list[str] = []
    namespace: dict[str, object] = {}
    for cell in json.loads((paths.notebooks() / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("IPython.display.display", lambda value: shown.append(html(value)))
            exec(compile(tree, name, "exec"), namespace)
        if "parameters" in cell["metadata"].get("tags", []):
            assert parameters.keys() <= namespace.keys()
            namespace |= parameters
        if last is not None:
            shown.append(html(eval(compile(ast.Expression(last.value), name, "eval"), namespace)))
    return shown


def html(value: object) -> str:
    table = value._repr_html_() if hasattr(value, "_repr_html_") else None
    return table or str(getattr(value, "data", value))


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """Parameters of a run on ten micrographs of 192 px with dark ellipses of one class, one without any."""
    folder = tmp_path_factory.mktemp("own")
    tiles = ellipse_patches(90, size=64, classes=1, seed=4)
    pixels, ids = (np.asarray(a).reshape(10, 3, 3, 64, 64).swapaxes(2, 3).reshape(10, 192, 192)
                   for a in (tiles.images, tiles.instances))  # fmt: skip
    for sub in ("images", "labels"):
        (folder / sub).mkdir()
    for k in range(10):
        label = np.where(ids[k] > 0, 255, 0).astype(np.uint8)
        write_grey(folder / "images" / f"frame{k}.png", pixels[k])
        write_grey(folder / "labels" / f"frame{k}.png", label if k else 0 * label)
    made = import_dataset("labelmap", folder / "images", folder / "labels", ["loop"], 0.4, folder / "steel")
    assert made.classes == ("loop",)
    profile = {"sizes": [6], "n_test": 3, "patches": {"size": 64, "train_stride": 48, "test_stride": 48},
               "masks": {"n_patches": 32}}  # fmt: skip
    (folder / "own.yaml").write_text(yaml.safe_dump(profile))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPANION_RUNS", str(folder / "runs"))
        yield {"profile": str(folder / "own.yaml"), "dataset": str(made.folder)}


@pytest.mark.slow
def test_notebooks_01_to_03_run_on_a_data_set_with_one_class(own):
    first = run_notebook("01_micrographs", own)
    assert any("The truth of steel is not known" in text for text in first)
    assert any("has 1 class(es)" in text for text in first)
    second = run_notebook("02_mask_statistics", {**own, "n_train": 6})
    assert any("so nobody can fill this table" in text for text in second)
    third = run_notebook("03_mask_simulation", {**own, "n_train": 6})
    assert any("AUC of the paper" in text for text in third)
    captions = [text.split("<caption>")[1].split("</caption>")[0] for text in (*first, *second, *third)
                if "<caption>" in text]  # fmt: skip
    assert len(captions) >= 8 and all("(steel, own profile)" in caption for caption in captions)
