"""Annotation bias: what detectors lose by learning from an annotator's labels instead of the exact truth."""

from __future__ import annotations

import pandas as pd

from companion.studies.comparison import paired_effects


def effects(scores: pd.DataFrame, level: float) -> pd.DataFrame:
    """What an annotator's errors cost each arm, and whether generated patches pass on more of them.

    Parameters
    ----------
    scores : against the exact truth, a row per detector: labels ("exact" or "annotator", which it learnt from), arm,
        seed, f1_detect, f1_class, f1_hm, recall

    Returns
    -------
    quantity (cost of EXP, cost of EXP+GEN: exact minus annotator, paired by seed; amplification: the second minus the
    first), measure, mean, low, high, n
    """
    table = scores.assign(column=scores["labels"] + " " + scores["arm"])
    cost = {arm: lambda wide, arm=arm: wide[f"exact {arm}"] - wide[f"annotator {arm}"] for arm in ("EXP", "EXP+GEN")}
    return pd.DataFrame(paired_effects(table, {
        "cost, EXP": cost["EXP"], "cost, EXP+GEN": cost["EXP+GEN"],
        "amplification": lambda wide: cost["EXP+GEN"](wide) - cost["EXP"](wide),
    }, level))  # fmt: skip
