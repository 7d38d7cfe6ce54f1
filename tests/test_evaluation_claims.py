"""Verdicts follow from numbers: each rule on evidence whose verdict is known beforehand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from companion.evaluation import gain_rules, rules
from companion.evaluation.claims import CLAIMS
from companion.evaluation.rules import Evidence
from companion.evaluation.significance import GAIN_COLUMNS

NAN = float("nan")


def gains(*rows) -> pd.DataFrame:
    """Rows of (split, n_train, measure, base, gain, half width, n)."""
    full = [(s, n, m, b, b + g, g, g - h, g + h, k, g / (1 - b)) for s, n, m, b, g, h, k in rows]
    return pd.DataFrame(full, columns=GAIN_COLUMNS)


def one_test(n_train, p, mean, n=4, undefined=None):
    return pd.DataFrame([{
        "split": "1", "n_train": n_train, "measure": "f1_hm", "n": n, "mean": mean, "low": mean - 0.01,
        "high": mean + 0.01, "p": p, "p_holm": p, "undefined": undefined,
    }])  # fmt: skip


EMPTY = Evidence(
    gains=gains(), tests=pd.DataFrame(), best=pd.DataFrame(columns=["arm", "confidence"]),
    rare=pd.DataFrame(columns=["difference"]), rare_status="not run: no EXP+RARE detectors",
    quality=pd.DataFrame(columns=["measure", "value", "low", "high", "yardstick", "n_train"]),
    patches=pd.DataFrame(columns=["n"]), hours=pd.DataFrame(columns=["hours", "device"]),
    step=0.05, margin=0.01, level=0.95,
)  # fmt: skip


def test_twelve_claims_and_nothing_to_judge_them_by():
    assert [claim.id for claim in CLAIMS] == [f"C{k}" for k in range(1, 13)]
    for claim in CLAIMS:
        finding = claim.rule(EMPTY, 1.0)
        assert finding.verdict in ("not attempted", "cannot be compared") and finding.reason, claim.id


@pytest.mark.parametrize(
    ("gain", "half", "verdict"),
    [
        (0.022, 0.005, "reproduced"),
        (0.03, 0.004, "partly"),
        (0.012, 0.015, "partly"),  # its interval reaches below zero
        (-0.01, 0.005, "not reproduced"),
        (0.03, 0.4, "cannot be compared"),
        (0.02, NAN, "cannot be compared"),
    ],
)
def test_largest_gain(gain, half, verdict):
    table = gains(("1", 10, "f1_hm", 0.6, -0.02, 0.001, 4), ("1", 50, "f1_hm", 0.7, gain, half, 4))
    finding = gain_rules.judge_largest_gain(replace(EMPTY, gains=table), 1.0)
    assert finding.verdict == verdict and finding.value == pytest.approx(gain)


def test_a_wider_tolerance_can_only_help():
    e = replace(EMPTY, gains=gains(("1", 50, "f1_hm", 0.7, 0.03, 0.006, 4)))
    assert [gain_rules.judge_largest_gain(e, f).verdict for f in (0.5, 1, 2)] == ["partly", "partly", "reproduced"]


@pytest.mark.parametrize(
    ("n_train", "significant", "p", "mean", "n", "verdict"),
    [
        (50, True, 0.01, 0.02, 4, "reproduced"),
        (50, True, 0.3, 0.005, 4, "not reproduced"),  # the interval ends below the paper's gain
        (50, True, 0.3, 0.01, 4, "cannot be compared"),  # it holds zero and the paper's gain
        (50, True, 0.01, -0.02, 4, "not reproduced"),
        (50, True, 0.01, 0.02, 2, "cannot be compared"),
        (10, False, 0.2, 0.02, 4, "reproduced"),
        (10, False, 0.01, 0.02, 4, "not reproduced"),
        (10, False, 0.2, -0.02, 4, "partly"),
    ],
)
def test_significance(n_train, significant, p, mean, n, verdict):
    rule = gain_rules.judge_significance(n_train, significant)
    assert rule(replace(EMPTY, tests=one_test(n_train, p, mean, n)), 1.0).verdict == verdict
    assert rule(replace(EMPTY, tests=one_test(20, p, mean, n)), 1.0).verdict == "not attempted"


def test_significance_level_is_the_tolerance():
    e = replace(EMPTY, tests=one_test(50, 0.04, 0.02))
    verdicts = [gain_rules.judge_significance(50, True)(e, f).verdict for f in (0.5, 1, 2)]
    assert verdicts == ["not reproduced", "reproduced", "reproduced"]


def test_origin_of_the_gain():
    def table(first, second):
        return gains(*(
            (split, 50, measure, 0.7, gain, 0.005, 4)
            for split, (detect, kind) in (("1", first), ("2", second))
            for measure, gain in (("f1_detect", detect), ("f1_class", kind))
        ))  # fmt: skip

    def verdict(*pairs):
        return gain_rules.judge_origin_of_gain(replace(EMPTY, gains=table(*pairs)), 1.0).verdict

    assert verdict((0.0, 0.03), (0.03, 0.0)) == "reproduced"
    assert verdict((0.0, 0.03), (0.03, 0.03)) == "partly"
    assert verdict((0.03, 0.0), (0.0, 0.03)) == "not reproduced"
    one = table((0, 0.03), (0.03, 0)).query("split == '1'")
    assert gain_rules.judge_origin_of_gain(replace(EMPTY, gains=one), 1.0).verdict == "not attempted"


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ([0.001, -0.001, 0.0, 0.002], "reproduced"),
        ([0.05, 0.051, 0.052, 0.05], "not reproduced"),
        ([0.006, 0.0, -0.006, 0.014], "partly"),
        ([0.1, -0.1], "cannot be compared"),
        ([0.01], "cannot be compared"),
    ],
)
def test_oversampling(differences, verdict):
    e = replace(EMPTY, rare=pd.DataFrame({"difference": differences}))
    assert gain_rules.judge_oversampling(e, 1.0).verdict == verdict


def test_oversampling_that_was_not_tried_or_has_no_meaning():
    assert gain_rules.judge_oversampling(EMPTY, 1.0).verdict == "not attempted"
    one_class = replace(EMPTY, rare_status="without meaning: one class")
    assert gain_rules.judge_oversampling(one_class, 1.0).verdict == "cannot be compared"


@pytest.mark.parametrize(
    ("exp", "gen", "verdict"),
    [
        ([0.8, 0.8, 0.75, 0.85], [0.65, 0.7, 0.6, 0.65], "reproduced"),
        ([0.4, 0.4, 0.45, 0.4], [0.65, 0.7, 0.6, 0.65], "partly"),
        ([0.4, 0.4, 0.45, 0.4], [0.9, 0.9, 0.9, 0.9], "not reproduced"),
        ([0.2, 0.9, 0.2, 0.9], [0.65, 0.7, 0.6, 0.65], "cannot be compared"),
        ([0.8, 0.8], [0.65, 0.7], "cannot be compared"),
    ],
)
def test_best_thresholds(exp, gen, verdict):
    best = pd.DataFrame({"arm": ["EXP"] * len(exp) + ["EXP+GEN"] * len(gen), "confidence": exp + gen})
    assert gain_rules.judge_best_thresholds(replace(EMPTY, best=best), 1.0).verdict == verdict


def test_level_at_fifty():
    def verdict(base, gain, half=0.005):
        e = replace(EMPTY, gains=gains(("1", 50, "f1_hm", base, gain, half, 4)))
        return gain_rules.judge_level_at_50(e, 1.0).verdict

    assert verdict(0.72, 0.015) == "reproduced"
    assert verdict(0.60, 0.02) == "partly"
    assert verdict(0.40, 0.2) == "not reproduced"
    assert verdict(0.72, 0.015, NAN) == "cannot be compared"


def quality(*rows):
    return pd.DataFrame(rows, columns=["n_train", "measure", "value", "low", "high", "yardstick"])


def test_image_quality():
    def verdict(*rows, factor=1.0, **more):
        return rules.judge_image_quality(replace(EMPTY, quality=quality(*rows).assign(**more)), factor).verdict

    inside, outside = (10, "a", 0.9, 0.8, 0.95, 0.93), (10, "b", 5.0, 4.9, 9.0, 3.0)
    assert verdict(inside) == "reproduced" and verdict(outside) == "not reproduced"
    assert verdict(inside, outside) == "partly"
    assert verdict((10, "a", 0.9, 0.8, 0.95, 0.97), factor=2) == "reproduced"  # 0.97 is 1.4 half intervals above
    below = (10, "distance", 1.0, 0.9, 1.1, 3.0)
    assert verdict(below) == "not reproduced"
    assert verdict(below, yardstick_of="real training against held-out images") == "reproduced"


def test_quality_with_n():
    falling = quality((10, "a", 0.5, 0.45, 0.55, 0.1), (100, "a", 0.2, 0.15, 0.25, 0.1))
    assert rules.judge_quality_with_n(replace(EMPTY, quality=falling), 1.0).verdict == "reproduced"
    rising = falling.assign(n_train=[100, 10])
    assert rules.judge_quality_with_n(replace(EMPTY, quality=rising), 1.0).verdict == "not reproduced"
    assert rules.judge_quality_with_n(replace(EMPTY, quality=falling[:1]), 1.0).verdict == "not attempted"


def test_patches_and_hours():
    few, many = pd.DataFrame({"n": [256, 256]}), pd.DataFrame({"n": [10_000, 10_800]})
    assert rules.judge_patches(replace(EMPTY, patches=few), 1.0).verdict == "not attempted"
    assert rules.judge_patches(replace(EMPTY, patches=many), 1.0).verdict == "reproduced"

    def verdict(device, hours, patches=many):
        table = pd.DataFrame({"hours": [hours], "device": [device]})
        return rules.judge_hours(replace(EMPTY, hours=table, patches=patches), 1.0).verdict

    assert verdict("Tesla V100-SXM2", 14.0) == "reproduced" and verdict("Tesla V100-SXM2", 40.0) == "not reproduced"
    assert verdict("NVIDIA H100", 1.0) == "cannot be compared"
    assert verdict("CPU, 2 cores", 0.1, few) == "not attempted"


def test_undefined_scores_cannot_be_compared():
    e = replace(EMPTY, gains=gains(("1", 10, "f1_hm", NAN, NAN, NAN, 0), ("1", 10, "f1_detect", 0.5, 0.1, 0.1, 2)))
    assert gain_rules.judge_largest_gain(e, 1.0).verdict == "cannot be compared"
    e = replace(EMPTY, tests=one_test(10, NAN, NAN, 0, "0 pairs"))
    finding = gain_rules.judge_significance(10, False)(e, 1.0)
    assert finding.verdict == "cannot be compared" and "undefined" in finding.reason
    assert np.isnan(e.tests["p"]).all()
