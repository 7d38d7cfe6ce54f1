"""What follows from a run for each claim of the paper: one function per rule, no verdict written by hand.

Every rule can end in "not reproduced"; "partly" needs more for the claim than against it. What a run did not try is
"not attempted", what it cannot decide (too few runs, an undefined score, another device) "cannot be compared".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from companion.evaluation.significance import paired_t
from companion.evaluation.wording import CONDITION, number, p_value, signed, with_interval

Verdict = Literal["reproduced", "partly", "not reproduced", "not attempted", "cannot be compared"]
PAPER_RUNS = 4  # detector runs per condition behind the paper's tests
PAPER_GAIN = 0.02  # its largest gain in F1HM
WIDE = 0.05  # an interval this far to each side decides nothing: the paper's ranges of C10 are 0.05 wide
UNDEFINED = "F1HM is undefined here (fewer than two classes), or no pair was run"
QUALITY = {  # what each measure of quality.parquet is about: C1 asks for all three, C7 for the first two
    "follows its mask": ["darker inside its mask", "contrast of defects", "profile across defects"],
    "looks like labelled ones": ["power spectrum", "power spectrum, worst frequency", "grey levels", "kid", "cmmd",
                                 "c2st_auc"],
    "is no copy": ["distance to the nearest training patch"],
}  # fmt: skip
LEVELS = ("darker inside its mask", "contrast of defects")  # the others are distances: closer than labelled is no fault
NEAR_LEVEL = 0.15  # of its yardstick, within which a level counts as reached
NEAR_AUC = 0.1  # of its yardstick, within which the classifier's AUC counts as reached: it has no interval
ABOUT = {measure: about for about, measures in QUALITY.items() for measure in measures}


@dataclass(frozen=True)
class Evidence:
    """What the claims are judged by."""

    pairs: pd.DataFrame  # `significance.paired_scores` against labels at one choice of the threshold
    tests: pd.DataFrame  # `significance.paired_tests` of them
    best: pd.DataFrame  # best confidence on test of every single run: split, n_train, arm, seed, confidence
    quality: pd.DataFrame  # rows of every quality.parquet, with split, n_train and model
    patches: pd.DataFrame  # of each condition: source ("labelled", "generated"), n, symmetries (of each in training)
    hours: pd.DataFrame  # wall times of each model: device, training, total (and generating with it), h
    step: float  # distance of the swept confidences
    margin: float  # differences of F1 within it count as none
    level: float  # of every interval

    def of(self, arm: str, measure: str) -> pd.DataFrame:
        """Rows of `tests` that have a mean gain."""
        rows = (self.tests["arm"] == arm) & (self.tests["measure"] == measure) & self.tests["gain"].notna()
        return self.tests[rows].sort_values(CONDITION)


class Finding(NamedTuple):
    """What a rule found: a verdict, the reason, and our value with its interval in words."""

    verdict: Verdict
    reason: str
    ours: str = "–"


def image_quality(e: Evidence) -> Finding:
    """C1."""
    judged = e.quality.assign(about=e.quality["measure"].map(ABOUT)).dropna(subset=["value", "yardstick", "about"])
    if missing := set(QUALITY) - set(judged["about"]):
        return Finding("not attempted", f"no measure says whether an image {' or '.join(sorted(missing))}")
    near, level = judged["yardstick"] * NEAR_LEVEL, judged["measure"].isin(LEVELS)
    low, high, no_copy = judged["excess_low"], judged["excess_high"], judged["about"] == "is no copy"
    reached = np.select(
        [level, no_copy, judged["measure"] == "c2st_auc"],
        [(low <= near) & (high >= -near) & (high - low <= judged["yardstick"]), high >= 0,
         judged["value"] - judged["yardstick"] <= NEAR_AUC], low <= 0,
    ).astype(bool)  # fmt: skip
    shares = pd.Series(reached).groupby(judged["about"].to_numpy(), sort=False).mean()
    verdict: Verdict = "not reproduced"
    if (shares > 0.5).all():
        verdict = "reproduced" if reached.all() else "partly"
    models, short = len(judged[[*CONDITION, "model"]].drop_duplicates()), judged.loc[~reached, "measure"].unique()
    said = ", ".join(f"“{about}” {100 * share:.0f} %" for about, share in shares.items())
    reason = f"{several(models, 'model')}; measures that some model does not reach: {'; '.join(short) or 'none'}"
    return Finding(verdict, reason, f"measures reached, of those for {said}")


def largest_gain(e: Evidence) -> Finding:
    """C2. The largest of several noisy means is too large, so all intervals are made to hold at once (Bonferroni)."""
    from scipy import stats

    rows = e.of("EXP+GEN", "f1_hm")
    if rows.empty:
        return Finding("cannot be compared", UNDEFINED)
    row = rows.loc[rows["gain"].idxmax()]
    gain, n, alpha = row["gain"], int(row["n"]), 1 - e.level
    wider = stats.t.isf(alpha / 2 / len(rows), n - 1) / stats.t.isf(alpha / 2, n - 1) if n > 1 else np.nan
    half = (row["high"] - row["low"]) / 2 * wider
    low, high, gained, lost = gain - half, gain + half, int((rows["low"] > 0).sum()), int((rows["high"] < 0).sum())
    reason = f"{several(lost, 'condition')} lost; the largest gain is of split {row['split']}, N={row['n_train']}"
    verdict: Verdict = "partly" if lost or not low <= PAPER_GAIN <= high else "reproduced"
    if lost and lost >= gained:
        verdict = "not reproduced"
    elif not half <= PAPER_GAIN or low <= 0 < PAPER_GAIN <= high:  # an undefined half width, too
        verdict = "cannot be compared"
        known = f"±{number(half)}" if np.isfinite(half) else "one pair" if n < 2 else "a gain without any spread"
        reason += f"; {known} does not tell a gain of {PAPER_GAIN} from none"
    elif low <= 0:
        verdict = "not reproduced"
    ours = with_interval(gain, low, high, n, e.level)
    widened = f"interval widened for the largest of {len(rows)}:"
    ours = ours.replace("interval", widened, len(rows) > 1)
    return Finding(verdict, reason, f"{ours}; of {several(len(rows), 'condition')} {gained} gained, {lost} lost")


def significance_at(e: Evidence, n_train: int, significant: bool) -> Finding:
    """C3 to C5: the paper's test at one N, of the first split."""
    if not ((e.tests["n_train"] == n_train) & (e.tests["arm"] == "EXP+GEN")).any():
        return Finding("not attempted", f"N={n_train} with both arms is not in this profile")
    rows = e.of("EXP+GEN", "f1_hm").query("n_train == @n_train")
    if rows.empty:
        return Finding("cannot be compared", UNDEFINED)
    row = rows.iloc[0]
    gain, low, high, n = row["gain"], row["low"], row["high"], int(row["n"])
    ours = f"{with_interval(gain, low, high, n, e.level)}, {p_value(row['p'])}, after Holm {p_value(row['p_holm'])}"
    reason = f"split {row['split']}: {row['undefined'] or p_value(row['p'])}"
    verdict: Verdict = "cannot be compared"
    if n < PAPER_RUNS and not row["undefined"]:
        reason = f"{several(n, 'pair')} of runs; the paper has {PAPER_RUNS}, and fewer decide nothing"
    elif row["p"] < 1 - e.level:
        verdict = "reproduced" if significant and gain > 0 else "not reproduced"
        reason += f"; here it is conclusive, and a {'gain' if gain > 0 else 'loss'}"
    elif not row["undefined"]:
        excluded = high < PAPER_GAIN
        reason += f"; {PAPER_GAIN} is {'excluded' if excluded else 'as possible as no gain'}"
        verdict = "not reproduced" if excluded else "cannot be compared" if significant else "reproduced"
    return Finding(verdict, reason, ours)


