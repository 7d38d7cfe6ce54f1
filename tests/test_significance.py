"""Tests of tests: textbook values, hand enumerations, what stays undefined, and numbers in prose."""

import doctest
import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import ellipse_patches
from scipy import stats
from statsmodels.stats.multitest import multipletests

from companion.config.arms import ARMS
from companion.evaluation import plots, significance, wording
from companion.evaluation.runs import Run
from companion.evaluation.scores import Counts
from companion.evaluation.significance import holm, paired_scores, paired_t, paired_tests, sign_flip
from companion.evaluation.thresholds import BEST, FIXED, VALIDATED, choices, headline, read_at
from companion.seeds import Seeds


def scores(arms=("EXP", "EXP+GEN"), seeds=(1, 2, 3, 4), sizes=(10, 50), noise=0.01) -> pd.DataFrame:
    """A scores table whose best confidence is 0.8 for EXP and 0.6 for every other arm; each gains 0.02 more."""
    rng = np.random.default_rng(0)
    rows = []
    for n, arm, seed, confidence in itertools.product(sizes, arms, seeds, (0.4, 0.6, 0.8)):
        best = 0.8 if arm == "EXP" else 0.6
        value = 0.7 - (confidence - best) ** 2 + 0.02 * list(ARMS).index(arm) + rng.normal(0, noise)
        rows.append(("1", n, arm, seed, 0.5, confidence, value, value - 0.05, value + 0.05))
    columns = ["split", "n_train", "arm", "seed", "iou_threshold", "confidence", "f1_hm", "f1_detect", "f1_class"]
    return pd.DataFrame(rows, columns=columns)


def at(table: pd.DataFrame, confidence: float = 0.6, choice: str = VALIDATED) -> pd.DataFrame:
    """One row per run, as `thresholds.read_at` gives them."""
    here = table[np.isclose(table["confidence"], confidence)]
    return here.assign(choice=choice, against="labels", map50=here["f1_hm"] - 0.2)


