"""Matching rules: hand-computed cases, and a plain reference that does one threshold at a time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.errors import CompanionError
from companion.evaluation.matching import MATCHINGS, kept, match, match_once, score_order


def plain_match(overlap: np.ndarray, n_kept: int, iou: float, rule: str) -> dict[int, int]:
    """{truth: prediction} by the rule as one would say it, one threshold at a time."""
    pairs: dict[int, int] = {}
    if rule == "truth-greedy":
        for truth in range(len(overlap)):
            free = [p for p in range(n_kept) if p not in pairs.values() and overlap[truth, p] >= iou]
            if free:
                pairs[truth] = max(free, key=lambda p: overlap[truth, p])
    else:
        for prediction in range(n_kept):
            free = [t for t in range(len(overlap)) if t not in pairs and overlap[t, prediction] >= iou]
            if free:
                pairs[max(free, key=lambda t: overlap[t, prediction])] = prediction
    return pairs


matrices = st.tuples(st.integers(0, 4), st.integers(0, 5), st.integers(0, 2**31)).map(
    lambda s: np.random.default_rng(s[2]).choice([0.0, 0.2, 0.45, 0.5, 0.6, 0.8], size=s[:2])
)
IOU = (0.1, 0.5, 0.7)


@settings(deadline=None)
@given(matrices)
@pytest.mark.parametrize("rule", ["truth-greedy", "score-greedy"])
def test_equals_the_plain_reference_at_every_threshold(rule, overlap):
    prefixes = np.arange(overlap.shape[1] + 1)
    fast = match(overlap, prefixes, IOU, rule)
    assert fast.shape == (len(IOU), len(prefixes), len(overlap))
    for i, c in itertools.product(range(len(IOU)), range(len(prefixes))):
        got = {t: int(p) for t, p in enumerate(fast[i, c]) if p >= 0}
        assert got == plain_match(overlap, c, IOU[i], rule)


def test_the_two_rules_differ_where_defects_crowd():
    #              prediction 0 (best score)  1
    overlap = np.array([[0.6, 0.5], [0.8, 0.0]])
    assert match(overlap, np.array([2]), [0.5], "truth-greedy").tolist() == [[[0, -1]]]  # first truth takes 0
    assert match(overlap, np.array([2]), [0.5], "score-greedy").tolist() == [[[1, 0]]]  # 0 takes the second truth
    assert match(overlap[:, :1], np.array([1]), [0.5], "score-greedy").tolist() == [[[-1, 0]]]


def test_equality_with_a_threshold_counts():
    assert kept(np.array([0.9, 0.7, 0.2]), [0.7, 0.9, 0.95]).tolist() == [2, 1, 0]
    assert kept(np.array([0.7], dtype=np.float32), [0.7]).tolist() == [1]
    assert match(np.array([[0.5]]), np.array([1]), [0.5, 0.51]).tolist() == [[[0]], [[-1]]]


@pytest.mark.parametrize("rule", MATCHINGS)
@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (2, 0)])
def test_nothing_to_match(rule, shape):
    assert (match(np.zeros(shape), np.array([0, shape[1]]), [0.5], rule) == -1).all()


def test_order_is_that_of_the_scores_and_never_of_the_file():
    scores, boxes = np.array([0.5, 0.9, 0.5]), np.array([[5, 0, 9, 9], [1, 1, 2, 2], [0, 0, 9, 9]])
    assert score_order(scores, boxes).tolist() == [1, 2, 0]
    assert match_once(np.array([[0.6, 0.6, 0.2], [0.5, 0.0, 0.7]]), scores, boxes, 0.5).tolist() == [1, 2]
    assert match_once(np.zeros((2, 0)), scores[:0], boxes[:0], 0.5).tolist() == [-1, -1]


def test_an_unknown_rule_names_the_nearest():
    with pytest.raises(CompanionError, match="did you mean 'truth-greedy'"):
        match(np.zeros((1, 1)), np.array([1]), [0.5], "truth_greedy")
