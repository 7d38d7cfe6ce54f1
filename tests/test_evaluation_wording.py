"""Numbers in prose."""

from __future__ import annotations

import doctest
import math

import pytest

from companion.evaluation import wording


def test_the_examples_in_the_docstrings():
    result = doctest.testmod(wording)
    assert result.attempted >= 3 and result.failed == 0


@pytest.mark.parametrize(
    ("value", "low", "high", "n", "text"),
    [
        (0.123456, 0.1, 0.147, 4, "0.123 (95 % interval 0.100 to 0.147, n = 4)"),
        (-0.0004, -0.002, 0.0012, 3, "-0.0004 (95 % interval -0.0020 to 0.0012, n = 3)"),
        (12.3, 10.1, 14.5, None, "12.3 (95 % interval 10.1 to 14.5)"),
        (math.nan, 0, 1, 1, "undefined (no interval, n = 1)"),
        (0.5, 0.5, 0.5, 2, "0.500 (95 % interval 0.500 to 0.500, n = 2)"),
    ],
)
def test_digits_follow_the_interval(value, low, high, n, text):
    assert wording.with_interval(value, low, high, n) == text


def test_small_and_large_numbers():
    assert wording.number(0) == "0" and wording.number(1e-12) == "1.0e-12"
    assert wording.p_value(0.0321) == "p = 0.032" and wording.p_value(math.nan) == "p undefined"
