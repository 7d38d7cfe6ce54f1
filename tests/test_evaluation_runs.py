"""All detectors of a run: read, scored, thresholds chosen, shown under a slider, and what generated data are worth."""

import numpy as np
import pandas as pd
import pytest
from conftest import ellipse_patches
from test_scores import noisy

from companion.config.phantom import Phantom
from companion.config.sections import Patches as Cut
from companion.evaluation import plots, runs, thresholds, worth
from companion.evaluation.errors import overlooked, slivers
from companion.micrographs.cutting import cut_patches
from companion.micrographs.dataset import load_dataset
from companion.phantom.render import TRUTH, render_dataset

RNG = np.random.default_rng
IOU, CONFIDENCE = [0.3, 0.5], [0.1, 0.3, 0.5, 0.7]


def test_rules_are_compared():
    test = ellipse_patches(24, seed=1)
    found = [runs.Run({"arm": arm}, noisy(test, k), test) for k, arm in enumerate(("EXP", "EXP+GEN"))]
    table = runs.compare_matchings(found, 0.5, 0.3)
    assert len(table) == 2 * 2 * 2
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


def table(levels: dict[int, dict[str, float]], seeds=(1, 2, 3, 4), spread=0.0) -> pd.DataFrame:
    """Scores by N and arm; seed k scores `spread` times k more in every arm."""
    rows = [("1", n, arm, seed, value + spread * seed, value / 2) for n, arms in levels.items()
            for arm, value in arms.items() for seed in seeds]  # fmt: skip
    table = pd.DataFrame(rows, columns=["split", "n_train", "arm", "seed", "f1_hm", "map50"])
    return table.assign(choice=thresholds.BEST, against="labels")


def test_the_steps_of_the_waterfall_are_paired_and_add_up():
    every = {"EXP": 0.60, "EXP+GEN": 0.66, "EXP+RENDER": 0.71, "EXP+FRESH": 0.75}
    chosen = table({10: every, 50: {"EXP": 0.7, "EXP+GEN": 0.7}}, spread=0.03)
    one = (chosen["arm"] == "EXP") & (chosen["seed"] == 1)
    steps, missing = worth.waterfall(chosen.assign(f1_hm=chosen["f1_hm"] + 0.004 * one), ["f1_hm", "map50"], 0.95)
    own = steps[steps["measure"] == "f1_hm"].set_index("arm")
    assert own.index.tolist() == list(worth.FALL) and own["above"].tolist() == ["", *worth.FALL[:3]]
    assert own["step"].tolist()[1:] == pytest.approx([-0.04, -0.05, -0.059])  # the seeds' own luck falls out
    assert own["score"].iloc[0] + own["step"].sum() == pytest.approx(own["score"].iloc[-1])
    assert own["high"].iloc[-1] - own["low"].iloc[-1] < 0.01 and own["n"].tolist()[1:] == [4, 4, 4]
    assert missing == ["Split 1, N = 50: EXP+FRESH, EXP+RENDER not in this profile, or not possible here."]
    assert [axes.get_title() for axes in plots.waterfall(steps, "phantom").axes] == ["split 1, N = 10"] * 2


def test_without_phantom_or_generated_patches_there_is_less_of_a_waterfall():
    steps, missing = worth.waterfall(table({10: {"EXP": 0.6, "EXP+GEN": 0.7}}), ["f1_hm"], 0.95)
    assert steps["arm"].tolist() == ["EXP+GEN", "EXP"] and len(missing) == 1
    none, missing = worth.waterfall(table({10: {"EXP": 0.6}}), ["f1_hm"], 0.95)
    assert none.empty and len(missing) == 1 and plots.waterfall(none, "phantom").axes[0].texts
    undefined = table({10: {"EXP": 0.6, "EXP+GEN": 0.7}}).assign(f1_hm=np.nan)  # one class
    plots.waterfall(worth.waterfall(undefined, ["f1_hm"], 0.95)[0], "loops")


