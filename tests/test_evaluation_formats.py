"""Anyone's predictions and truths: what is read, and what is said of files that cannot be."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import ellipse_patches
from test_scores import noisy
from typer.testing import CliRunner

from companion import cli
from companion.errors import CompanionError
from companion.evaluation.formats import read_predictions, read_truth, truth_of
from companion.evaluation.scores import count, evaluate_files, tabulate
from companion.provenance import write_table

LOOP, DOT = (
    {"id": 1, "image_id": 7, "category_id": 2, "bbox": [0, 0, 10, 10], "iscrowd": 0},
    {"id": 2, "image_id": 7, "category_id": 5, "bbox": [20, 20, 10, 10]},
)
COCO = {
    "images": [{"id": 7, "file_name": "a.png", "width": 64, "height": 64}, {"id": 9, "file_name": "b.png"}],
    "categories": [{"id": 2, "name": "loop"}, {"id": 5, "name": "dot"}],
    "annotations": [LOOP, DOT, {"id": 3, "image_id": 9, "category_id": 5, "bbox": [5, 5, 10, 10]}],
}
RESULTS = [
    {"image_id": 7, "category_id": 2, "bbox": [0.0, 0.0, 10.0, 10.0], "score": 0.9},
    {"image_id": 7, "category_id": 2, "bbox": [20, 20, 10, 10], "score": 0.8},
]


@pytest.fixture
def coco(tmp_path):
    def write(results, truth=COCO):
        for name, content in (("results.json", results), ("truth.json", truth)):
            (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return tmp_path / "results.json", tmp_path / "truth.json"

    return write


def test_coco_results_against_coco_truth(coco):
    first, second = evaluate_files(*coco(RESULTS), iou=[0.5], confidence=[0.5, 0.85]).to_dict("records")
    assert (first["tp"], first["fp"], first["fn"]) == (2, 0, 1) and (second["tp"], second["fn"]) == (1, 2)
    assert first["f1_class_2"] == pytest.approx(2 / 3) and first["f1_class_5"] == 0
    assert np.isnan(second["f1_class"])


def test_parquet_against_patches_and_against_coco(tmp_path, coco):
    patches = ellipse_patches(8, seed=1)
    patches.save(tmp_path / "test")
    write_table(tmp_path / "predictions.parquet", found := noisy(patches, 2))
    table = evaluate_files(tmp_path / "predictions.parquet", tmp_path / "test", [0.3, 0.5], [0.1, 0.6], "score-greedy")
    assert table.equals(tabulate(count(found, truth_of(patches), [0.3, 0.5], [0.1, 0.6], "score-greedy")))
    results, truth = coco(RESULTS)
    write_table(tmp_path / "predictions.parquet", read_predictions(results, read_truth(truth)))
    assert evaluate_files(tmp_path / "predictions.parquet", truth).equals(evaluate_files(results, truth))


def test_no_predictions_at_all_are_predictions(tmp_path, coco):
    row = evaluate_files(*coco([])).iloc[0]
    assert (row["tp"], row["fp"], row["fn"]) == (0, 0, 3) and np.isnan(row["precision"])
    write_table(tmp_path / "predictions.parquet", noisy(ellipse_patches(4), 0)[:0])
    assert evaluate_files(tmp_path / "predictions.parquet", tmp_path / "truth.json").iloc[0]["fn"] == 3


def changed(n: int, **entries):
    return [{**result, **(entries if k == n else {})} for k, result in enumerate(RESULTS)]


@pytest.mark.parametrize(("results", "says"), [
    (changed(0, image_id=8), r"unknown patch \(image\) 8: the truths have 7, 9"),
    (changed(0, category_id=1), "unknown class 1: the truths have 2, 5"),
    (changed(1, bbox=[1, 1, -4, 5]), "entry 2: box .* inverted"),
    (json.dumps(changed(0, score=0.5)).replace("0.5", "NaN"), "entry 1: score nan: Input should be a finite number"),
    (changed(0, score=87), "score 87.0 is not in"),
    (changed(0, bbox=[1, 2, 3]), "entry 1: bbox"),
    ([{"image_id": 7}], "entry 1: category_id .*Field required"),
    ({"labels": []}, "mapping of labels(?s:.*)a list, or a mapping that has it under annotations"),
    ("{broken", "not JSON(?s:.*)COCO results"),
    (changed(0, image_id=8, category_id=3, score=2), r"unknown patch \(image\) 8(?s:.*)class 3(?s:.*)score 2"),
])  # fmt: skip
def test_unusable_results_are_named(coco, results, says):
    with pytest.raises(CompanionError, match=says):
        evaluate_files(*coco(results))


@pytest.mark.parametrize(("change", "says"), [
    ({"images": None}, "images: Input should be a valid list"),
    ({"annotations": [{**LOOP, "image_id": 1}]}, "unknown patch .* 1: "),
    ({"annotations": [{**LOOP, "category_id": 9}]}, "unknown class 9"),
    ({"annotations": [{**LOOP, "bbox": [0, 0, -1, 4]}]}, "entry 1: box .* inverted"),
    ({"images": [{"id": 7, "file_name": "a"}, {"id": 7, "file_name": "b"}]}, "two have the id 7"),
    ({"categories": ["loop"]}, r"categories.0: Input should be"),
    ({"images": [], "annotations": []}, "no images"),
])  # fmt: skip
def test_unusable_truths_are_named(coco, change, says):
    with pytest.raises(CompanionError, match=says):
        evaluate_files(*coco([], {**COCO, **change}))


def test_files_that_are_something_else(tmp_path, coco):
    results, truth = coco(RESULTS)
    table, path = noisy(ellipse_patches(4), 0), tmp_path / "p.parquet"
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    for name, says in (
        ("instances_predictions.pth", r"coco_instances_results\.json"), ("absent.parquet", "no such file"),
        ("broken.parquet", "not a readable parquet"),
    ):  # fmt: skip
        with pytest.raises(CompanionError, match=says):
            evaluate_files(tmp_path / name, truth)
    for wrong, says in (
        (table.drop(columns=["score", "label"]), r"lacks the column\(s\) score, label"),
        (table.assign(score="high"), "should hold numbers"),
        (table.assign(label=1.5), "label should hold whole numbers"),
    ):
        write_table(path, wrong)
        with pytest.raises(CompanionError, match=says):
            evaluate_files(path, truth)
    with pytest.raises(CompanionError, match="not a patches folder"):
        evaluate_files(results, tmp_path)


def test_classes_and_unpredicted_patches_on_the_command_line(coco):
    # Image 7: a loop found, a dot found as a loop; image 9: a dot, and nothing predicted.
    files, counts = list(map(str, coco(RESULTS))), []
    for options in ((), ("--same-class",), ("--skip-unpredicted",), ("--same-class", "--skip-unpredicted")):
        row = json.loads(CliRunner().invoke(cli.app, ["evaluate", *files, *options, "--json"]).output)[0]
        counts.append((row["tp"], row["fp"], row["fn"]))
    assert counts == [(2, 0, 1), (1, 1, 2), (2, 0, 0), (1, 1, 1)]


def test_evaluation_never_imports_torch():
    modules = "companion.evaluation.scores, companion.evaluation.errors, companion.evaluation.plots"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
