"""Words for scores: columns that name a run, names of measures and conditions, numbers as prose shows them.

A condition is a split and an N. Arms are compared inside one, never over a mixture of all: arms need not exist at every
N, so the mean of an arm over all its runs is another mixture than that of the next arm.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

CONDITION = ["split", "n_train"]  # columns of every table
ARM = [*CONDITION, "arm"]
RUN = [*ARM, "seed"]
READ = ["choice", "against"]  # how the threshold was chosen, and what is right: columns of chosen.parquet
NAMES = {"f1_hm": "F1HM", "f1_detect": "F1_detect", "f1_class": "F1_class", "map50": "mAP50"}  # as text spells them
F1 = ("f1_detect", "f1_class", "f1_hm")


def named_classes(classes: Sequence[str]) -> dict[str, str]:
    """Names of the scores of one class, by their columns.

    >>> named_classes(["loop"])
    {'f1_class_1': 'f1_class_loop', 'ap50_1': 'ap50_loop'}
    """
    scores = ("f1_class", "ap50")
    return {f"{score}_{code}": f"{score}_{name}" for code, name in enumerate(classes, 1) for score in scores}


def at_condition(table: pd.DataFrame, condition: tuple[str, int]) -> pd.DataFrame:
    """Rows of `table` (columns split, n_train and more) of one split and N."""
    return table[(table["split"] == condition[0]) & (table["n_train"] == condition[1])]


def condition_name(condition: tuple[str, int]) -> str:
    """How titles and captions name a condition, e.g. 'split 1, N = 50'."""
    return f"split {condition[0]}, N = {condition[1]}"


def number(value: float | None) -> str:
    """A number with two significant digits, without an exponent where it can be read without one.

    >>> number(0.02137), number(-0.5), number(1234.5), number(None)
    ('0.021', '−0.50', '1234', 'undefined')
    """
    if value is None or not math.isfinite(value):
        return "undefined"
    decimals = max(0, 1 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:.{decimals}f}".replace("-", "−") if decimals <= 8 else f"{value:.1e}"


def signed(change: float, decimals: int = 3) -> str:
    """A change with its sign.

    >>> signed(0.0214), signed(-2.75, 1)
    ('+0.021', '−2.8')
    """
    return f"{change:+.{decimals}f}".replace("-", "−")


def with_interval(
    value: float | None, low: float | None, high: float | None, n: int | None = None, level: float = 0.95
) -> str:
    """A value with its interval, rounded to two significant digits of the interval's half width.

    >>> with_interval(0.02137, 0.0102, 0.0325, 4)
    '0.021 (95 % interval 0.010 to 0.033, n = 4)'
    >>> with_interval(0.1, None, None, 1)
    '0.10 (no interval, n = 1)'
    """
    runs = "" if n is None else f", n = {n}"
    if low is None or high is None or number(low) == "undefined" or number(value) == "undefined":
        return f"{number(value)} (no interval{runs})"
    half = (high - low) / 2
    decimals = 3 if half <= 0 else min(8, max(0, 1 - math.floor(math.log10(half))))
    shown, lowest, highest = (f"{v + 0.0:.{decimals}f}" for v in (value, low, high))
    return f"{shown} ({100 * level:g} % interval {lowest} to {highest}{runs})".replace("-", "−")


def p_value(p: float | None) -> str:
    """A p-value as prose shows it.

    >>> p_value(0.00081), p_value(1e-6), p_value(None)
    ('p = 0.00081', 'p < 0.0001', 'p undefined')
    """
    if p is None or math.isnan(p):
        return "p undefined"
    return "p < 0.0001" if p < 0.0001 else f"p = {number(p)}"
