"""All detectors of a run: read, scored, their thresholds chosen, and shown under two sliders."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from conftest import ellipse_patches
from test_scores import noisy

from companion.errors import CompanionError
from companion.evaluation import runs, sliders, thresholds
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


def test_the_page_with_a_slider_is_one_piece(study):
    found, _, scores, measure, _ = study
    page = sliders.explorer(found, scores, "truth-greedy", (0.5, 0.5), "a < b")
    assert "a &lt; b" in page and page.count("<script>") == 1 and "NaN" not in page and page.count("<svg") == 2 * 5
    assert not re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", page)
    data = json.loads(re.search(r"const data = (.*), root =", page)[1])
    assert data["start"] == 2 and [arm for arm, _ in data["scores"]] == ["EXP", "EXP+GEN"]
    patch = int(re.search(r"test patch (\d+), EXP\"", page)[1])
    here = found[0].predictions.loc[found[0].predictions["patch"] == patch, "score"]
    assert data["found"][0]["kept"] == [(here >= c).sum() for c in CONFIDENCE]
    own = scores[(scores["arm"] == "EXP") & (scores["iou_threshold"] == 0.5) & (scores["confidence"] == 0.1)]
    shown = dict(zip(data["columns"], ["EXP", *data["scores"][0][1][0]], strict=True))
    assert shown["tp"] == own["tp"].mean() and (shown["f1_hm"] == "") == (measure == "f1_detect")