def origin_of_gain(e: Evidence) -> Finding:
    """C6: classification minus detection gain, pair by pair."""
    own = e.pairs[e.pairs["arm"] == "EXP+GEN"]
    wide = own.pivot(index=[*CONDITION, "seed"], columns="measure", values="difference")
    excess = (wide["f1_class"] - wide["f1_detect"]).dropna() if {"f1_class", "f1_detect"} <= set(wide) else wide[:0]
    if excess.empty:
        return Finding("cannot be compared", "F1_class is undefined here (fewer than two classes): nothing to divide")
    tests = pd.DataFrame([{"split": k[0], **paired_t(d, e.level)} for k, d in excess.groupby(CONDITION)])
    tests["half"] = (tests["high"] - tests["low"]) / 2
    means = tests.groupby("split")[["mean", "half"]].agg(lambda column: column.mean(skipna=False))
    if len(means) < 2:
        return Finding("not attempted", f"the claim is about two splits; this run has {', '.join(means.index)}")
    means = means.iloc[:2]
    each = "; ".join(f"split {m.Index} {number(m.mean)}{_half(m.half)}" for m in means.itertuples())
    ours = f"gain in F1_class minus gain in F1_detect: {each}"
    half, claimed = float(means["half"].max(skipna=False)), means["mean"].to_numpy() * [1, -1]
    right, wrong = int((claimed > means["half"]).sum()), int((claimed < -means["half"]).sum())
    reason = f"clearly as claimed on {right} of 2 splits, clearly the other way on {wrong}"
    verdict: Verdict = "reproduced" if right == 2 else "partly" if right > wrong else "not reproduced"
    if not half <= WIDE:
        verdict, reason = "cannot be compared", f"classification minus detection gain is not known to ±{WIDE}"
    return Finding(verdict, reason, ours)


