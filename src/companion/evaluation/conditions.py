"""Conditions (split and N) of a run: arms are compared inside one of them, never over a mixture of all.

Arms need not exist at every N: the mean of an arm over all its runs is another mixture of N and splits than that of
the next arm.
"""

from __future__ import annotations

import pandas as pd

CONDITION = ["split", "n_train"]  # columns of every table
RUN = [*CONDITION, "arm", "seed"]


def at_condition(table: pd.DataFrame, condition: tuple[str, int]) -> pd.DataFrame:
    """Rows of `table` (columns split, n_train and more) of one split and N."""
    return table[(table["split"] == condition[0]) & (table["n_train"] == condition[1])]


def condition_name(condition: tuple[str, int]) -> str:
    """How titles and captions name a condition, e.g. 'split 1, N = 50'."""
    return f"split {condition[0]}, N = {condition[1]}"
