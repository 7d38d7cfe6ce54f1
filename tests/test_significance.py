"""Tests of tests: textbook values, hand enumerations, and what stays undefined."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from companion.evaluation.significance import (
    best_confidence,
    between_pairs,
    comparison_table,
    comparisons,
    gain_table,
    headline_measure,
    holm,
    operating_points,
    paired_scores,
    paired_t,
    records,
    sign_flip,
    significance_table,
)


def scores(gain=0.02, seeds=(1, 2, 3, 4), sizes=(10, 50), noise=0.01) -> pd.DataFrame:
    """A scores table whose best confidence is 0.8 for EXP and 0.6 for EXP+GEN."""
    rng = np.random.default_rng(0)
    rows = []
    for n, arm, seed, confidence in itertools.product(sizes, ("EXP", "EXP+GEN"), seeds, (0.4, 0.6, 0.8)):
        best = 0.8 if arm == "EXP" else 0.6
        value = 0.7 - (confidence - best) ** 2 + (gain if arm == "EXP+GEN" else 0) + rng.normal(0, noise)
        rows.append((f"{1}", n, arm, seed, 0.5, confidence, value, value - 0.05, value + 0.05))
    columns = ["split", "n_train", "arm", "seed", "iou_threshold", "confidence", "f1_hm", "f1_detect", "f1_class"]
    return pd.DataFrame(rows, columns=columns)


def test_paired_t_by_hand():
    result = paired_t([1.0, 2.0, 3.0])
    assert (result["mean"], result["sd"], result["df"], result["n"]) == (2.0, 1.0, 2, 3)
    assert result["t"] == pytest.approx(2 * np.sqrt(3)) and result["cohen_dz"] == pytest.approx(2)
    assert result["p"] == pytest.approx(2 * stats.t.sf(2 * np.sqrt(3), 2))
    half = stats.t.ppf(0.975, 2) / np.sqrt(3)
    assert (result["low"], result["high"]) == pytest.approx((2 - half, 2 + half))
    assert result["hedges_g"] == pytest.approx(2 / np.sqrt(np.pi))  # factor at df = 2: 1 / sqrt(pi)


def test_the_papers_p_value_needs_an_effect_of_seven_standard_deviations():
    needed = stats.t.isf(0.0008 / 2, 3) / np.sqrt(4)
    assert 6 < needed < 8
    centred = np.array([-1, 0, 0, 1]) / np.std([-1, 0, 0, 1], ddof=1)
    assert paired_t(centred + needed)["p"] == pytest.approx(0.0008, rel=1e-6)


@pytest.mark.parametrize(("values", "says"), [([], "0 pairs"), ([0.1], "1 pair:"), ([0.1, 0.1], "equal")])
def test_undefined_tests_say_why(values, says):
    result = paired_t(values)
    assert says in result["undefined"] and np.isnan(result["p"]) and np.isnan(result["low"])


def test_undefined_pairs_are_left_out_and_counted():
    result = paired_t([0.1, np.nan, 0.3])
    assert (result["n"], result["left_out"]) == (2, 1) and np.isnan(result["hedges_g"]) and np.isfinite(result["p"])


def test_sign_flip_against_scipy_and_its_floor():
    assert sign_flip([1, 2, 3, 4])["p"] == 0.125 == sign_flip([1, 2, 3, 4])["smallest_p"]
    rng = np.random.default_rng(1)
    values = rng.normal(0.3, 1, 8)
    exact = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert sign_flip(values)["p"] == pytest.approx(exact.pvalue)
    assert sign_flip([0.0, 0.0])["p"] == 1 and sign_flip([])["undefined"] == "no pair"


def test_holm_of_the_papers_three():
    assert holm([0.0008, 0.0013, 0.069]).tolist() == pytest.approx([0.0024, 0.0026, 0.069])
    assert holm([0.01, np.nan, 0.04])[[0, 2]].tolist() == pytest.approx([0.02, 0.04])
    assert np.isnan(holm([np.nan])).all()


def test_best_confidence_is_that_of_the_mean_over_seeds():
    best = best_confidence(scores(noise=0), 0.5, "f1_hm")
    assert best.groupby("arm")["confidence"].unique().map(list).to_dict() == {"EXP": [0.8], "EXP+GEN": [0.6]}


def test_a_threshold_cannot_win_by_losing_a_seed():
    table = scores(noise=0, sizes=(10,))
    table.loc[(table["arm"] == "EXP") & (table["confidence"] == 0.8) & (table["seed"] == 1), "f1_hm"] = np.nan
    best = best_confidence(table, 0.5, "f1_hm").set_index("arm")["confidence"]
    assert best["EXP"] == 0.6
    assert len(best_confidence(table.assign(f1_hm=np.nan), 0.5, "f1_hm")) == 0
    table.loc[table["arm"] == "EXP", "f1_hm"] = np.nan
    points = operating_points(table, 0.5, "f1_hm", 0.4).set_index("arm")
    assert points["confidence"].to_dict() == {"EXP": 0.4, "EXP+GEN": 0.6}
    assert points["chosen_by"].str.startswith("fixed").to_dict() == {"EXP": True, "EXP+GEN": False}


def test_table_of_conditions():
    found = scores()
    pairs = paired_scores(found, 0.5, ("EXP", "EXP+GEN"), best_confidence(found, 0.5, "f1_hm"))
    assert len(pairs) == 2 * 4 * 3
    table = significance_table(pairs).set_index(["n_train", "measure"])
    assert table["varied"].eq("detector seed").all() and table["shared"].str.contains("generator").all()
    assert (table["family"] == 2).all() and (table["p_holm"] >= table["p"]).all()
    assert table.loc[(10, "f1_hm"), "mean"] == pytest.approx(0.02, abs=0.015)
    assert table["smallest_p_sign_flip"].eq(0.125).all()
    by_hand = pairs[(pairs["n_train"] == 50) & (pairs["measure"] == "f1_detect")]
    expected = stats.ttest_rel(by_hand["EXP+GEN"], by_hand["EXP"]).pvalue
    assert table.loc[(50, "f1_detect"), "p"] == pytest.approx(expected)


def test_conditions_are_never_pooled_and_splits_only_from_three_on():
    rows = [(s, n, k, 0.01 * int(s) + 0.001 * k) for s in "123" for n in (10, 50) for k in (-1, 1)]
    pairs = pd.DataFrame(rows, columns=["split", "n_train", "seed", "difference"])
    two = comparisons(pairs[pairs["split"] != "3"])
    assert [(keys["split"], keys["n_train"], len(d)) for keys, d in two] == [
        ("1", 10, 2), ("1", 50, 2), ("2", 10, 2), ("2", 50, 2),
    ]  # fmt: skip
    assert all(keys["varied"] == "detector seed" and "generator" in keys["shared"] for keys, _ in two)
    table = comparison_table(pairs).set_index(["split", "n_train"])
    assert len(table) == 8 and (table["n"].loc["all"] == 3).all()
    test = stats.ttest_1samp([0.01, 0.02, 0.03], 0)  # of the split means, not of six pairs
    assert table.loc[("all", 50), "p"] == pytest.approx(test.pvalue)
    assert "generator" in table.loc[("all", 50), "varied"] and table.loc[("all", 50), "shared"] == "data set"
    hole = pairs.assign(difference=pairs["difference"].where(pairs["split"] != "3"))
    own = comparison_table(pairs, between=between_pairs(True)).set_index(["split", "n_train"])
    assert (
        own.loc[("1", 10), "varied"] == "generator, detector seed" and "generator" not in own.loc[("1", 10), "shared"]
    )
    assert own["p"].equals(table["p"])
    assert len(comparisons(hole)) == 4 and len(comparison_table(pairs[:0])) == 0


def test_seeds_without_a_partner_and_absent_arms():
    found = scores()
    found = found[~((found["arm"] == "EXP+GEN") & (found["seed"] == 4))]
    table = significance_table(paired_scores(found, 0.5, ("EXP", "EXP+GEN"), 0.6))
    assert (table["n"] == 3).all() and (table["left_out"] == 1).all()
    none = significance_table(paired_scores(found, 0.5, ("EXP", "EXP+RARE"), 0.6))
    assert (none["n"] == 0).all() and none["undefined"].str.contains("0 pairs").all()
    assert len(significance_table(paired_scores(found[:0], 0.5, ("EXP", "EXP+GEN"), 0.6))) == 0


def test_records_have_null_for_undefined():
    table = pd.DataFrame({"p": [np.nan, 0.5], "s": ["a", None]})
    assert records(table) == [{"p": None, "s": "a"}, {"p": 0.5, "s": None}]


def test_gain_is_a_share_of_what_is_left():
    rows = [("1", 10, seed, "f1_hm", 0.6, 0.6 + gain, gain) for seed, gain in ((1, 0.1), (2, 0.3))]
    pairs = pd.DataFrame(rows, columns=["split", "n_train", "seed", "measure", "EXP", "EXP+GEN", "difference"])
    row = gain_table(pairs, ("EXP", "EXP+GEN")).iloc[0]
    assert (row["base"], row["other"], row["gain"]) == pytest.approx((0.6, 0.8, 0.2))
    assert row["share_of_left"] == pytest.approx(0.5) and row["n"] == 2
    assert len(gain_table(pairs[:0], ("EXP", "EXP+GEN"))) == 0


def test_the_measure_that_stands_in():
    table = scores()
    assert headline_measure(table) == ("f1_hm", "")
    none = table.assign(f1_hm=np.nan, f1_class_1=np.nan)
    measure, words = headline_measure(none)
    assert measure == "f1_detect" and "one class" in words
    assert "two classes" in headline_measure(none.assign(f1_class_2=np.nan))[1]
