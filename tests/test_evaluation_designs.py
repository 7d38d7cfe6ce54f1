"""Equivalence, variance components, models and power, against simulations and library results."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from companion.evaluation.designs import (
    assumptions,
    equivalence,
    equivalence_table,
    overall_effect,
    power_table,
    seeds_power,
    variance_components,
)
from companion.evaluation.many_splits import assumed_spread, designs_on_simulated_scores, simulated_pairs


def drawn(splits=4, seeds=4, effect=0.02, split_sd=0.01, seed_sd=0.01, sizes=(50,), rng=0):
    rng = np.random.default_rng(rng)
    rows = [
        (str(s), n, k, effect + shift + rng.normal(0, seed_sd))
        for s, shift in enumerate(rng.normal(0, split_sd, splits))
        for n in sizes
        for k in range(seeds)
    ]
    return pd.DataFrame(rows, columns=["split", "n_train", "seed", "difference"])


def test_equivalence_is_two_one_sided_tests():
    values = [0.001, -0.002, 0.003, 0.0]
    result = equivalence(values, 0.01)
    one_sided = [
        stats.ttest_1samp(values, -0.01, alternative="greater").pvalue,
        stats.ttest_1samp(values, 0.01, alternative="less").pvalue,
    ]
    assert result["p"] == pytest.approx(max(one_sided))
    assert (result["p"] < 0.05) == (result["low"] > -0.01 and result["high"] < 0.01)
    assert equivalence([0.05, 0.06, 0.04], 0.01)["p"] > 0.9
    assert "1 pair" in equivalence([0.0], 0.01)["undefined"]


def test_equivalence_is_tested_in_each_condition():
    pairs = drawn(splits=2, seeds=4, sizes=(10, 50))
    table = equivalence_table(pairs, 0.03)
    assert len(table) == 4 and (table["n"] == 4).all() and table["varied"].eq("detector seed").all()
    own = pairs[(pairs["split"] == "1") & (pairs["n_train"] == 50)]["difference"]
    row = table[(table["split"] == "1") & (table["n_train"] == 50)].iloc[0]
    assert row["p"] == pytest.approx(equivalence(own, 0.03)["p"])
    many = equivalence_table(drawn(splits=3, seeds=4), 0.03)
    assert many["split"].tolist() == ["0", "1", "2", "all"] and many["n"].tolist() == [4, 4, 4, 3]


def test_variance_components_by_hand():
    pairs = pd.DataFrame({"split": ["1", "1", "2", "2"], "n_train": 10, "difference": [0.0, 2.0, 4.0, 6.0]})
    found = variance_components(pairs)
    assert found["seed_sd"] == pytest.approx(np.sqrt(2))  # both conditions have variance 2
    assert found["split_sd"] == pytest.approx(np.sqrt(8 - 2 / 2))  # means 1 and 5: variance 8, less 2 / 2 seeds
    one = variance_components(pairs[pairs["split"] == "1"])
    assert np.isnan(one["split_sd"]) and one["seed_sd"] == pytest.approx(np.sqrt(2))
    assert np.isnan(variance_components(pairs.iloc[[0]])["seed_sd"])


def test_variance_components_recover_what_was_drawn():
    found = variance_components(drawn(splits=300, seeds=3, split_sd=0.02, seed_sd=0.01))
    assert found["seed_sd"] == pytest.approx(0.01, rel=0.1) and found["split_sd"] == pytest.approx(0.02, rel=0.15)


def test_the_model_follows_from_what_is_identified():
    mixed = overall_effect(drawn(splits=8, seeds=3, sizes=(10, 50)))
    assert mixed["model"] == "mixed" and mixed["low"] < 0.02 < mixed["high"]
    fixed = overall_effect(drawn(splits=2, seeds=4, sizes=(10, 50)))
    assert fixed["model"] == "fixed" and "not identified" in fixed["reason"]
    none = overall_effect(drawn(splits=2, seeds=1))
    assert none["model"] == "none" and np.isnan(none["effect"])
    assert overall_effect(drawn().iloc[:1])["model"] == "none"


def test_fixed_effects_of_one_condition_are_the_paired_test():
    pairs = drawn(splits=1, seeds=5)
    test = stats.ttest_1samp(pairs["difference"], 0)
    found = overall_effect(pairs)
    assert (found["effect"], found["p"]) == pytest.approx((pairs["difference"].mean(), test.pvalue))


def test_mixed_effect_is_honest_about_splits():
    # Splits differ much, seeds little: a test over all pairs would be far too sure.
    rejected = {"mixed": 0, "pooled": 0}
    for k in range(40):
        pairs = drawn(splits=6, seeds=4, effect=0.0, split_sd=0.03, seed_sd=0.003, rng=k)
        rejected["mixed"] += overall_effect(pairs)["p"] < 0.05
        rejected["pooled"] += stats.ttest_1samp(pairs["difference"], 0).pvalue < 0.05
    assert rejected["mixed"] <= 5 < 10 < rejected["pooled"]


def test_mixed_effect_of_equal_numbers_is_the_test_over_split_means():
    pairs = drawn(splits=4, seeds=3, split_sd=0.03, seed_sd=0.003)
    means = pairs.groupby("split")["difference"].mean()
    test, found = stats.ttest_1samp(means, 0), overall_effect(pairs, 0.95)
    interval = test.confidence_interval(0.95)
    assert found["effect"] == pytest.approx(means.mean())
    assert (found["p"], found["low"], found["high"]) == pytest.approx((test.pvalue, *interval), rel=1e-3)


def test_one_pair_per_split_is_a_test_over_splits():
    pairs = drawn(splits=6, seeds=1)
    test, found = stats.ttest_1samp(pairs["difference"], 0), overall_effect(pairs)
    assert found["model"] == "split means" and "one pair per split" in found["reason"]
    assert (found["p"], found["effect"]) == pytest.approx((test.pvalue, pairs["difference"].mean()))
    assert overall_effect(drawn(splits=6, seeds=1, sizes=(10, 50)))["model"] == "mixed"
    uneven = pd.concat([drawn(splits=3, seeds=1), drawn(splits=1, seeds=1, sizes=(10,))])  # one split has one N more
    assert overall_effect(uneven)["model"] != "split means"


def test_many_splits_estimate_a_known_effect_better_than_many_seeds():
    shapes = [(1, 8), (4, 2), (8, 1)]
    table = designs_on_simulated_scores(0.02, 0.01, 0.01, shapes, np.random.default_rng(0), 60).set_index("splits")
    assert table["model"].to_dict() == {1: "fixed", 4: "mixed", 8: "split means"} and (table["runs"] == 8).all()
    # Of one split the interval is short, and wrong about half the time; over splits it is honest.
    assert table.loc[1, "coverage"] < 0.75 < 0.88 < table.loc[[4, 8], "coverage"].min()
    assert table.loc[8, "half_width"] < table.loc[1, "honest_half_width"]
    assert table.loc[8, "honest_half_width"] < table.loc[1, "honest_half_width"]
    assert table.loc[8, "estimate"] == pytest.approx(0.02, abs=0.003)
    alike = designs_on_simulated_scores(0.02, 0.0, 0.01, [(1, 8)], np.random.default_rng(1), 200)
    assert alike.loc[0, "coverage"] == pytest.approx(0.95, abs=0.05)  # where splits do not differ, seeds are enough


def test_simulated_pairs_have_the_spread_they_are_drawn_with():
    pairs = simulated_pairs(400, 2, 0.02, 0.03, 0.01, np.random.default_rng(0))
    parts = variance_components(pairs)
    assert parts["seed_sd"] == pytest.approx(0.01, rel=0.1) and parts["split_sd"] == pytest.approx(0.03, rel=0.1)
    assert pairs["difference"].mean() == pytest.approx(0.02, abs=0.005)
    assert assumed_spread(parts)[2].count("measured") == 2
    split_sd, seed_sd, words = assumed_spread({"seed_sd": 0.02, "split_sd": float("nan")})
    assert split_sd == seed_sd == 0.02 and "not measurable" in words
    assert assumed_spread({"seed_sd": float("nan"), "split_sd": float("nan")})[:2] == (0.01, 0.01)


def test_power_against_simulation():
    table = power_table(0.02, 0.02, 0.01, [(1, 8), (4, 2), (8, 1)]).set_index("splits")
    assert np.isnan(table.loc[1, "power"])
    rng = np.random.default_rng(3)
    means = 0.02 + rng.normal(0, 0.01, (4000, 4)) + rng.normal(0, 0.02 / np.sqrt(2), (4000, 4))
    simulated = (stats.ttest_1samp(means, 0, axis=1).pvalue < 0.05).mean()
    assert table.loc[4, "power"] == pytest.approx(simulated, abs=0.03)
    assert table.loc[8, "standard_error"] < table.loc[4, "standard_error"] < table.loc[1, "standard_error"]


def test_seeds_power():
    table = seeds_power(0.02, 0.01, [2, 4, 8]).set_index("seeds")
    assert table["power"].is_monotonic_increasing and table["smallest_effect"].is_monotonic_decreasing
    values = 0.02 + np.random.default_rng(1).normal(0, 0.01, (4000, 4))
    simulated = (stats.ttest_1samp(values, 0, axis=1).pvalue < 0.05).mean()
    assert table.loc[4, "power"] == pytest.approx(simulated, abs=0.03)


def test_assumptions_are_the_librarys_tests_with_their_power():
    rng = np.random.default_rng(0)
    arms = ("EXP", "EXP+GEN")
    tables = []
    for split, n in (("1", 4), ("2", 30)):
        base, gain = rng.normal(0.7, 0.02, n), rng.normal(0.02, 0.01, n)
        scores = {"EXP": base, "EXP+GEN": base + gain, "difference": gain}
        tables.append(pd.DataFrame({"split": split, "n_train": 10, "seed": range(n), **scores}))
    found = assumptions(pd.concat(tables), arms, np.random.default_rng(1)).set_index(["condition", "test"])
    for condition, table in zip(("split 1, N = 10", "split 2, N = 10"), tables, strict=True):
        assert found.loc[(condition, "Shapiro-Wilk"), "p"] == pytest.approx(stats.shapiro(table["difference"]).pvalue)
        # Pitman-Morgan: t test of the correlation of sum and difference, from the ratio of variances.
        r = np.corrcoef(table["EXP"] + table["EXP+GEN"], table["difference"])[0, 1]
        t = r * np.sqrt((len(table) - 2) / (1 - r**2))
        p = 2 * stats.t.sf(abs(t), len(table) - 2)
        assert found.loc[(condition, "Pitman-Morgan"), "p"] == pytest.approx(p)
    levene = stats.levene(*(table["difference"] for table in tables), center="median")
    assert found.loc[("all", "Levene"), "p"] == pytest.approx(levene.pvalue)
    power = found["power"].xs("Shapiro-Wilk", level="test")
    assert power.iloc[0] < 0.4 < 0.9 < power.iloc[1]  # four pairs show little, thirty nearly everything


def test_assumptions_of_too_few_pairs_or_equal_ones_are_undefined():
    two = pd.DataFrame({"split": "1", "n_train": 10, "EXP": [0.5, 0.6], "EXP+GEN": [0.6, 0.8]})
    same = pd.DataFrame({"split": "2", "n_train": 10, "EXP": [0.5, 0.6, 0.7], "EXP+GEN": [0.6, 0.7, 0.8]})
    pairs = pd.concat([two, same]).assign(difference=lambda t: t["EXP+GEN"] - t["EXP"])
    found = assumptions(pairs, ("EXP", "EXP+GEN"), np.random.default_rng(0))
    assert found["p"].isna().all()
    assert found["undefined"].tolist() == ["2 pairs: three are the least"] * 2 + ["no spread"] * 2 + [
        "needs two conditions of three pairs"
    ]
