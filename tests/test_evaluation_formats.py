"""Anyone's predictions and truths: what is read, and what is said of files that cannot be."""

import json
import random
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from conftest import ellipse_patches
from pycocotools import mask as coco_mask
from test_micrographs_files import mutations
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


@pytest.mark.parametrize(("files", "given", "expected"), [
    ("a.png b.png", "b.png", 1), ("a.png b.png", "/x y/b.png", 1), (r"s\a.png b.png", "s/a.png", 0),
    ("s/a.png b.png", "a.png", 0), ("a.png s/a.png", "a.png", 0), ("a.png s/a.png", "x/s/a.png", 1),
    ("a.png b.png", "b", 1), ("a.png b.png", "b.JPG", 1), ("x0.5.png b.png", "x0.5", 0), ("11.png b.png", "11", 0),
    ("a.png b.png", "11", 1), ("caf\u00e9.png b.png", "cafe\u0301.png", 0), ("a.png b.png", "", "unknown patch"),
    ("s/a.png t/a.png", "a.png", "could be s/a.png or t/a.png"), ("a.tif a.png", "a", "could be a.tif or a.png"),
    ("s/a.png b.png", "t/a.png", "unknown patch"),
])  # fmt: skip
def test_images_are_joined_by_name(coco, files, given, expected):
    images = [{"id": 10 + k, "file_name": name} for k, name in enumerate(files.split())]
    truth = {**COCO, "images": images, "annotations": []}
    results, truth = coco(changed(0, image_id=given)[:1], truth)
    if isinstance(expected, str):
        with pytest.raises(CompanionError, match=expected):
            evaluate_files(results, truth)
    else:
        assert read_predictions(results, read_truth(truth))["patch"].tolist() == [10 + expected]


def test_files_with_names_are_joined_by_names_whatever_their_ids(tmp_path, coco):
    expected = evaluate_files(*coco(RESULTS))
    ids, names = {7: 2, 9: 1}, {2: 1, 5: 0}
    renumbered = [{**r, "image_id": ids[r["image_id"]], "category_id": names[r["category_id"]]} for r in RESULTS]
    whole = {
        "images": [{**image, "id": ids[image["id"]]} for image in COCO["images"]],
        "categories": [{**category, "id": names[category["id"]]} for category in COCO["categories"]],
    }
    assert evaluate_files(*coco({**whole, "annotations": renumbered})).equals(expected)
    named = [{**r, "image_id": 5, "file_name": "x/a.png"} for r in RESULTS]
    assert evaluate_files(*coco(named)).equals(expected)
    table = pd.DataFrame({
        "image": "a.png", "x1": [0.0, 20], "y1": [0.0, 20], "x2": [10.0, 30], "y2": [10.0, 30],
        "score": [0.9, 0.8], "class": "loop",
    })  # fmt: skip
    table.to_csv(tmp_path / "p.csv", index=False, encoding="utf-8-sig")
    write_table(tmp_path / "p.parquet", table)
    for name in ("p.csv", "p.parquet"):
        assert evaluate_files(tmp_path / name, tmp_path / "truth.json").equals(expected)


PIXELS = np.zeros((64, 48), dtype=np.uint8, order="F")
PIXELS[10:30, 5:9] = PIXELS[3, 20] = 1
TEXT = coco_mask.encode(PIXELS)["counts"].decode()
LENGTHS = [330, 20, 44, 20, 44, 20, 44, 20, 741, 1, 1788]


def lengths(counts, size=(64, 48)):
    return {"size": list(size), "counts": counts}