def quality_with_n(e: Evidence) -> Finding:
    """C7: absolute distances decide, as the paper claims it; what as many labelled micrographs give stands beside."""
    about = e.quality["measure"].map(ABOUT)
    table = e.quality[about.notna() & about.ne("is no copy")].dropna(subset=["value", "yardstick"])
    sizes = sorted(set(table["n_train"]))
    if len(sizes) < 2:
        return Finding("not attempted", f"needs two N; this run has {', '.join(map(str, sizes)) or 'none'}")
    away = (table["value"] - table["yardstick"]).abs()
    far = away.where(table["measure"].isin(LEVELS), table["value"])
    table = table.assign(far=far, beside=away, half=(table["high"] - table["low"]) / 2)
    counted = {}
    for distance in ("far", "beside"):
        means = table.pivot_table(index="measure", columns="n_train", values=distance)
        change = (means[sizes[0]] - means[sizes[-1]]).dropna()
        spread = table.groupby(["measure", "n_train"])[distance].agg(np.ptp).groupby("measure").max() / 2
        least = table.groupby("measure")["half"].mean().fillna(0).combine(spread, max).reindex(change.index)
        counted[distance] = int((change > least).sum()), int((change < -least).sum()), len(change)
    nearer, farther, n = counted["far"]
    verdict: Verdict = "partly" if nearer > farther else "not reproduced"
    if nearer > n / 2 and not farther:
        verdict = "reproduced"
    reason = "from N={} to N={}; beside as many labelled micrographs: {} of {} nearer, {} further"
    said = reason.format(sizes[0], sizes[-1], counted["beside"][0], n, counted["beside"][1])
    return Finding(verdict, said, f"of {n} measures {nearer} are nearer to labelled micrographs, {farther} further")


def oversampling(e: Evidence) -> Finding:
    """C8: EXP+RARE minus EXP+GEN in F1HM."""
    if not (e.tests["arm"] == "EXP+RARE").any():
        return Finding("not attempted", "this profile trains no EXP+RARE detectors")
    tests = e.of("EXP+RARE", "f1_hm")
    if tests.empty:
        return Finding("cannot be compared", UNDEFINED)
    found = {_no_gain(test, e.margin): test for test in tests.itertuples()}
    order: tuple[Verdict, ...] = ("not reproduced", "cannot be compared", "partly", "reproduced")
    (verdict, reason), test = min(found.items(), key=lambda item: order.index(item[0][0]))
    ours = with_interval(test.gain, test.low, test.high, test.n, e.level)
    here = (e.tests["split"] == test.split) & (e.tests["n_train"] == test.n_train) & (e.tests["arm"] == "EXP+RARE")
    ranked = e.tests[here & e.tests["measure"].str.match("ap50_|f1_class$|f1_detect$")].dropna(subset="gain")
    beside = ", ".join(f"{row.measure} {signed(row.gain)} ({p_value(row.p)})" for row in ranked.itertuples())
    where = f"split {test.split}, N={test.n_train}, of {several(len(tests), 'condition')}"
    return Finding(verdict, f"{where}: {reason}; beside it {beside or 'nothing defined'}", ours)


def _no_gain(test: Any, margin: float) -> tuple[Verdict, str]:
    if test.undefined:
        return "cannot be compared", test.undefined
    if -margin <= test.low and test.high <= margin:
        return "reproduced", "the whole interval lies within the margin: no gain"
    if test.low > 0 or test.high <= margin:
        return ("not reproduced", "a gain") if test.low > 0 else ("partly", "no gain beyond the margin, maybe a loss")
    return "cannot be compared", "the interval holds no gain and one beyond the margin alike"


def best_thresholds(e: Evidence) -> Finding:
    """C9. Runs of one split, N and seed are a pair, so that their difference is known better than either."""
    wide = e.best.pivot(index=[*CONDITION, "seed"], columns="arm", values="confidence")
    wide = wide.reindex(columns=["EXP", "EXP+GEN"]).dropna()
    if wide.empty:
        return Finding("cannot be compared", "no best threshold for both arms")
    (exp, gen), spread = wide.mean(), float(np.nanmax([e.step, wide.std().max()]))
    moved = paired_t(wide["EXP+GEN"] - wide["EXP"], e.level)
    change = with_interval(moved["mean"], moved["low"], moved["high"], len(wide), e.level)
    change = change.replace(")", f" pairs in {several(wide.groupby(CONDITION).ngroups, 'condition')})")
    ours = f"EXP {exp:.2f}, EXP+GEN {gen:.2f}, paired difference {change}"
    if len(wide) < PAPER_RUNS:
        return Finding("cannot be compared", f"too few to tell how far it moves: {several(len(wide), 'pair')}", ours)
    if spread > 0.15:
        reason = f"it moves by ±{spread:.2f} between runs; the paper's arms differ by 0.15"
        return Finding("cannot be compared", reason, ours)
    near = spread + 1e-9  # sums of steps of the sweep are not exact
    near_exp, near_gen = abs(exp - 0.8) <= near, max(0.6 - gen, gen - 0.7) <= near
    falls = moved["mean"] < 0 and not moved["high"] >= 0  # no interval: all fall by as much
    parts = {"EXP near 0.8": near_exp, "EXP+GEN near 0.6 to 0.7": near_gen, "EXP+GEN below EXP": falls}
    return _of_three(parts, ours)


