"""Kinds of errors, errors of size and density, average precision, and bootstrap intervals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from conftest import ellipse_patches
from test_scores import noisy, predictions, truths

from companion.evaluation.average_precision import coco_average_precision
from companion.evaluation.errors import (
    BACKGROUND,
    CLASS,
    CORRECT,
    DUPLICATE,
    LOCALISATION,
    MISSED,
    SIZES,
    audit,
    error_shares,
    image_errors,
    materials_table,
    recall_by,
    size_bins,
)  # fmt: skip
from companion.evaluation.resampling import mean_interval, nested_bootstrap, ratio_interval, threshold_optimism
from companion.evaluation.scores import count, tabulate
from companion.evaluation.studies import error_groups

RNG = np.random.default_rng


def index(n, per_image=1):
    patches = range(n)
    return pd.DataFrame({"patch": patches, "image": [f"{p // per_image}" for p in patches], "pixel_size_nm": 0.5})


def test_every_kind_of_error_by_hand():
    truth = truths((0, 0, 0, 10, 10, 1), (0, 20, 0, 30, 10, 2), (0, 40, 0, 50, 10, 1), (1, 0, 0, 10, 10, 1))
    found = predictions(
        (0, 0, 0, 10, 10, 0.9, 1),  # correct
        (0, 1, 0, 10, 10, 0.8, 1),  # the same defect again
        (0, 20, 0, 30, 10, 0.7, 1),  # other class
        (0, 46, 0, 56, 10, 0.6, 1),  # overlaps by a quarter
        (0, 60, 60, 64, 64, 0.6, 2),  # nothing there
        (1, 0, 0, 10, 10, 0.1, 1),  # below the confidence
    )
    seen, missed = audit(found, truth, index(2), 0.5, 0.5)
    assert seen["error"].tolist() == [CORRECT, DUPLICATE, CLASS, LOCALISATION, BACKGROUND]
    assert missed["error"].tolist() == [CORRECT, CLASS, MISSED, MISSED]
    assert error_shares(seen, missed) == {CLASS: 1, DUPLICATE: 1, LOCALISATION: 1, BACKGROUND: 1, MISSED: 2}
    assert seen["size_px"].tolist() == [10, 10, 10, 10, 4] and missed["image"].tolist() == ["0", "0", "0", "1"]


def test_errors_add_up_to_the_counts():
    patches = ellipse_patches(30, seed=1)
    found = noisy(patches, 2, extra=2)
    row = tabulate(count(found, patches.table, range(30), (1, 2, 3), [0.5], [0.3])).iloc[0]
    seen, missed = audit(found, patches.table, patches.index, 0.5, 0.3)
    matched = seen["error"].isin([CORRECT, CLASS])
    assert (matched.sum(), (~matched).sum()) == (row["tp"], row["fp"])
    assert (missed["error"] == MISSED).sum() == row["fn"] and len(missed) == len(patches.table)


def test_nothing_predicted_and_nothing_there():
    patches = ellipse_patches(4, seed=1)
    none = noisy(patches, 0)[:0]
    seen, missed = audit(none, patches.table, patches.index, 0.5, 0.5)
    assert len(seen) == 0 and (missed["error"] == MISSED).all()
    seen, missed = audit(noisy(patches, 0), patches.table[:0], patches.index, 0.5, 0.0)
    assert (seen["error"] == BACKGROUND).all() and len(missed) == 0


def test_recall_by_group():
    table = pd.DataFrame(
        {"image": ["a", "a", "b", "b"], "class": [1, 1, 1, 2], "error": [CORRECT, MISSED, CLASS, MISSED]}
    ).assign(row=range(4))
    found = recall_by(table, "class", RNG(0), 200, 0.95).set_index("class")
    assert found["recall"].tolist() == pytest.approx([2 / 3, 0]) and found.loc[1, "images"] == 2
    twice = pd.concat([table, table.assign(error=CORRECT)])  # a second run finds all
    counted = recall_by(twice, "class", RNG(0), 10, 0.95).set_index("class")
    assert counted["truths"].tolist() == [3, 1] and counted["recall"].tolist() == pytest.approx([5 / 6, 1 / 2])
    assert found.loc[1, "low"] == 0.5 and found.loc[1, "high"] == 1.0 and np.isnan(found.loc[2, "low"])


def test_errors_of_every_kind_by_class_size_and_pixel_size():
    run = {"split": "1", "n_train": 10, "arm": "EXP", "seed": 1}
    truth = truths((0, 0, 0, 10, 10, 1), (0, 20, 0, 40, 10, 2), (1, 0, 0, 10, 10, 1))
    found = predictions(
        (0, 0, 0, 10, 10, 0.9, 2),  # a small 1 called 2
        (0, 21, 0, 40, 10, 0.9, 2),  # correct
        (0, 20, 0, 40, 10, 0.8, 2),  # the same again, medium
        (1, 40, 40, 44, 44, 0.9, 1),  # small, on background, at the other pixel size
    )
    places = index(2).assign(pixel_size_nm=[0.5, 1.0])
    seen, known = (table.assign(**run) for table in audit(found, truth, places, 0.5, 0.5))
    table = error_groups(seen, known, {1: "loop", 2: "dot", 3: "never"})
    count = table.set_index(["by", "group", "error"])["count"]
    assert count["class", "dot", CLASS] == 1 and count["class", "loop", CLASS] == 0  # by what it says
    assert count["class", "dot", DUPLICATE] == 1 and count["class", "loop", BACKGROUND] == 1
    assert count["class", "loop", MISSED] == 1 and count["class", "dot", MISSED] == 0
    small, medium, _ = SIZES
    assert (count["size", small, BACKGROUND], count["size", medium, DUPLICATE], count["size", small, MISSED]) == (
        1,
        1,
        1,
    )
    assert count["pixel size", "1 nm", BACKGROUND] == 1 and count["pixel size", "0.5 nm", MISSED] == 0
    totals = table.groupby(["by", "error"])["count"].sum().unstack("by")
    assert totals.nunique(axis=1).eq(1).all() and totals["class"].to_dict() == error_shares(seen, known)
    rates = table.set_index(["by", "group", "error"])["per_truth"]
    assert rates["class", "loop", MISSED] == 0.5 and "never" not in set(table["group"])
    none = error_groups(seen, known[known["class"] == 1], {1: "loop", 2: "dot"}).set_index(["group", "error"])
    assert np.isnan(none.loc[("dot", DUPLICATE), "per_truth"])


def test_size_bins_include_their_upper_edge():
    assert size_bins([0, 16, 16.5, 32, 100]).tolist() == [
        "small (≤ 16 px)", "small (≤ 16 px)", "medium (≤ 32 px)", "medium (≤ 32 px)", "large (> 32 px)",
    ]  # fmt: skip


def test_size_and_density_errors_by_hand():
    truth = truths((0, 10, 10, 20, 20, 1), (0, 30, 30, 40, 50, 1), (0, 0, 30, 8, 36, 2))  # the last touches the border
    found = predictions((0, 10, 10, 20, 22, 0.9, 1), (0, 30, 30, 60, 60, 0.2, 1), (0, 1, 30, 9, 36, 0.9, 2))
    table = image_errors(found, truth, index(1), {1: "loop", 2: "dot"}, 0.5, 64).set_index("class")
    assert table.loc["loop", "density_error"] == -0.5 and table.loc["dot", "density_error"] == 0
    assert table.loc["loop", "size_error"] == pytest.approx(12 / 15 - 1)
    assert np.isnan(table.loc["dot", "size_error"])  # the truth has no uncut dot
    assert table.loc["all", "density_error"] == pytest.approx(-1 / 3)
    one = image_errors(found.assign(label=1), truth.assign(**{"class": 1}), index(1), {1: "loop"}, 0.5, 64)
    assert one["class"].tolist() == ["all"]


def test_materials_table_takes_images_as_units():
    errors = pd.DataFrame({
        "arm": "EXP", "class": "all", "image": ["a", "a", "b"], "density_error": [0.1, -0.3, 0.4], "size_error": np.nan,
    })  # fmt: skip
    table = materials_table(errors, RNG(0), 500, 0.95, ("arm", "class")).set_index("quantity")
    assert table.loc["density", "images"] == 2 and table.loc["density", "error"] == pytest.approx((0.2 + 0.4) / 2)
    assert table.loc["density", "bias"] == pytest.approx((-0.1 + 0.4) / 2)
    assert table.loc["size", "images"] == 0 and np.isnan(table.loc["size", "error"])


def test_average_precision():
    patches = ellipse_patches(12, seed=4)
    perfect = patches.table.rename(columns={"class": "label"}).assign(score=0.9)
    classes = {1: "a", 2: "b", 3: "c"}
    table = coco_average_precision(perfect, patches.table, range(12), classes).set_index("class")
    assert list(table.index) == ["a", "b", "c", "mean of classes", "class ignored"]
    assert np.allclose(table.to_numpy(), 1)
    wrong = perfect.assign(label=perfect["label"] % 3 + 1)
    table = coco_average_precision(wrong, patches.table, range(12), classes).set_index("class")
    assert table.loc["class ignored", "AP50"] == 1 and table.loc["mean of classes", "AP50"] == 0
    none = coco_average_precision(perfect[:0], patches.table, range(12), classes).set_index("class")
    assert (none["AP50"] == 0).all()
    absent = coco_average_precision(perfect, patches.table, range(12), {**classes, 4: "d"}).set_index("class")
    assert np.isnan(absent.loc["d", "AP"]) and absent.loc["mean of classes", "AP"] == 1


def test_average_precision_by_hand():
    # Two truths; the better score is false, the next right: precision 1/2 up to recall 1/2, which are 51 of 101 points.
    truth = truths((0, 0, 0, 10, 10, 1), (0, 30, 30, 40, 40, 1))
    found = predictions((0, 50, 50, 60, 60, 0.9, 1), (0, 0, 0, 10, 10, 0.8, 1))
    table = coco_average_precision(found, truth, range(1), {1: "a"}).set_index("class")
    assert table.loc["a", "AP50"] == pytest.approx(0.5 * 51 / 101)


def test_intervals_over_clusters():
    value, low, high = ratio_interval([1, 0, 3], [2, 2, 3], RNG(0), 2000, 0.95)
    assert value == pytest.approx(4 / 7) and low == 0 and high == 1
    assert np.isnan(ratio_interval([0], [0], RNG(0), 10, 0.95)).all()
    assert mean_interval([2.0], RNG(0), 10, 0.95)[0] == 2 and np.isnan(mean_interval([2.0], RNG(0), 10, 0.95)[1])
    values = RNG(1).normal(0, 1, 200)
    _, low, high = mean_interval(values, RNG(2), 4000, 0.95)
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / np.sqrt(200), rel=0.1)


def counted(patches, seed, misses):
    return count(
        noisy(patches, seed, misses=misses), patches.table, range(len(patches)), (1, 2, 3), [0.3, 0.5], [0.1, 0.5]
    )


def test_nested_bootstrap_sees_a_difference_and_its_absence():
    patches = ellipse_patches(48, seed=7)
    images = patches.index["image"]
    few, many = ([counted(patches, s, m) for s in range(3)] for m in (0.05, 0.5))
    places = ((1, 1), (1, 1))
    found = nested_bootstrap((many, few), images, places, "f1_detect", RNG(0), 500, 0.95)
    assert found["low"] > 0 and found["p"] < 0.05 and (found["images"], found["pairs"]) == (12, 3)
    row = [tabulate(c).query("iou_threshold == 0.5 and confidence == 0.5")["f1_detect"].iloc[0] for c in (*few, *many)]
    assert found["difference"] == pytest.approx(np.mean(row[:3]) - np.mean(row[3:]))
    same = nested_bootstrap((few, few), images, places, "f1_detect", RNG(0), 200, 0.95)
    assert same["difference"] == 0 == same["low"] == same["high"] and same["p"] == 1
    other = [counted(patches, s + 9, 0.05) for s in range(3)]
    fixed = nested_bootstrap((few, other), images, places, "f1_detect", RNG(0), 500, 0.95, seeds=False)
    nested = nested_bootstrap((few, other), images, places, "f1_detect", RNG(0), 500, 0.95)
    assert nested["high"] - nested["low"] > fixed["high"] - fixed["low"]


def test_a_threshold_chosen_elsewhere_never_scores_more():
    patches = ellipse_patches(40, seed=3)
    confidence = [round(0.1 * k, 1) for k in range(1, 10)]
    counts = count(noisy(patches, 5), patches.table, range(40), (1, 2, 3), [0.5], confidence)
    found = threshold_optimism(counts, patches.index["image"], 0, "f1_detect", RNG(0), 20)
    assert found["optimism"] >= 0 and found["halvings"] == 20
    assert found["best_on_test"] - found["optimism"] == pytest.approx(found["chosen_elsewhere"])
    nothing = threshold_optimism(counts, patches.index["image"], 0, "f1_hm", RNG(0), 2)
    assert nothing["halvings"] == 2
