"""What a claim is judged by and what a rule finds, and the rules about images and cost.

A rule is a function of a run's evidence and of a factor on its tolerance; no verdict is written by hand. What a
run did not try is "not attempted"; what it tried but cannot decide (too few runs, an undefined score, another
device) is "cannot be compared"; both say why.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import pandas as pd

from companion.evaluation.wording import number

Verdict = Literal["reproduced", "partly", "not reproduced", "not attempted", "cannot be compared"]


@dataclass(frozen=True)
class Evidence:
    """What the claims are judged by.

    Attributes
    ----------
    gains : sizes.parquet, at each arm's best threshold (`significance.gain_table`)
    pairs : scores of both arms of the paper, paired by seed, at each arm's best threshold
        (`significance.paired_scores`)
    tests : rows of significance.json at each arm's best threshold
    best : best confidence per split, n_train, arm and seed
    rare : paired differences EXP+RARE minus EXP+GEN of F1HM: split, n_train, seed, difference
    rare_status : whether the oversampling trial ran, in words (imbalance.json)
    quality : rows of every quality.parquet, with split, n_train and generator
    patches : training patches, symmetries counted: split, n_train, source ("real" or "generated"), n
    hours : split, n_train, generator, device, training (of the LDM), total (and generation with it), h
    step : distance of the swept confidences
    margin : differences of F1 within it count as none
    level : of every interval
    generator_per_seed : whether each detector seed has a generator of its own
    """

    gains: pd.DataFrame
    pairs: pd.DataFrame
    tests: pd.DataFrame
    best: pd.DataFrame
    rare: pd.DataFrame
    rare_status: str
    quality: pd.DataFrame
    patches: pd.DataFrame
    hours: pd.DataFrame
    step: float
    margin: float
    level: float
    generator_per_seed: bool = False


@dataclass(frozen=True)
class Finding:
    """What a rule found: value with interval, tolerance, verdict and the reason for it in words."""

    verdict: Verdict
    reason: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    tolerance: float | None = None
    tolerance_from: str = "none: nothing to compare"
    shown: str = ""


Rule = Callable[[Evidence, float], Finding]


def absent(reason: str) -> Finding:
    """What was not tried, and why."""
    return Finding("not attempted", reason)


def unclear(reason: str, **found: Any) -> Finding:
    """What was tried and cannot be decided, and why."""
    return Finding("cannot be compared", reason, **found)


def judge_image_quality(e: Evidence, factor: float) -> Finding:
    """C1: generated images against the yardstick of each quality measure.

    A measure reaches its yardstick when its interval holds it. A distance whose yardstick is that between two sets
    of real images is also reached from below: closer than real images are to each other.
    """
    judged = e.quality.dropna(subset=["value", "yardstick"])
    if judged.empty:
        return absent("no quality measure with a yardstick was computed")
    value, yardstick = judged["value"], judged["yardstick"]
    low, high = (value + factor * (judged[side] - value).fillna(0) for side in ("low", "high"))
    distance = judged.get("yardstick_of", pd.Series("", index=judged.index)).str.contains("against")
    reached = ((low <= yardstick) & (yardstick <= high)) | (distance & (value <= yardstick))
    n, good = len(judged), int(reached.sum())  # of every measure of every generator
    verdict: Verdict = "reproduced" if good == n else "partly" if good else "not reproduced"
    generators = len(judged[["split", "n_train", "generator"]].drop_duplicates())
    always = reached.groupby(judged["measure"], sort=False).all()
    names = ", ".join(always.index[always]) or "none"
    reason = f"measures that reach what real images give, measured the same way, with every generator: {names}"
    return Finding(verdict, reason, good / n, n=n, tolerance=factor, tolerance_from="each measure's own interval",
                   shown=f"{good} of {n} (measures of {generators} generator(s))")  # fmt: skip


def judge_quality_with_n(e: Evidence, factor: float) -> Finding:
    """C7: does the distance of each measure from its yardstick fall as N rises?

    Where a condition has several generators their mean counts, and a change has to exceed what generators of one N
    differ in as well as the measure's own interval.
    """
    sizes = sorted(set(e.quality["n_train"])) if len(e.quality) else []
    if len(sizes) < 2:
        return absent(f"needs at least two N; this run has {', '.join(map(str, sizes)) or 'none'}")
    table = e.quality.assign(
        distance=(e.quality["value"] - e.quality["yardstick"]).abs(), half=(e.quality["high"] - e.quality["low"]) / 2
    )
    distances = table.pivot_table(index="measure", columns="n_train", values="distance")
    change = (distances[sizes[0]] - distances[sizes[-1]]).dropna()
    if change.empty:
        return absent("no quality measure with a yardstick was computed at the smallest and the largest N")
    own = table.groupby("measure")["half"].mean().reindex(change.index).fillna(0)
    repeated = table.groupby(["measure", "split", "n_train"])["distance"].agg(["min", "max", "count"])
    spread = ((repeated["max"] - repeated["min"]) / 2).groupby("measure").max().reindex(change.index).fillna(0)
    least = factor * own.combine(spread, max)
    better, worse = int((change > least).sum()), int((change < -least).sum())
    verdict: Verdict = "partly" if better else "not reproduced"
    if better > len(change) / 2 and not worse:
        verdict = "reproduced"
    moved = f"{better} of {len(change)} measures come closer to real images, {worse} go away"
    generators = int(repeated["count"].max())
    return Finding(
        verdict, f"from N={sizes[0]} to N={sizes[-1]}, {generators} generator(s) each: {moved}",
        better / len(change), n=len(change), tolerance=factor,
        tolerance_from="half widths of each interval" + (
            ", or of the range of the generators of one N where that is wider" if generators > 1 else ""
        ), shown=f"{better} of {len(change)} measures",
    )  # fmt: skip


def judge_patches(e: Evidence, factor: float) -> Finding:
    """C11: patches per condition, real and generated alike."""
    found = {source: own["n"] for source, own in e.patches.groupby("source", sort=False)}
    if missing := {"real", "generated"} - set(found):
        return absent(f"no {' and '.join(sorted(missing))} patches were found")
    shown = ", ".join(
        f"{source} {n.min()}" + (f" to {n.max()}" if n.max() > n.min() else "") for source, n in found.items()
    )
    near = [source for source, n in found.items() if (n - 10_000).abs().max() <= 1000 * factor]
    finding = Finding(
        "not attempted", f"this profile makes other numbers of patches per condition: {shown}",
        float(found["generated"].min()), n=len(e.patches), tolerance=1000 * factor,
        tolerance_from="a tenth of 10,000", shown=shown,
    )  # fmt: skip
    if len(near) == 2:
        return replace(finding, verdict="reproduced", reason="as many as in the paper, real and generated alike")
    if near:
        reason = f"as many as in the paper of the {near[0]} ones only: {shown}"
        return replace(finding, verdict="partly", reason=reason)
    return finding


def judge_hours(e: Evidence, factor: float) -> Finding:
    """C12: GPU hours of training one LDM (7), and of training and generating 10,000 images (15)."""
    if e.hours.empty:
        return absent("no LDM was trained in this run")
    training, total = (float(e.hours[name].mean()) for name in ("training", "total"))
    devices = ", ".join(sorted(set(e.hours["device"].astype(str))))
    found = Finding(
        "cannot be compared", f"measured on {devices}; the paper's hours are of a V100", total, n=len(e.hours),
        shown=f"training {number(training)} h, with generation {number(total)} h", tolerance=7.5 * factor,
        tolerance_from="half of the paper's hours (7.5 h of 15, 3.5 h of 7): schedules differ; wall times of the "
        "stages, measures of image quality included",
    )  # fmt: skip
    made = e.patches.loc[e.patches["source"] == "generated", "n"]
    if made.empty or made.max() < 9000:
        return replace(found, verdict="not attempted", reason=f"not the paper's schedule; {found.reason}")
    if "V100" not in devices:
        return found
    near = [name for name, hours, paper in (("training", training, 7), ("training with generation", total, 15))
            if abs(hours - paper) <= paper / 2 * factor]  # fmt: skip
    grades: tuple[Verdict, ...] = ("not reproduced", "partly", "reproduced")
    reason = f"on the paper's kind of GPU; within the tolerance: {' and '.join(near) or 'neither'}"
    return replace(found, verdict=grades[len(near)], reason=reason)