def test_a_generated_set_is_worth_as_many_micrographs_as_the_curve_says():
    levels = {10: {"EXP": 0.6, "EXP+GEN": 0.65}, 40: {"EXP": 0.7, "EXP+GEN": 0.69}, 90: {"EXP": 0.8, "EXP+GEN": 0.9}}
    gained, curve = worth.in_micrographs(table(levels).assign(resample=0), "f1_hm", RNG(0), 50, 0.95)
    found, half_way = gained.set_index("n_train"), curve.iloc[worth.STEPS // 4]
    assert half_way[["score", "equivalent"]].tolist() == pytest.approx([0.65, 20])
    assert found["equivalent"].tolist() == pytest.approx([20, 10 * 4**0.9, 90])  # half way from log 10 to log 40
    assert found["worth"].tolist() == pytest.approx([10, 10 * 4**0.9 - 40, 0])
    assert np.allclose(found[["low", "high"]], found[["equivalent"]])  # nothing varies
    first, _, last = worth.said(found.reset_index(), [10, 40, 90])
    assert "with 20 labelled micrographs" in first and "is worth 10." in first and last.endswith("worth 0 or more.")
    one, _ = worth.in_micrographs(table({10: levels[10]}).assign(resample=0), "f1_hm", RNG(0), 9, 0.95)
    assert one.empty and "two N or more" in worth.said(one, [10])[0]


def test_its_interval_is_that_of_seeds_and_of_test_micrographs():
    levels = {10: {"EXP": 0.6, "EXP+GEN": 0.65}, 40: {"EXP": 0.7, "EXP+GEN": 0.7}}
    seeds = table(levels).assign(resample=0)
    lucky = (seeds["arm"] == "EXP+GEN") & (seeds["seed"] == 1)
    by_seed, _ = worth.in_micrographs(seeds.assign(f1_hm=seeds["f1_hm"] + 0.02 * lucky), "f1_hm", RNG(0), 200, 0.95)
    assert by_seed["low"][0] == pytest.approx(20) and by_seed["high"][0] > by_seed["equivalent"][0] > 20
    other = seeds.assign(resample=1, f1_hm=seeds["f1_hm"] + 0.03 * (seeds["arm"] == "EXP+GEN"))
    both = pd.concat([seeds, other])  # the only sample of micrographs gives 0.68
    by_micrograph, _ = worth.in_micrographs(both, "f1_hm", RNG(0), 20, 0.95)
    assert by_micrograph["equivalent"][0] == pytest.approx(20) and by_micrograph["low"][0] > 25
    falls = table({10: {"EXP": 0.7, "EXP+GEN": 0.7}, 40: {"EXP": 0.6, "EXP+GEN": 0.6}}).assign(resample=0)
    assert worth.in_micrographs(falls, "f1_hm", RNG(0), 5, 0.95)[0]["equivalent"].between(10, 40).all()


def test_labels_are_scored_against_the_truth_they_miss(tmp_path):
    careless = {"miss": 0.4, "confusion": 0.0, "outline_jitter": 0.0, "miss_contrast": 0.0, "miss_crowded": 0.0}
    render_dataset(Phantom(n_images=3, annotator=careless), 0, tmp_path)
    data, cut = load_dataset(tmp_path), Cut(test_stride=128)
    labels = {"1": cut_patches(data, data.files, cut.size, cut.test_stride, cut.min_visible)[0]}
    exact = runs.true_patches(tmp_path, labels, cut)
    found = runs.ceiling(labels, exact, 0.5).loc["1"]
    recall = len(labels["1"].table) / len(exact["1"].table)
    assert recall < 0.8 and found["f1_detect"] == pytest.approx(2 * recall / (1 + recall), abs=0.02)
    assert found["f1_class"] == 1 and found["map50"] < 0.9
    missed = overlooked(labels["1"], exact["1"], 0.5)
    assert len(missed) == pytest.approx((1 - recall) * len(exact["1"].table), abs=3)
    assert len(overlooked(exact["1"], exact["1"], 0.5)) == 0
    rest = slivers(tmp_path, exact["1"], cut, exact=True)
    whole = runs.cut_again(tmp_path, data.files, cut.model_copy(update={"min_visible": 0.0}))
    assert len(rest) == len(whole.table) - len(exact["1"].table) > 0
    (tmp_path / TRUTH).unlink()
    assert runs.true_patches(tmp_path, labels, cut) == {}  # nobody knows it
