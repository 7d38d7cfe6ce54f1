"""The claims of the paper: what it says, where, by which rule this run is held against it, and the verdicts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import pandas as pd

from companion.evaluation import verdicts
from companion.evaluation.verdicts import Evidence, Finding

SIGNIFICANT = (
    "The paper's paired t-test of F1HM, EXP+GEN minus EXP, on the first split. "
    "Reproduced: p < 0.05 and a gain. Not reproduced: p < 0.05 and a loss, or an interval that ends below 0.02. "
    "Cannot be compared: fewer than 4 pairs, or an interval that holds both zero and 0.02."
)


class Claim(NamedTuple):
    """One row of the table."""

    id: str
    claim: str
    paper: str
    where: str
    notebook: str  # shows the values that it is judged by
    judge: Callable[[Evidence], Finding]
    rule: str  # when the claim counts as reproduced, in words; `judge` does what it says


CLAIMS = (
    Claim(
        "C1", "a mask-conditioned LDM makes realistic STEM images from simulated masks, without manual labels",
        "shown in pictures", "Figs 1, 2", "05_generated_images", verdicts.image_quality,
        "Every measure beside its yardstick, the same of labelled micrographs; both are resampled, and the interval is "
        "that of the difference. A distance is reached where the interval comes down to zero; a level (contrast, share "
        "darker, beside training micrographs) where it comes within 15 % of the yardstick and is no wider than it; the "
        "classifier's AUC up to 0.1 above; the distance to the nearest training patch where it comes up to zero. "
        "Reproduced: every measure of every model is reached. Partly: more than half of those of following the mask, "
        "of looking real and of not being a copy, each. Else not reproduced.",
    ),
    Claim(
        "C2", "generated data raise F1HM over EXP", "by up to 0.02", "Figs 3, 5", "08_sizes_and_splits",
        verdicts.largest_gain,
        "The largest mean gain of all conditions, its interval widened for being picked (Bonferroni). Reproduced: "
        "the interval lies above zero and holds 0.02, and no condition lost. Partly: above zero without 0.02, or more "
        "conditions gained than lost (intervals beside zero). Not reproduced: as many lost or more, whatever the "
        "interval, or one that holds zero and ends below 0.02. Cannot be compared: wider than ±0.02, or it holds both.",
    ),
    *(
        Claim(name, f"the gain at N={n_train} is significant", f"{p} (paired t-test, split 1, 4 runs)", "text",
              "09_significance", partial(verdicts.significance_at, n_train=n_train, significant=True), SIGNIFICANT)
        for name, n_train, p in (("C3", 50, "p = 0.0008"), ("C4", 100, "p = 0.0013"))
    ),
    Claim(
        "C5", "the gain at N=10 is not conclusive", "p = 0.069 (same test)", "text", "09_significance",
        partial(verdicts.significance_at, n_train=10, significant=False),
        "The same test. Reproduced: its interval holds both zero and 0.02. Not reproduced: it excludes one of them. "
        "Cannot be compared: fewer than 4 pairs.",
    ),
    Claim(
        "C6", "the gain comes mostly from classification on split 1 and from detection on split 2", "read from bars",
        "Fig 4", "08_sizes_and_splits", verdicts.origin_of_gain,
        "Gain in F1_class minus gain in F1_detect, pair by pair, mean over N, on the run's first two splits. "
        "Reproduced: beyond its interval's half width as claimed on both. Partly: on one, and not the other way on the "
        "other. Else not reproduced. Cannot be compared: known to no better than ±0.05.",
    ),
    Claim(
        "C7", "image quality rises with the number of real training images", "N = 10, 50, 100, shown in pictures",
        "Fig 2", "05_generated_images", verdicts.quality_with_n,
        "A measure comes nearer where its distance from labelled micrographs falls from the smallest to the largest N "
        "by more than its interval's half width and than models of one N differ. Reproduced: more than half come "
        "nearer and none further. Partly: more come nearer than get further. Else not reproduced. Beside it, in the "
        "reason, the same count of distances less what as many labelled micrographs give.",
    ),
    Claim(
        "C8", "oversampling the rare class with generated data gives no measurable gain", "no gain", "text",
        "10_class_imbalance", verdicts.oversampling,
        "F1HM of EXP+RARE minus EXP+GEN in each condition, against the margin of equivalence. Reproduced: the interval "
        "lies within the margin. Not reproduced: it lies above zero and not within. Partly: it ends below the margin "
        "(no gain, perhaps a loss). Cannot be compared: it holds zero and what is above the margin. The least "
        "favourable condition decides. Beside it other scores, and the AP50 of each class, which no threshold shifts.",
    ),
    Claim(
        "C9", "the best confidence threshold falls, from about 0.8 to 0.6 to 0.7, when generated data are added",
        "about 0.8 for EXP, 0.6 to 0.7 for EXP+GEN", "Fig 3", "07_thresholds", verdicts.best_thresholds,
        "The threshold that is best on test, of every run. Three parts: EXP near 0.8, EXP+GEN near 0.6 to 0.7 (means; "
        "tolerance: the standard deviation of runs, at least a step of the sweep), EXP+GEN below EXP (the interval of "
        "the paired differences lies below zero). Reproduced: all three. Partly: two. Cannot "
        "be compared: fewer than 4 pairs, or a tolerance above 0.15.",
    ),
    Claim(
        "C10", "EXP at N=50 leaves room, of which generated data take a little",
        "F1HM about 0.70 to 0.75; gains are 3 to 8 % of what is left", "Fig 5", "08_sizes_and_splits",
        verdicts.level_at_50,
        "Three parts: F1HM of EXP in the paper's range, the share of what is left in the paper's range (each within "
        "its interval's half width), that share above zero by more than it. Reproduced: all three. Partly: two. Cannot "
        "be compared: either is known to no better than ±0.05.",
    ),
    Claim(
        "C11", "patches per condition, real and generated alike", "about 10,000", "text", "05_generated_images",
        verdicts.patches_per_condition,
        "Reproduced: every condition has 9,000 to 11,000 of both, symmetries counted. Else cannot be compared.",
    ),
    Claim(
        "C12", "training one LDM and generating 10,000 images", "about 7 and 15 V100 GPU hours", "text",
        "04_latent_diffusion", verdicts.gpu_hours,
        "Reproduced: both within half of the paper's hours, on a V100. Cannot be compared: another device, or fewer "
        "than 9,000 images, whose hours are scaled to 10,000.",
    ),
)  # fmt: skip


def judge_claims(e: Evidence) -> pd.DataFrame:
    """One row per claim, C1 to C12: what the paper says and where, the rule, verdict, reason and ours in words."""
    return pd.DataFrame([claim._asdict() | claim.judge(e)._asdict() for claim in CLAIMS]).drop(columns="judge")


def sensitivity(judged: Mapping[str, pd.DataFrame]) -> list[str]:
    """A sentence for each claim: by which other way of reading the same runs its verdict is the same, and else what.

    `judged` are tables of `judge_claims` by the way of reading, e.g. "at 0.5"; the first is what the verdict is of.
    """
    (_, own), *others = judged.items()
    said = []
    for k, verdict in enumerate(own["verdict"]):
        same = [way for way, table in others if table["verdict"][k] == verdict]
        parts = [f"Same verdict {', '.join(same)}"] if same else []
        parts += [f"{way}: {table['verdict'][k]}" for way, table in others if way not in same]
        if own["id"][k] in ("C1", "C7", "C11", "C12"):  # of images, patches and hours
            parts = ["No threshold and no label of the test enters"] * bool(others)
        said.append("; ".join(parts) or "This run can be read in one way alone")
    return said
