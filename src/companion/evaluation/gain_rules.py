"""Rules of the claims about scores: gains, their significance and origin, thresholds, oversampling."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from companion.evaluation.rules import Evidence, Finding, Rule, Verdict, absent, unclear
from companion.evaluation.significance import between_pairs, comparison_table, paired_t
from companion.evaluation.wording import number, with_interval

PAPER_RUNS = 4  # detector runs per condition behind the paper's tests
PAPER_GAIN = 0.02  # its largest gain in F1HM
WIDE = 0.05  # an interval this far to each side decides nothing: the paper's ranges of C10 are 0.05 wide
ARMS = ("EXP", "EXP+GEN")
_GRADES: tuple[Verdict, ...] = ("not reproduced", "partly", "reproduced")


def judge_largest_gain(e: Evidence, factor: float) -> Finding:
    """C2: the largest mean gain in F1HM over all splits and N.

    The largest of several noisy means is too large: its interval is widened so that the intervals of all conditions
    hold at once (Bonferroni). What the largest hides is said too: how many conditions lost.
    """
    rows = e.gains[e.gains["measure"] == "f1_hm"].dropna(subset=["gain"])
    if rows.empty:
        return unclear("F1HM is undefined here (fewer than two classes), so there is no gain in it")
    row = rows.loc[rows["gain"].idxmax()]
    half = float(_half_widths_at_once(rows, e.level).loc[row.name])
    low, high, n = row["gain"] - half, row["gain"] + half, int(row["n"])
    lost, gained = int((rows["high"] < 0).sum()), int((rows["low"] > 0).sum())
    found = Finding(
        "cannot be compared", "", row["gain"], low, high, n, half * factor,
        f"half width of the gain's interval over seeds, for the largest of {len(rows)} (Bonferroni)",
        with_interval(row["gain"], low, high, n, e.level),
    )  # fmt: skip
    place = (
        f"largest of {len(rows)} condition(s): split {row['split']}, N={row['n_train']}; {lost} of {len(rows)} "
        "lost significantly"
    )
    if lost and not gained:
        reason = f"{place}, and none gained significantly"
        return replace(found, verdict="not reproduced", reason=reason)
    if not np.isfinite(half):
        return replace(found, verdict="cannot be compared", reason=f"{place}; {row['n']} pair(s) give no interval")
    if half > PAPER_GAIN:
        reason = f"{place}; the spread of the seeds (±{number(half)}) is larger than the effect of {PAPER_GAIN}"
        return replace(found, verdict="cannot be compared", reason=reason)
    if row["gain"] <= 0:
        return replace(found, verdict="not reproduced", reason=f"{place}; no condition gained")
    if low <= 0:
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
            with_interval(mean, row["low"], row["high"], n, e.level),
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
    """C6: classification minus detection gain, pair by pair, on the first and the second split."""
    wide = e.pairs.pivot(index=["split", "n_train", "seed"], columns="measure", values="difference")
    excess = (wide["f1_class"] - wide["f1_detect"]).dropna() if {"f1_class", "f1_detect"} <= set(wide) else wide[:0]
    if excess.empty:
        return unclear("F1_class is undefined here (fewer than two classes), so the gain cannot be divided")
    tests = comparison_table(excess.rename("difference").reset_index(), e.level, between_pairs(e.generator_per_seed))
    splits = sorted(set(tests["split"]) - {"all"})
    if len(splits) < 2:
        return absent(f"the claim is about two splits; this run has {', '.join(map(str, splits)) or 'none'}")
    tests = tests[tests["split"].isin(splits[:2])]
    half = float(((tests["high"] - tests["low"]) / 2).mean(skipna=False))
    means = [float(tests.loc[tests["split"] == split, "mean"].mean()) for split in splits[:2]]
    shown = ", ".join(f"split {s}: {number(m, sign=True)}" for s, m in zip(splits, means, strict=False))
    found = Finding(
        "cannot be compared", "no interval: fewer than two runs per condition", n=int(tests["n"].sum()),
        tolerance=half * factor, shown=shown,
        tolerance_from="mean half width of classification minus detection gain, from what varies between seeds",
    )  # fmt: skip
    if not np.isfinite(half):
        return replace(found, tolerance=None)
    if half > WIDE:
        return replace(found, reason=f"classification minus detection gain is known to ±{number(half)} only")
    right = int(means[0] > half * factor) + int(means[1] < -half * factor)
    verdict = _GRADES[right]
    reason = f"classification minus detection gain beyond the tolerance in the claimed direction on {right} of 2 splits"
    return replace(found, verdict=verdict, reason=f"{reason} (the splits are this run's own)")


def judge_oversampling(e: Evidence, factor: float) -> Finding:
    """C8: EXP+RARE minus EXP+GEN in F1HM, in each condition; over split means where there are three splits or more."""
    if e.rare.empty:
        return absent(e.rare_status) if e.rare_status.startswith("not run") else unclear(e.rare_status)
    tests = comparison_table(e.rare, e.level, between_pairs(e.generator_per_seed))
    if (tests["split"] == "all").any():  # these alone speak of splits that were not drawn
        tests = tests[tests["split"] == "all"]
    margin, one = e.margin * factor, tests.iloc[0] if len(tests) == 1 else None
    found = Finding(
        "cannot be compared", "", float(tests["mean"].mean()),
        None if one is None else one["low"], None if one is None else one["high"], int(tests["n"].sum()), margin,
        f"differences within ±{e.margin:g} count as none (half of the paper's largest gain)",
        "; ".join(
            f"split {t.split}, N={t.n_train}: {with_interval(t.mean, t.low, t.high, t.n, e.level)}"
            for t in tests.itertuples()
        ),
    )  # fmt: skip
    judged = [_no_gain(test, margin, e.margin) for test in tests.itertuples()]
    verdicts, counted = [verdict for verdict, _ in judged], f"{len(judged)} condition(s), never pooled"
    reasons = "; ".join(dict.fromkeys(reason for _, reason in judged))
    if tests["varied"].eq("detector seed").all():
        counted += "; pairs of one condition share a generator"
    verdict: Verdict = "partly"
    if "not reproduced" in verdicts:
        verdict = "not reproduced"
    elif len(set(verdicts)) == 1:
        verdict = verdicts[0]
    return replace(found, verdict=verdict, reason=f"{reasons} ({counted})")


def _no_gain(test: Any, margin: float, given: float) -> tuple[Verdict, str]:
    """Verdict of one test of C8 and the reason; `given` is the margin before any factor."""
    if test.undefined:
        return "cannot be compared", test.undefined
    if -margin <= test.low and test.high <= margin:
        return "reproduced", "the whole interval lies within the margin: no gain"
    if test.low > margin:
        return "not reproduced", "a gain beyond the margin was measured"
    if test.high - test.low > 4 * given:
        return "cannot be compared", "the interval is wider than twice the margin's range: no gain and a gain both fit"
    return "partly", "no gain was shown, but the interval reaches beyond the margin"


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
    """C10: F1HM of EXP at N=50, and the gain as a share of what is left to gain, each with a tolerance of its own."""
    rows = e.pairs[(e.pairs["n_train"] == 50) & (e.pairs["measure"] == "f1_hm")].dropna(subset=list(ARMS))
    if rows.empty:
        return absent("N=50 is not in this profile, or F1HM is undefined there")
    levels, shares, level_halves, share_halves = [], [], [], []
    for _, own in rows.groupby("split", sort=True):
        base, gain = paired_t(own["EXP"], e.level), paired_t(own["difference"], e.level)
        left = 1 - base["mean"]
        levels.append(base["mean"])
        shares.append(gain["mean"] / left)
        level_halves.append((base["high"] - base["low"]) / 2)
        share_halves.append((gain["high"] - gain["low"]) / 2 / left)
    level, share, level_half, share_half = map(np.mean, (levels, shares, level_halves, share_halves))
    found = Finding(
        "cannot be compared", "no interval: fewer than two runs per condition", float(level), n=len(rows),
        shown=f"F1HM {level:.3f}, {100 * share:.1f} % of what is left",
    )  # fmt: skip
    if not np.isfinite([level_half, share_half]).all():
        return found
    found = replace(
        found, low=float(level - level_half), high=float(level + level_half), tolerance=float(factor * level_half),
        tolerance_from=f"half width of EXP's mean over seeds; of the share: that of the gain over what is left, "
        f"{number(factor * share_half)}",
    )  # fmt: skip
    if wide := [
        f"{name} is known to ±{number(half)} only"
        for name, half in (("the level of EXP", level_half), ("the share of what is left", share_half))
        if half > WIDE
    ]:
        return replace(found, reason=f"{' and '.join(wide)}; the paper's ranges are {WIDE} wide")
    right = int(max(0.70 - level, level - 0.75) <= factor * level_half)
    right += int(max(0.03 - share, share - 0.08) <= factor * share_half)
    reason = f"{right} of 2 values within the tolerance of the paper's ranges"
    return replace(found, verdict=_GRADES[right], reason=reason)


def _half_widths_at_once(rows: pd.DataFrame, level: float) -> pd.Series:
    """Half widths of t intervals of `rows` (low, high, n) that all hold at once with probability `level`."""
    from scipy import stats

    df, alpha = rows["n"] - 1, 1 - level
    widened = stats.t.isf(alpha / 2 / len(rows), df) / stats.t.isf(alpha / 2, df)
    return (rows["high"] - rows["low"]) / 2 * widened
