"""All detectors of a run: read, scored, their thresholds chosen, and shown under two sliders."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ellipse_patches
from test_scores import noisy

from companion.errors import CompanionError
from companion.evaluation import runs, sliders, thresholds
from companion.evaluation.scores import Counts
from companion.provenance import write_table

IOU, CONFIDENCE = [0.3, 0.5], [0.1, 0.3, 0.5, 0.7]


@pytest.fixture(scope="module", params=[3, 1], ids=["three classes", "one class"])
def study(request, tmp_path_factory):
    """Two arms with two seeds, read from files."""
    test, val = (ellipse_patches(n, seed=s, classes=request.param) for n, s in ((24, 1), (12, 3)))
    found, held_back = [], []
    for number, (arm, misses) in enumerate((("EXP", 0.4), ("EXP", 0.4), ("EXP+GEN", 0.2), ("EXP+GEN", 0.2))):
        folder, here = tmp_path_factory.mktemp("predictions"), noisy(test, number, misses=misses)
        write_table(folder / "test.parquet", here)
        keys = {"split": "1", "n_train": 10, "arm": arm, "seed": number}
        found.append(runs.read_run(keys, folder / "test.parquet", test))
        held_back.append(runs.Run(keys, noisy(val, number, misses=misses), val))
    counts = runs.count_runs(found, IOU, CONFIDENCE)
    measure = "f1_hm" if request.param > 1 else "f1_detect"
    return found, counts, runs.tabulate_runs(found, counts), measure, held_back


def test_predictions_of_other_patches_are_refused(tmp_path):
    write_table(tmp_path / "test.parquet", noisy(ellipse_patches(24, seed=1), 0))
    with pytest.raises(CompanionError, match=r"test\.parquet(?s:.*)unknown patch"):
        runs.read_run({"split": "1"}, tmp_path / "test.parquet", ellipse_patches(4, seed=1))


def test_rules_are_compared(study):
    table = runs.compare_matchings(study[0], 0.5, 0.3)
    assert len(table) == 4 * 2 * 2
    totals = table.groupby(["rule", "classes"])["tp"].sum().unstack()
    assert (totals["equal"] <= totals["ignored"]).all() and (totals > 0).all(axis=None)


def test_best_confidence_by_hand():
    table = pd.DataFrame({
        "seed": [1, 1, 1, 2, 2, 2], "confidence": [0.3, 0.5, 0.7] * 2, "f1_detect": [0.5, 0.9, 0.7, 0.7, np.nan, 0.5],
        "split": "1", "n_train": 10, "arm": "EXP", "iou_threshold": 0.5, "f1_hm": np.nan,
    })  # fmt: skip
    chosen = thresholds.operating_points(table, 0.5, "f1_detect", 0.4)
    # 0.9 at 0.5 is of one seed alone; 0.3 and 0.7 have the same mean, and the lower one is taken.
    assert chosen.to_numpy().tolist() == [["1", 10, "EXP", 0.3]]
    assert thresholds.operating_points(table, 0.5, "f1_hm", 0.4)["confidence"].tolist() == [0.4]  # undefined


def swept(pairs: list[list[int]], predicted: list[list[int]], truths: int = 10) -> Counts:
    """One class, one IoU, a patch per micrograph: pairs and predictions per patch and confidence (0.3, 0.6)."""
    matched, known = np.array(pairs)[:, None, :, None, None], np.full((len(pairs), 1), truths)
    return Counts(matched, np.array(predicted), known, (0.5,), (0.3, 0.6), (1,))


def detector(patches: int, seed: int = 1) -> runs.Run:
    index = pd.DataFrame({"image": [f"{k}.png" for k in range(patches)]})
    keys = {"split": "1", "n_train": 4, "arm": "EXP", "seed": seed}
    return runs.Run(keys, pd.DataFrame(), replace(ellipse_patches(1), index=index))


def optimism(test, validation, measure="f1_detect"):
    return thresholds.optimism(test, validation, 0.5, measure, np.random.default_rng(0), 20, 0.9)


def test_optimism_of_a_threshold_chosen_on_test():
    test = [(detector(3), swept([[8, 6]] * 3, [[10, 6]] * 3))]  # F1_detect 16/20 = 0.8 and 12/16 = 0.75: best at 0.3
    validation = [(detector(2), swept([[8, 6]] * 2, [[20, 6]] * 2))]  # 16/30 and 12/16: best at 0.6
    row = optimism(test, validation).iloc[0]
    assert (row["on_test"], row["on_validation"]) == (0.3, 0.6)
    # All micrographs are alike, so whichever are drawn the optimism is the same.
    columns = ["best_on_test", "chosen_on_validation", "optimism", "low", "high"]
    assert row[columns].tolist() == pytest.approx([0.8, 0.75, 0.05, 0.05, 0.05])
    assert (row["seeds"], row["test_micrographs"], row["validation_micrographs"]) == (1, 3, 2)
    assert optimism(test, validation, "f1_hm")[["on_validation", "optimism", "low"]].isna().all(axis=None)
    alone = optimism(test, []).iloc[0]
    assert (alone["on_test"], alone["validation_micrographs"]) == (0.3, 0) and alone[
        ["on_validation", *columns[1:]]
    ].isna().all()


def test_a_seed_without_a_score_takes_its_threshold_out_of_the_choice():
    counts = [swept([[8, 6]], [[10, 6]]), swept([[8, 0]], [[10, 0]], truths=0)]  # 0/0 at 0.6
    counted = [(detector(1, seed), own) for seed, own in enumerate(counts)]
    found = optimism(counted, counted)
    assert (found["on_validation"].tolist(), found["seeds"].tolist()) == ([0.3], [2])


def test_the_threshold_that_is_best_on_test_flatters_unless_test_chose_it(study):
    found, counts, scores, measure, held_back = study
    chosen = thresholds.operating_points(scores, 0.5, measure, 0.5).set_index("arm")["confidence"].rename("on_test")
    test = list(zip(found, counts, strict=True))
    honest = optimism(test, list(zip(held_back, runs.count_runs(held_back, IOU, CONFIDENCE), strict=True)), measure)
    itself = optimism(test, test, measure)
    assert honest.set_index("arm")["on_test"].equals(chosen) and itself["on_validation"].equals(itself["on_test"])
    assert (honest["optimism"].dropna() >= 0).all() and (honest["low"].dropna() >= 0).all()
    assert itself["optimism"].eq(0).all()


def test_the_page_with_sliders_is_one_piece(study):
    found, _, scores, measure, _ = study
    page = sliders.explorer(found, scores, "truth-greedy", (0.5, 0.5), "a < b")
    assert "a &lt; b" in page and page.count("<script>") == 1 and "NaN" not in page and page.count("<svg") == 6
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page)
    data = json.loads(re.search(r"const data = (.*), root =", page)[1])
    assert data["start"] == [1, 2] and list(data["scores"]) == list(data["found"]) == ["EXP", "EXP+GEN"]
    patch = int(re.search(r"test patch (\d+)", page)[1])
    here = found[0].predictions.loc[found[0].predictions["patch"] == patch, "score"]
    assert data["found"]["EXP"][0]["kept"] == [(here >= c).sum() for c in CONFIDENCE]
    own = scores[(scores["arm"] == "EXP") & (scores["iou_threshold"] == 0.5) & (scores["confidence"] == 0.1)]
    shown = dict(zip(data["columns"], ["EXP", *data["scores"]["EXP"][1 * len(CONFIDENCE)]], strict=True))
    assert shown["tp"] == own["tp"].mean() and (shown["f1_hm"] == "") == (measure == "f1_detect")
