"""Conditions (split and N) of a study: arms are compared inside one of them, never over a pool of all.

Arms need not exist at every N: the mean of an arm over all its runs is another mixture of N and splits than that of
the next arm.
"""

from __future__ import annotations

import pandas as pd

from companion.config.profile import Profile
from companion.places import split_name

Condition = tuple[str, int]  # split (as text) and N


def headline_condition(profile: Profile) -> Condition:
    """The condition that figures show: the profile's first split and its largest N."""
    return split_name(profile.splits[0]), max(profile.sizes)


def at_condition(table: pd.DataFrame, condition: Condition) -> pd.DataFrame:
    """Rows of `table` (columns split, n_train and more) of one condition."""
    split, n_train = condition
    return table[(table["split"].astype(str) == split) & (table["n_train"] == n_train)]


def condition_name(condition: Condition) -> str:
    """How titles and captions name a condition, e.g. 'split 1, N = 50'."""
    return f"split {condition[0]}, N = {condition[1]}"
