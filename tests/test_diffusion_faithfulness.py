"""Mask faithfulness, with predictions made by hand from the masks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ellipse_patches

from companion.diffusion.faithfulness import consistent, found_defects, summary
from companion.errors import CompanionError

BOX = ["x1", "y1", "x2", "y2"]


def perfect(patches):
    return patches.table[["patch", *BOX]].assign(score=0.9, label=patches.table["class"])


def test_perfect_predictions_find_all():
    patches = ellipse_patches(20)
    found = found_defects(patches, perfect(patches), iou=0.9)
    assert found["found"].all() and (found["label"] == found["class"]).all()
    table = summary(found, patches.classes)
    assert table["recall"].tolist() == [1, 1, 1] and table["agreement"].tolist() == [1, 1, 1]
    assert table["defects"].sum() == len(patches.table)


def test_no_prediction_finds_none():
    patches = ellipse_patches(6)
    none = perfect(patches).iloc[:0]
    assert not found_defects(patches, none).get("found").any()
    unsure = perfect(patches).assign(score=0.4)
    assert not found_defects(patches, unsure)["found"].any()
    table = summary(found_defects(patches, none), patches.classes)
    assert table["recall"].eq(0).all() and table["agreement"].isna().all()


def test_one_prediction_confirms_one_defect():
    patches = ellipse_patches(1)
    table = pd.DataFrame({"patch": 0, "instance": [1, 2], "class": [1, 3], "x1": [0.0, 4], "y1": 0.0, "x2": [10.0, 14],
                          "y2": 10.0, "area_px": 50, "touches_border": False})  # fmt: skip
    patches = replace(patches, table=table)
    # Lies between the two (IoU 8/12 with each); a second one fits the first defect only.
    between = {"patch": 0, "x1": 2.0, "y1": 0.0, "x2": 12.0, "y2": 10.0, "score": 0.8, "label": 3}
    assert found_defects(patches, pd.DataFrame([between]), iou=0.5)["found"].sum() == 1
    first = {**between, "x1": 0.0, "x2": 10.0, "label": 2}
    found = found_defects(patches, pd.DataFrame([between, first]), iou=0.5)
    assert found["label"].tolist() == [2, 3]
    assert summary(found, patches.classes)["agreement"].tolist()[::2] == [0, 1]


def test_filter_keeps_confirmed_patches_and_renumbers():
    patches = ellipse_patches(20)
    busy = sorted(set(patches.table["patch"]))
    wrong, missed = busy[1], busy[2]
    predictions = perfect(patches)
    predictions.loc[predictions["patch"] == wrong, "label"] = predictions["label"] % 3 + 1
    predictions = predictions[predictions["patch"] != missed]
    kept = consistent(patches, found_defects(patches, predictions), least=0.5)
    rest = [p for p in range(20) if p not in (wrong, missed)]
    assert len(kept) == 18 and np.array_equal(kept.images, patches.images[rest])
    assert kept.index["patch"].tolist() == list(range(18))
    assert np.array_equal(kept.label_maps(), patches.label_maps(np.array(rest)))


def test_one_class_has_nothing_to_confuse():
    patches = ellipse_patches(8, classes=1)
    assert np.isnan(summary(found_defects(patches, perfect(patches)), patches.classes)["agreement"]).all()


def test_a_missing_column_is_named():
    patches = ellipse_patches(2)
    with pytest.raises(CompanionError, match="lack the column\\(s\\) score"):
        found_defects(patches, perfect(patches).drop(columns="score"))
