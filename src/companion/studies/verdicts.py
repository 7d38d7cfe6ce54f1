"""What a difference between detectors means, and where it means nothing because one of them hardly detects."""

from __future__ import annotations

import pandas as pd

from companion.evaluation.wording import number
from companion.studies.study import Study

LEARNT = 0.5  # F1_detect below which detectors are too poor for differences between them to mean anything


def reached(reference: pd.DataFrame) -> pd.Series:
    """Mean F1_detect of each arm, from the rows of `study.score_arm` of a reference condition against the truth."""
    return reference.groupby("arm", sort=False)["f1_detect"].mean()


def standing(study: Study, reference: pd.DataFrame) -> str:
    """Sentences on how far the detectors of every arm have learnt, and what differences between them can mean.

    Parameters
    ----------
    reference : rows of `study.score_arm` of the condition that others are compared with, all arms, against the truth
    """
    own, scores = study.profile.extensions, reached(reference)
    said = (
        f"After {own.detector_steps} steps on {int(reference['real'].iloc[0])} real patches, detectors of the "
        "condition that the others are compared with reach an F1_detect of "
        f"{' and '.join(f'{number(score)} ({arm})' for arm, score in scores.items())} (mean of {len(own.seeds)} seeds, "
        "against the truth)."
    )
    if scores.min() >= LEARNT:
        return f"{said} Each condition here has one generator, so the intervals speak of the detector seeds alone."
    return (
        f"{said} Detectors below {LEARNT:g} hardly detect and have little to lose, so what is compared with those of "
        f"{' and '.join(scores.index[scores < LEARNT])} gets no verdict; the numbers show that the study runs."
    )


def verdict(low: float, high: float, positive: str, negative: str, reference: pd.DataFrame) -> str:
    """`positive` or `negative` where an interval lies on one side of zero, else "undecided".

    Parameters
    ----------
    reference : rows of `study.score_arm` that the difference starts from; "no verdict" where one of their arms is
        below `LEARNT`
    """
    if not reached(reference).min() >= LEARNT:
        return "no verdict"
    return positive if low > 0 else negative if high < 0 else "undecided"
