"""Rules of the claims about scores: gains, their significance and origin, thresholds, oversampling."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from companion.evaluation.rules import Evidence, Finding, Rule, Verdict, absent, unclear
from companion.evaluation.significance import CONDITION, paired_t
from companion.evaluation.wording import number, with_interval

PAPER_RUNS = 4  # detector runs per condition behind the paper's tests
PAPER_GAIN = 0.02  # its largest gain in F1HM
ARMS = ("EXP", "EXP+GEN")
_GRADES: tuple[Verdict, ...] = ("not reproduced", "partly", "reproduced")


def judge_largest_gain(e: Evidence, factor: float) -> Finding:
    """C2: the largest mean gain in F1HM over all splits and N."""
    rows = e.gains[e.gains["measure"] == "f1_hm"].dropna(subset=["gain"])
    if rows.empty:
        return unclear("F1HM is undefined here (fewer than two classes), so there is no gain in it")
    row = rows.loc[rows["gain"].idxmax()]
    half = float(row["high"] - row["low"]) / 2
    found = _interval_of(row, "gain", half * factor, "half width of the gain's interval, from detector seeds")
    place = f"largest of {len(rows)} condition(s): split {row['split']}, N={row['n_train']}"
    if not np.isfinite(half):
        return replace(found, verdict="cannot be compared", reason=f"{place}; {row['n']} pair(s) give no interval")
    if half > PAPER_GAIN:
        reason = f"{place}; the spread of the seeds (±{number(half)}) is larger than the effect of {PAPER_GAIN}"
        return replace(found, verdict="cannot be compared", reason=reason)
    if row["gain"] <= 0:
        return replace(found, verdict="not reproduced", reason=f"{place}; no condition gained")
    if row["low"] <= 0:
        return replace(found, verdict="partly", reason=f"{place}; a gain, but its interval reaches below zero")
    if abs(row["gain"] - PAPER_GAIN) <= half * factor:
        return replace(found, verdict="reproduced", reason=f"{place}; within the tolerance of {PAPER_GAIN}")
    return replace(
        found, verdict="partly", reason=f"{place}; {number(row['gain'] - PAPER_GAIN, sign=True)} from {PAPER_GAIN}"
    )


def judge_significance(n_train: int, significant: bool) -> Rule:
    """C3-C5: is the gain in F1HM at one N significant on the first split?"""

    def rule(e: Evidence, factor: float) -> Finding:
        rows = e.tests[(e.tests["n_train"] == n_train) & (e.tests["measure"] == "f1_hm")] if len(e.tests) else e.tests
        if rows.empty:
            return absent(f"N={n_train} with both arms is not in this profile")
        row = rows.sort_values("split").iloc[0]
        p, n, mean, alpha = row["p"], int(row["n"]), row["mean"], 0.05 * factor
        if pd.isna(mean):
            return unclear("F1HM is undefined here (fewer than two classes, or no pairs)", n=n)
        found = Finding(
            "cannot be compared",
            "",
            mean,
            row["low"],
            row["high"],
            n,
            alpha,
            "significance level; half and twice of it",
            with_interval(mean, row["low"], row["high"], n),
        )
        if pd.isna(p):
            return replace(found, reason=f"no test: {row['undefined']}")
        found = replace(found, shown=f"{found.shown}, p = {number(p)}, Holm {number(row['p_holm'])}")
        if n < PAPER_RUNS:
            return replace(found, reason=f"{n} pairs of runs; the paper has {PAPER_RUNS}, and fewer decide nothing")
        reason = f"split {row['split']}: p {'<' if p < alpha else '≥'} {alpha:g}, mean {'>' if mean > 0 else '≤'} 0"
        if (p < alpha) == significant and mean > 0:
            return replace(found, verdict="reproduced", reason=reason)
        if p >= alpha and significant and row["low"] <= 0 and row["high"] >= PAPER_GAIN:
            why = f"{reason}; the interval holds no gain and the paper's {PAPER_GAIN} alike: too wide to tell"
            return replace(found, verdict="cannot be compared", reason=why)
        verdict: Verdict = "partly" if p >= alpha and not significant else "not reproduced"
        return replace(found, verdict=verdict, reason=reason)

    return rule


def judge_origin_of_gain(e: Evidence, factor: float) -> Finding:
    """C6: classification minus detection gain, on the first and the second split."""
    wide = e.gains.pivot_table(index=CONDITION, columns="measure", values="gain")
    if not {"f1_class", "f1_detect"} <= set(wide):
        return unclear("F1_class is undefined here (fewer than two classes), so the gain cannot be divided")
    excess = (wide["f1_class"] - wide["f1_detect"]).dropna()
    splits = sorted(set(excess.index.get_level_values("split")))
    if len(splits) < 2:
        return absent(f"the claim is about two splits; this run has {', '.join(map(str, splits)) or 'none'}")
    half = (e.gains["high"] - e.gains["low"])[e.gains["measure"].isin(["f1_class", "f1_detect"])].mean() / 2
    means = [float(excess.xs(split, level="split").mean()) for split in splits[:2]]
    shown = ", ".join(f"split {s}: {number(m, sign=True)}" for s, m in zip(splits, means, strict=False))
    found = Finding(
        "cannot be compared",
        "no interval: fewer than two runs per condition",
        tolerance=half * factor,
        tolerance_from="mean half width of the gains' intervals, from detector seeds",
        shown=shown,
    )
    if not np.isfinite(half):
        return replace(found, tolerance=None)
    right = int(means[0] > half * factor) + int(means[1] < -half * factor)
    verdict = _GRADES[right]
    reason = f"classification minus detection gain beyond the tolerance in the claimed direction on {right} of 2 splits"
    return replace(found, verdict=verdict, reason=f"{reason} (the splits are this run's own)")


def judge_oversampling(e: Evidence, factor: float) -> Finding:
    """C8: EXP+RARE minus EXP+GEN in F1HM."""
    if e.rare.empty:
        return absent(e.rare_status) if e.rare_status.startswith("not run") else unclear(e.rare_status)
    test = paired_t(e.rare["difference"], e.level)
    margin = e.margin * factor
    found = Finding(
        "cannot be compared",
        test["undefined"] or "",
        test["mean"],
        test["low"],
        test["high"],
        test["n"],
        margin,
        f"differences within ±{e.margin:g} count as none (half of the paper's largest gain)",
        with_interval(test["mean"], test["low"], test["high"], test["n"]),
    )
    if test["undefined"]:
        return found
    if -margin <= test["low"] and test["high"] <= margin:
        return replace(found, verdict="reproduced", reason="the whole interval lies within the margin: no gain")
    if test["low"] > margin:
        return replace(found, verdict="not reproduced", reason="a gain beyond the margin was measured")
    if test["high"] - test["low"] > 4 * e.margin:
        return replace(found, reason="the interval is wider than twice the margin's range: no gain and a gain both fit")
    return replace(found, verdict="partly", reason="no gain was shown, but the interval reaches beyond the margin")


def judge_best_thresholds(e: Evidence, factor: float) -> Finding:
    """C9: mean best confidence of EXP (0.8) and EXP+GEN (0.6-0.7), chosen on the test images."""
    means = e.best.groupby("arm")["confidence"].agg(["mean", "std", "count"])
    if not set(ARMS) <= set(means.index):
        return unclear("no best threshold for both arms: the combined score is undefined here")
    spread = float(np.nanmax([e.step, means.loc[list(ARMS), "std"].max()]))
    exp, gen = means.loc["EXP", "mean"], means.loc["EXP+GEN", "mean"]
    right = int(abs(exp - 0.8) <= factor * spread) + int(max(0.6 - gen, gen - 0.7, 0) <= factor * spread)
    shown = f"EXP {exp:.2f}, EXP+GEN {gen:.2f}"
    order = "below" if gen < exp else "not below"
    found = Finding(
        "partly",
        f"{right} of 2 arms within the tolerance; EXP+GEN is {order} EXP",
        float(exp - gen),
        n=int(means.loc["EXP", "count"]),
        tolerance=factor * spread,
        shown=shown,
        tolerance_from="spread of the best threshold over runs, at least one step of the sweep",
    )
    if (runs := int(means.loc[list(ARMS), "count"].min())) < PAPER_RUNS:
        return replace(
            found, verdict="cannot be compared", reason=f"{runs} run(s) per arm do not tell how far it moves"
        )
    if spread > 0.15:
        return replace(
            found,
            verdict="cannot be compared",
            reason=f"it moves by ±{spread:.2f} between runs; the paper's arms differ by 0.15",
        )
    if right == 2 and gen < exp:
        return replace(found, verdict="reproduced")
    return found if right or gen < exp else replace(found, verdict="not reproduced")


def judge_level_at_50(e: Evidence, factor: float) -> Finding:
    """C10: F1HM of EXP at N=50, and the gain as a share of what is left to gain."""
    rows = e.gains[(e.gains["n_train"] == 50) & (e.gains["measure"] == "f1_hm")].dropna(subset=["base"])
    if rows.empty:
        return absent("N=50 is not in this profile, or F1HM is undefined there")
    base, share, n = float(rows["base"].mean()), float(rows["share_of_left"].mean()), int(rows["n"].sum())
    half = float((rows["high"] - rows["low"]).mean() / 2)
    shown = f"F1HM {base:.3f}, {100 * share:.1f} % of what is left"
    found = Finding("cannot be compared", "no interval: fewer than two runs per condition", base, n=n, shown=shown)
    if not np.isfinite(half):
        return found
    right = int(max(0.70 - base, base - 0.75) <= factor * half) + int(max(0.03 - share, share - 0.08) <= factor * half)
    verdict = _GRADES[right]
    return replace(
        found,
        verdict=verdict,
        reason=f"{right} of 2 values within the tolerance of the paper's ranges",
        tolerance=factor * half,
        tolerance_from="mean half width of the gains' intervals, from seeds",
    )


def _interval_of(row: pd.Series, name: str, tolerance: float, tolerance_from: str) -> Finding:
    value, low, high, n = row[name], row["low"], row["high"], int(row["n"])
    return Finding(
        "cannot be compared", "", value, low, high, n, tolerance, tolerance_from, with_interval(value, low, high, n)
    )
