"""Fates by hand, and against the counts that the scores are made of."""

from __future__ import annotations

import numpy as np
import pandas as pd
from conftest import ellipse_patches

from companion.evaluation.outcomes import OUTCOMES, fates
from companion.evaluation.scores import count, pooled

TRUTHS = pd.DataFrame(
    [(0, 0, 0, 10, 10, 1), (0, 20, 0, 30, 10, 2), (0, 40, 0, 44, 12, 2), (2, 0, 0, 8, 8, 1)],
    columns=["patch", "x1", "y1", "x2", "y2", "class"],
)
FOUND = pd.DataFrame(
    [(0, 0, 0, 10, 9, 0.9, 1), (0, 21, 0, 31, 10, 0.8, 1), (0, 40, 0, 44, 12, 0.3, 2), (1, 5, 5, 9, 25, 0.7, 3)],
    columns=["patch", "x1", "y1", "x2", "y2", "score", "label"],
)


def test_by_hand():
    table = fates(FOUND, TRUTHS, iou=0.5, confidence=0.5)
    assert table["outcome"].tolist() == ["hit", "other class", "missed", "false positive", "missed"]
    assert table["patch"].tolist() == [0, 0, 0, 1, 2]
    assert table["class"].tolist() == [1, 2, 2, 3, 1]
    assert table["size_px"].tolist() == [10, 10, 12, 20, 8]


def test_nothing_found_and_nothing_there():
    assert fates(FOUND[:0], TRUTHS, 0.5, 0.5)["outcome"].tolist() == ["missed"] * 4
    assert fates(FOUND, TRUTHS[:0], 0.5, 0.0)["outcome"].tolist() == ["false positive"] * 4
    assert len(fates(FOUND[:0], TRUTHS[:0], 0.5, 0.5)) == 0


def test_fates_add_up_to_the_scores():
    patches, rng = ellipse_patches(30), np.random.default_rng(0)
    found = patches.table.sample(frac=0.8, random_state=1).rename(columns={"class": "label"})
    found[["x1", "y1", "x2", "y2"]] += rng.normal(0, 1.5, (len(found), 4))
    found["score"] = rng.random(len(found))
    found["label"] = rng.integers(1, 4, len(found))
    table = fates(found, patches.table, 0.5, 0.4)
    n = table["outcome"].value_counts().reindex(OUTCOMES, fill_value=0)
    scores = pooled(count(found, patches.table, range(30), [1, 2, 3], [0.5], [0.4]))
    assert n["hit"] + n["other class"] == scores["tp"][0, 0] > 0
    assert n["false positive"] == scores["fp"][0, 0] > 0
    assert n["missed"] == scores["fn"][0, 0] > 0
