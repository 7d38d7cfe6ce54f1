"""Mask faithfulness, with predictions made by hand from the masks."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import ellipse_patches

from companion.studies.faithfulness import consistent, found_defects, shares
from companion.config.profile import Faithfulness

BOX = ["x1", "y1", "x2", "y2"]


def perfect(patches):
    return patches.table[["patch", *BOX]].assign(score=0.9, label=patches.table["class"])


def judged(patches, predictions, **settings):
    return found_defects({"generated": (patches, predictions)}, Faithfulness(**settings))


def table(found, by="class"):
    return shares(found, by, np.random.default_rng(0), 50, 0.9)


def test_perfect_predictions_find_all_and_none_find_none():
    patches = ellipse_patches(20)
    both = {"a": (patches, perfect(patches)), "b": (patches, perfect(patches)[:0])}
    found = found_defects(both, Faithfulness(iou=0.9))
    assert len(found) == 2 * len(patches.table)
    for by in ("class", "size"):
        rows = table(found, by).set_index("images")
        assert (rows.loc[["a"], ["recall", "low", "high", "agreement"]] == 1).all(axis=None)
        assert (rows.loc[["b"], ["recall", "low", "high"]] == 0).all(axis=None)
        assert rows.loc[["b"], "agreement"].isna().all()
        assert rows.loc[["a"], "truths"].sum() == len(patches.table)
    unsure = judged(patches, perfect(patches).assign(score=0.4))
    assert (unsure["error"] == "missed").all()


def test_filter_keeps_confirmed_patches_and_renumbers():
    patches = ellipse_patches(20)
    busy = sorted(set(patches.table["patch"]))
    wrong, missed = busy[1], busy[2]
    predictions = perfect(patches)
    predictions.loc[predictions["patch"] == wrong, "label"] = predictions["label"] % 3 + 1
    predictions = predictions[predictions["patch"] != missed]
    found = judged(patches, predictions)
    kept = consistent(patches, found, least=0.5)
    rest = [p for p in range(20) if p not in (wrong, missed)]
    assert len(kept) == 18 and np.array_equal(kept.images, patches.images[rest])
    assert kept.index["patch"].tolist() == list(range(18))
    assert np.array_equal(kept.label_maps(), patches.label_maps(np.array(rest)))
    assert len(consistent(patches, found, least=0.0)) == 20


def test_chosen_patches_keep_their_own_defects_in_any_order():
    patches = ellipse_patches(6)
    turned = patches.only(np.array([4, 1]))
    assert np.array_equal(turned.label_maps(), patches.label_maps(np.array([4, 1])))
    assert turned.of(0)[BOX].to_numpy().tolist() == patches.of(4)[BOX].to_numpy().tolist()


def test_one_class_has_nothing_to_confuse():
    patches = ellipse_patches(8, classes=1)
    rows = table(judged(patches, perfect(patches)))
    assert rows["agreement"].isna().all() and rows["recall"].tolist() == [pytest.approx(1)]