@pytest.fixture(scope="module")
def every_arm() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Chosen scores of every arm, their pairs and tests."""
    chosen = at(scores(arms=tuple(ARMS)))
    pairs = paired_scores(chosen, ["f1_hm", "f1_detect", "f1_class"])
    return chosen, pairs, paired_tests(pairs)


def test_paired_t_by_hand_and_why_it_is_undefined():
    result = paired_t([1.0, np.nan, 2.0, 3.0], 0.9)  # an undefined pair is left out
    assert (result["mean"], result["sd"], result["df"], result["n"]) == (2.0, 1.0, 2, 3)
    assert result["t"] == pytest.approx(2 * np.sqrt(3)) and result["undefined"] == ""
    assert result["p"] == pytest.approx(2 * stats.t.sf(2 * np.sqrt(3), 2))
    half = stats.t.ppf(0.95, 2) / np.sqrt(3)
    assert (result["low"], result["high"]) == pytest.approx((2 - half, 2 + half))
    assert result["hedges_g"] == pytest.approx(2 / np.sqrt(np.pi))  # factor at df = 2: 1 / sqrt(pi)
    for values, says in (([], "0 pairs"), ([0.1], "1 pair:"), ([0.1, 0.1], "equal")):
        result = paired_t(values)
        assert says in result["undefined"] and np.isnan(result["p"]) and np.isnan(result["low"])


def test_sign_flip_against_every_pattern_and_its_floor():
    assert sign_flip([1, 2, 3, 4]) == (0.125, 0.125) and sign_flip([-0.1, -0.2, np.nan]) == (0.5, 0.5)
    for values in (np.random.default_rng(1).normal(0.3, 1, 8), [0.01, 0.01, -0.01, 0.02], [0.0, 0.0]):
        sums = [abs(np.dot(signs, values)) for signs in itertools.product((1, -1), repeat=len(values))]
        assert sign_flip(values)[0] == pytest.approx(np.mean([s >= sums[0] - 1e-12 for s in sums]))
    assert np.isnan([sign_flip(()), sign_flip([0.1]), sign_flip(np.ones(21))]).all()


def test_holm_of_the_papers_three():
    assert holm([0.0008, 0.0013, 0.069]).tolist() == pytest.approx([0.0024, 0.0026, 0.069])
    assert holm([0.01, np.nan, 0.04])[[0, 2]].tolist() == pytest.approx([0.02, 0.04])
    assert np.isnan(holm([np.nan])).all()
    many = np.random.default_rng(0).uniform(0, 0.4, 12)
    assert holm(many).tolist() == pytest.approx(multipletests(many, method="holm")[1])


def test_every_arm_is_tested_against_its_baseline(every_arm):
    _, pairs, tests = every_arm
    assert len(pairs) == 2 * 3 * 4 * (len(ARMS) - 1) and "EXP" not in set(pairs["arm"])
    assert pairs.groupby("arm")["baseline"].first().to_dict() == {a: ARMS[a].baseline for a in ARMS if a != "EXP"}
    table = tests.set_index(["arm", "n_train", "measure"])
    assert (table["p_holm"] >= table["p"]).all() and table["smallest_p_sign_flip"].eq(0.125).all()
    one = pairs[(pairs["n_train"] == 50) & (pairs["measure"] == "f1_detect") & (pairs["arm"] == "EXP+RARE")]
    row = table.loc[("EXP+RARE", 50, "f1_detect")]
    assert row["p"] == pytest.approx(stats.ttest_rel(one["score"], one["base"]).pvalue)
    assert row["share_of_left"] == pytest.approx((one["score"] - one["base"]).mean() / (1 - one["base"].mean()))
    assert row["gain"] == pytest.approx(0.04, abs=0.02) and row["baseline"] == "EXP+GEN"  # third arm after the first
    for _, family in table.groupby(["arm", "measure"]):
        assert family["p_holm"].tolist() == pytest.approx(holm(family["p"]))


def test_seeds_without_a_partner_and_absent_arms():
    found = at(scores())
    table = paired_tests(paired_scores(found[~((found["arm"] == "EXP") & (found["seed"] == 4))]))
    assert (table["n"] == 3).all()
    alone = paired_tests(paired_scores(found[found["arm"] == "EXP+GEN"]))
    assert (alone["n"] == 0).all() and alone["undefined"].str.contains("0 pairs").all()
    none = paired_tests(paired_scores(found[found["arm"] == "EXP"]))
    assert len(none) == 0 and list(none) == list(table)


def test_the_measure_that_stands_in():
    table = scores()
    assert significance.headline_measure(table) == ("f1_hm", "")
    none = table.assign(f1_hm=np.nan, f1_class_1=np.nan)
    measure, words = significance.headline_measure(none)
    assert measure == "f1_detect" and "stands in" in words.replace("F1_detect stands in", "stands in")


def test_scores_are_resampled_by_micrograph_the_same_for_all_runs_of_a_split():
    index = pd.DataFrame({"image": ["a", "a", "b", "c"]})
    counted, four = [], np.full((4, 1), 4, dtype=np.int32)  # predictions and truths of every patch, of one class
    for arm, hits in (("EXP", [1, 2, 3, 0]), ("EXP+GEN", [2, 2, 4, 1])):
        keys = {"split": "1", "n_train": 4, "arm": arm, "seed": 1}
        run = Run(keys, pd.DataFrame(), replace(ellipse_patches(1), index=index))
        pairs = np.array(hits, dtype=np.int32).reshape(-1, 1, 1, 1, 1)
        counted.append((run, Counts(pairs, four, four, (0.5,), (0.5,), (1,))))
    points = pd.DataFrame({"split": "1", "n_train": 4, "arm": ["EXP", "EXP+GEN"], "confidence": 0.5})
    table = significance.resampled_scores(counted, points, 0.5, Seeds(0), 4000)
    wide = table.pivot(index="resample", columns="arm", values="f1_detect")
    assert wide.loc[0].tolist() == pytest.approx([6 / 16, 9 / 16])  # F1 = 2 TP / (predicted + truths) = TP / 4P
    drawn = (wide["EXP+GEN"] - wide["EXP"]).iloc[1:]
    gain, patches = np.array([1.0, 1.0, 1.0]), np.array([2, 1, 1])  # micrograph a holds two patches, drawn as a whole
    draws = np.array(list(itertools.product(range(3), repeat=3)))  # all 27 resamples of three micrographs
    exact = gain[draws].sum(axis=1) / (4 * patches[draws].sum(axis=1))
    assert set(np.round(drawn, 9)) == set(np.round(exact, 9))
    assert drawn.mean() == pytest.approx(exact.mean(), abs=0.002)


def test_every_run_is_read_at_three_choices_and_on_both_sides():
    labels = scores(sizes=(10,), noise=0)
    truth = labels.assign(f1_hm=labels["f1_hm"] - 0.1)
    flat = labels.assign(f1_hm=labels["f1_hm"].where(labels["arm"] == "EXP") + 9 * (labels["confidence"] == 0.6))
    points = choices(labels, flat, 0.5, "f1_hm", 0.4)
    confidence = points.pivot(index="choice", columns="arm", values="confidence")
    assert confidence.loc[VALIDATED].tolist() == [0.6, 0.4]  # the fixed one, where nothing is defined on validation
    assert confidence.loc[BEST].tolist() == [0.8, 0.6] and confidence.loc[FIXED].tolist() == [0.4, 0.4]
    keys = labels[["split", "n_train", "arm", "seed"]].drop_duplicates()
    precision = pd.concat([keys.assign(against=side, map50=0.3, ap50_1=0.2) for side in ("labels", "truth")])
    chosen = read_at({"labels": labels, "truth": truth}, precision, points, 0.5)
    assert len(chosen) == 3 * 2 * len(keys) and (chosen["map50"] == 0.3).all()
    wide = chosen.set_index(["choice", "against", "arm", "seed"])["f1_hm"].unstack("against")
    assert np.allclose(wide["labels"] - wide["truth"], 0.1)
    first = headline(chosen)
    assert len(first) == len(keys) and set(first["choice"]) == {VALIDATED} and set(first["against"]) == {"labels"}
    alone = choices(labels, None, 0.5, "f1_hm", 0.4)
    assert set(alone["choice"]) == {BEST, FIXED}
    assert set(headline(chosen[chosen["choice"] != VALIDATED])["choice"]) == {BEST}


def test_a_sign_that_depends_on_the_choice_of_the_threshold_is_said():
    tests = pd.DataFrame({
        "arm": "EXP+GEN", "measure": "f1_hm", "against": "labels", "split": "1", "n_train": 10,
        "choice": [VALIDATED, BEST, FIXED], "gain": [0.006, 0.008, -0.029],
    })  # fmt: skip
    (said,) = significance.sign_by_choice(tests, "f1_hm")
    assert "N = 10" in said and "depends on the threshold: +0.006" in said and "−0.029 (fixed)" in said
    same = significance.sign_by_choice(tests.assign(gain=[0.006, 0.008, np.nan]), "f1_hm")
    assert same == ["Against labels the sign of the gain in F1HM is the same for every choice of the threshold."]


def test_what_is_significant_is_said_whatever_its_sign():
    found = at(scores(seeds=(1, 2, 3, 4), sizes=(50,), noise=0.001))
    lost = found.assign(f1_detect=found["f1_detect"].where(found["arm"] == "EXP", found["f1_detect"] - 0.1))
    rises, falls = (significance.significant(paired_tests(paired_scores(table)), 0.95) for table in (found, lost))
    assert len(rises) == len(falls) == 4 and all("rises" in line and "Holm" in line for line in rises)
    assert [line.split()[1] for line in falls].count("falls") == 1
    noisy = at(scores(sizes=(50,), noise=0.5))
    (none,) = significance.significant(paired_tests(paired_scores(noisy)), 0.95)
    assert none == "Of 4 tests of EXP+GEN against EXP none is significant."


def test_figures_show_every_arm_and_what_is_defined_of_one_class(every_arm):
    full, pairs, tests = every_arm
    names = [text.get_text() for text in plots.sizes(full, tests, "f1_hm", "").legends[0].get_texts()]
    assert names == list(ARMS)
    one_class = full[full["arm"].isin(["EXP", "EXP+GEN"])].assign(f1_hm=np.nan, f1_class=np.nan)
    of_one = tests.assign(p=tests["p"].where(tests["measure"] == "f1_detect"))
    assert len(plots.sizes(one_class, of_one, "f1_detect", "").legends[0].get_texts()) == 2
    axes = plots.paired_differences(pairs, tests, ["f1_hm"], "phantom").axes[0]
    assert len(axes.containers[0].lines[0].get_xdata()) == len(axes.get_yticklabels()) == 2 * (len(ARMS) - 1)


def test_digits_follow_the_interval():
    assert doctest.testmod(wording).failed == 0
    assert wording.with_interval(0.123456, 0.1, 0.147, 4) == "0.123 (95 % interval 0.100 to 0.147, n = 4)"
    assert wording.with_interval(-0.0004, -0.002, 0.0012, 3) == "−0.0004 (95 % interval −0.0020 to 0.0012, n = 3)"
    assert wording.with_interval(12.3, 10.1, 14.5) == "12.3 (95 % interval 10.1 to 14.5)"
    assert wording.with_interval(np.nan, 0, 1, 1) == "undefined (no interval, n = 1)"
    assert wording.with_interval(0.5, 0.5, 0.5, 2) == "0.500 (95 % interval 0.500 to 0.500, n = 2)"
    assert wording.number(0) == "0" and wording.number(1e-12) == "1.0e-12"