def level_at_50(e: Evidence) -> Finding:
    """C10: means over the splits."""
    rows = e.of("EXP+GEN", "f1_hm").query("n_train == 50")
    if rows.empty:
        return Finding("not attempted", "N=50 is not in this profile, or F1HM is undefined there")
    pairs = e.pairs.query("arm == 'EXP+GEN' and measure == 'f1_hm' and n_train == 50")
    levels = pd.DataFrame([paired_t(own, e.level) for _, own in pairs.groupby("split")["base"]])
    level, share = float(levels["mean"].mean()), float(rows["share_of_left"].mean())
    half = float(((levels["high"] - levels["low"]) / 2).mean(skipna=False))
    share_half = float(((rows["high"] - rows["low"]) / 2 / (1 - rows["base"])).mean(skipna=False))
    ours = f"F1HM {level:.3f}{_half(half)}, {signed(100 * share, 1)} % of what is left, n = {int(rows['n'].sum())}"
    if not (half <= WIDE and share_half <= WIDE):
        return Finding("cannot be compared", f"not known to ±{WIDE}, the paper's ranges", ours)
    in_level, in_share = max(0.70 - level, level - 0.75) <= half, max(0.03 - share, share - 0.08) <= share_half
    parts = {"level of EXP": in_level, "share of what is left": in_share, "a gain above zero": share > share_half}
    return _of_three(parts, ours)


def patches_per_condition(e: Evidence) -> Finding:
    """C11."""
    trained = e.patches.assign(n=e.patches["n"] * e.patches["symmetries"])
    found = trained.groupby("source")["n"].agg(["min", "max"])
    if not {"labelled", "generated"} <= set(found.index):
        return Finding("not attempted", "this run has not patches of both")
    ours = (f"{of} {' to '.join(dict.fromkeys(f'{n:,.0f}' for n in ends))}" for of, *ends in found.itertuples())
    same = (trained["n"] - 10_000).abs().max() <= 1000
    reason = "as many as in the paper, of both" if same else "this profile makes other numbers"
    return Finding("reproduced" if same else "cannot be compared", reason, ", ".join(ours))


def gpu_hours(e: Evidence) -> Finding:
    """C12: schedules differ, so half of the paper's hours is the tolerance; wall times hold the judging of images."""
    hours, made = e.hours.dropna(subset=["training", "total"]), e.patches.query("source == 'generated'")["n"]
    if hours.empty or made.empty:
        return Finding("not attempted", "no training of a model and its images was timed in this run")
    training, images = hours["training"].mean(), made.mean()
    total = training + (hours["total"].mean() - training) * 10_000 / images
    device = ", ".join(sorted(set(hours["device"])))
    ours, reason = f"{number(training)} and {number(total)} h on {device}", "wall times of stages"
    if images < 9000:
        reason += f"; the images' share is scaled from {images:,.0f} to 10,000; not the paper's schedule"
    if images < 9000 or not hours["device"].str.contains("V100").all():
        return Finding("cannot be compared", reason, ours)
    near = abs(training - 7) <= 3.5 and abs(total - 15) <= 7.5
    return Finding("reproduced" if near else "not reproduced", reason, ours)


def _half(width: float) -> str:
    """Half the width of a mean's interval, as it stands behind the mean."""
    return f" ± {number(width)}" if np.isfinite(width) else " (no interval)"


def several(n: int, what: str) -> str:
    """A number of things: "1 pair", "3 pairs"."""
    return f"{n} {what}{'s' * (n != 1)}"


def _of_three(parts: dict[str, bool], ours: str) -> Finding:
    """Verdict on a claim of three parts: all hold, two, or fewer."""
    verdict: Verdict = {3: "reproduced", 2: "partly"}.get(sum(parts.values()), "not reproduced")
    held, other = (", ".join(name for name, holds in parts.items() if holds == way) for way in (True, False))
    reason = f"{sum(parts.values())} of its 3 parts as in the paper" + f": {held}" * bool(held)
    return Finding(verdict, reason + f"; not: {other}" * bool(other), ours)