@pytest.mark.parametrize(("segmentation", "expected"), [
    (lengths(TEXT), (5, 3, 21, 30)), (lengths(LENGTHS), (5, 3, 21, 30)), (lengths([3072]), (0, 0, 0, 0)),
    (lengths([64, 128, 2880]), (1, 0, 3, 64)), (lengths([100, 40, 2932]), (1, 0, 3, 64)),
    ([[1, 2, 9, 2, 9, 7.5], [3, 0, 4, 0, 4, 1]], (1, 0, 9, 7.5)),
    (lengths(TEXT[:-1]), "cut off within a number"), (lengths(TEXT + "0"), "add up to 48 x 64"),
    (lengths(f"b'{TEXT}'"), "are not COCO's"), (lengths("\x00"), "are not COCO's"),
    (lengths([3000, -8, 80]), "are not counts"), (lengths(LENGTHS, (48, 64)), "of 64 x 48 px, not 48 x 64"),
    ([[1, 2, 3, 4]], "three or more"), (None, "three or more"),
])  # fmt: skip
def test_results_without_boxes_have_those_of_their_masks(coco, segmentation, expected):
    found = [{"image_id": 7, "category_id": 2, "score": 0.9, "segmentation": segmentation}]
    results, truth = coco(found, {**COCO, "images": [{**COCO["images"][0], "width": 48}, COCO["images"][1]]})
    if isinstance(expected, str):
        with pytest.raises(CompanionError, match=f"entry 1: it has no bbox, .*{expected}"):
            evaluate_files(results, truth)
    else:
        table = read_predictions(results, read_truth(truth))
        assert tuple(table[["x1", "y1", "x2", "y2"]].iloc[0]) == expected


def test_whatever_a_file_holds_is_read_or_one_message(coco):
    mask, read, rng = lengths([64, 4032], (64, 64)), 0, random.Random(0)
    found = [{"image_id": "a.png", "category_id": 2, "score": 0.5, "segmentation": mask}, RESULTS[0]]
    good = ({**COCO, "annotations": found}, {**COCO, "annotations": [{**LOOP, "score": 0.5, "segmentation": mask}]})
    for which, document in enumerate(good * 4):
        for changed in mutations(json.dumps(document).encode(), rng):
            files = coco(*good)
            files[which % 2].write_bytes(changed)
            try:
                evaluate_files(*files)
                read += 1
            except CompanionError as error:
                assert str(error).count("\n") <= 21
    assert 10 < read < 100


def changed(n: int, **entries):
    return [{**result, **(entries if k == n else {})} for k, result in enumerate(RESULTS)]


@pytest.mark.parametrize(("results", "says"), [
    (changed(0, image_id=8), r"unknown patch \(image\) 8: the truths have 7, 9"),
    (changed(0, category_id=1), "unknown class 1: the truths have 2, 5"),
    (changed(0, category_id=0), "unknown class 0: .* counted from 0"),
    (changed(0, image_id="c.png"), r"unknown patch \(image\) 'c.png': did you mean"),
    ([{k: v for k, v in r.items() if k != "bbox"} for r in RESULTS], "entry 2: it has no bbox, and"),
    ({"images": [{"id": 7, "file_name": "c.png"}], "results": RESULTS}, "'c.png'"),
    ({"categories": [{"id": 2, "name": "Loop"}], "results": RESULTS}, "unknown class 'Loop': did you mean 'loop'"),
    ({"annotations": RESULTS, "predictions": RESULTS}, "mapping of annotations, predictions"),
    ([{"image_id": 7}] * 99, r"(?s)category_id: Field required \(and 98 more.*score: Field required \(and 98 more"),
    (RESULTS * 50 + [{**RESULTS[0], "score": 2}] * 50, "(?s)entry 120: .*and 30 more$"),
    (changed(1, bbox=[1, 1, -4, 5]), "entry 2: box .* inverted"),
    (json.dumps(changed(0, score=0.5)).replace("0.5", "NaN"), r"entry 1, score: Input should be a finite number \(g"),
    (changed(0, score=87), "score 87.0 is not in"),
    (changed(0, bbox=[1, 2, 3]), "entry 1, bbox: List should have at least 4"),
    (changed(0, segmentation="mask.png"), "entry 1, segmentation: Input should be a valid dictionary"),
    (changed(0, segmentation={"counts": [4096]}), "entry 1, segmentation: Field required"),
    ({"labels": []}, "mapping of labels(?s:.*)a list, or a mapping that has it under annotations"),
    ("{broken", "is not a readable JSON file"),
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
    ({"images": [{"id": 7, "file_name": "a"}, {"id": 7, "file_name": "b"}]}, "have the id 7"),
    ({"categories": ["loop"]}, "categories, entry 1: Input should be"),
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
        (table.assign(score="high"), "entry 1: score high is not in"),
        (table.assign(label=1.5), "unknown class 1.5"),
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
