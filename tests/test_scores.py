"""Matching and scores: by hand, undefined cases, and equality with one-threshold-at-a-time counting."""

import itertools
from functools import partial

import numpy as np
import pandas as pd
import pytest
from conftest import ellipse_patches
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from companion.errors import CompanionError
from companion.evaluation.formats import BOX, Truth, truth_of
from companion.evaluation.matching import kept, match, match_once, score_order
from companion.evaluation.scores import count, pooled, tabulate
from companion.geometry import box_iou


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


@given(matrices)
@pytest.mark.parametrize("rule", ["truth-greedy", "score-greedy"])
def test_equals_the_plain_reference_at_every_threshold(rule, overlap):
    prefixes = np.arange(overlap.shape[1] + 1)
    fast = match(overlap, prefixes, IOU, rule)
    assert fast.shape == (len(IOU), len(prefixes), len(overlap))
    for i, c in itertools.product(range(len(IOU)), range(len(prefixes))):
        got = {t: int(p) for t, p in enumerate(fast[i, c]) if p >= 0}
        assert got == plain_match(overlap, c, IOU[i], rule)


def test_the_two_rules_differ_where_defects_crowd_and_an_unknown_one_names_the_nearest():
    #              prediction 0 (best score)  1
    overlap = np.array([[0.6, 0.5], [0.8, 0.0]])
    assert match(overlap, np.array([2]), [0.5], "truth-greedy").tolist() == [[[0, -1]]]  # first truth takes 0
    assert match(overlap, np.array([2]), [0.5], "score-greedy").tolist() == [[[1, 0]]]  # 0 takes the second truth
    assert match(overlap[:, :1], np.array([1]), [0.5], "score-greedy").tolist() == [[[-1, 0]]]
    with pytest.raises(CompanionError, match="did you mean 'truth-greedy'"):
        match(overlap, np.array([1]), [0.5], "truth_greedy")


def test_equality_with_a_threshold_counts():
    assert kept(np.array([0.9, 0.7, 0.2]), [0.7, 0.9, 0.95]).tolist() == [2, 1, 0]
    assert kept(np.array([0.7], dtype=np.float32), [0.7]).tolist() == [1]
    assert match(np.array([[0.5]]), np.array([1]), [0.5, 0.51]).tolist() == [[[0]], [[-1]]]


def test_order_is_that_of_the_scores_and_never_of_the_file():
    scores, boxes = np.array([0.5, 0.9, 0.5]), np.array([[5, 0, 9, 9], [1, 1, 2, 2], [0, 0, 9, 9]])
    assert score_order(scores, boxes).tolist() == [1, 2, 0]
    assert match_once(np.array([[0.6, 0.6, 0.2], [0.5, 0.0, 0.7]]), scores, boxes, 0.5).tolist() == [1, 2]
    assert match_once(np.zeros((2, 0)), scores[:0], boxes[:0], 0.5).tolist() == [-1, -1]


def frame(last: list[str], *rows: tuple) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["patch", *BOX, *last]).astype(dict.fromkeys(["patch", last[-1]], "int64"))


truths, predictions = partial(frame, ["class"]), partial(frame, ["score", "label"])


def known(table: pd.DataFrame, patches: int, classes: int = 3) -> Truth:
    return Truth(table, list(range(patches)), {code: f"class {code}" for code in range(1, classes + 1)})


def noisy(patches, seed: int, misses: float = 0.2, extra: float = 1.0) -> pd.DataFrame:
    """Predictions made from the truth: jittered boxes, some missed, some confused, some invented."""
    rng = np.random.default_rng(seed)
    rows = []
    for row in patches.table.itertuples():
        if rng.random() > misses:
            box = np.array([row.x1, row.y1, row.x2, row.y2]) + rng.normal(0, 2, 4)
            label = row[3] if rng.random() > 0.2 else int(rng.integers(1, len(patches.classes) + 1))
            rows.append((row.patch, *box[:2], *np.maximum(box[2:], box[:2] + 1), rng.uniform(0.05, 1), label))
    for _ in range(rng.poisson(extra * len(patches))):
        x, y, w, h = rng.uniform(0, 40, 4)
        label = int(rng.integers(1, len(patches.classes) + 1))
        rows.append((int(rng.integers(len(patches))), x, y, x + w + 2, y + h + 2, rng.uniform(0.05, 1), label))
    return predictions(*rows)


def plain_scores(found, patches, iou, confidence, rule):
    """Counts and scores at one threshold, as one would do them by hand."""
    tp = fp = fn = 0
    pairs, present = [], set(patches.table["class"])
    for patch in range(len(patches)):
        truth = patches.of(patch)
        here = found[(found["patch"] == patch) & (found["score"] >= confidence)].sort_values("score", ascending=False)
        overlap = box_iou(truth[BOX].to_numpy(), here[BOX].to_numpy())
        matched = plain_match(overlap, len(here), iou, rule)
        tp, fp, fn = tp + len(matched), fp + len(here) - len(matched), fn + len(truth) - len(matched)
        pairs += [(truth["class"].iloc[t], here["label"].iloc[p]) for t, p in matched.items()]
    codes = list(range(1, len(patches.classes) + 1))
    per_class = np.full(len(codes), np.nan)
    if pairs:
        per_class = f1_score(*zip(*pairs, strict=True), labels=codes, average=None, zero_division=np.nan)
    f1_class = np.nanmean(per_class) if present <= {truth for truth, _ in pairs} and len(present) > 1 else np.nan
    f1 = 2 * tp / (2 * tp + fp + fn) if tp + fp + fn else np.nan
    return {"tp": tp, "fp": fp, "fn": fn, "f1_detect": f1, "f1_class": f1_class,
            **{f"f1_class_{k}": v for k, v in zip(codes, per_class, strict=True)}}  # fmt: skip


@pytest.mark.parametrize("rule", ["truth-greedy", "score-greedy"])
def test_the_sweep_equals_plain_counting(rule):
    patches = ellipse_patches(30, seed=3)
    found = noisy(patches, 4)
    iou, confidence = (0.1, 0.3, 0.5, 0.7), (0.0, 0.2, 0.5, 0.8, 0.99)
    table = tabulate(count(found, truth_of(patches), iou, confidence, rule))
    assert len(table) == len(iou) * len(confidence)
    for row in table.to_dict("records"):
        for name, value in plain_scores(found, patches, row["iou_threshold"], row["confidence"], rule).items():
            assert row[name] == pytest.approx(value, nan_ok=True, abs=1e-12), (name, row)


def test_a_case_by_hand():
    # Patch 0: three truths; two found (one as another class), one box on nothing. Patch 1: empty, one false box.
    # Patch 2: one truth, no prediction: its miss counts.
    truth = truths((0, 0, 0, 10, 10, 1), (0, 20, 20, 30, 30, 2), (0, 40, 40, 50, 50, 2), (2, 0, 0, 8, 8, 1))
    found = predictions(
        (0, 0, 0, 10, 10, 0.9, 1), (0, 20, 20, 30, 30, 0.8, 1), (0, 60, 0, 70, 10, 0.7, 2), (1, 0, 0, 5, 5, 0.6, 1)
    )
    counts = count(found, known(truth, 3), [0.5], [0.5])
    row = tabulate(counts).iloc[0]
    assert (row["tp"], row["fp"], row["fn"]) == (2, 2, 2)
    assert (row["precision"], row["recall"], row["f1_detect"]) == (0.5, 0.5, 0.5)
    assert row["f1_class_1"] == pytest.approx(2 / 3)  # one right; one pair too many
    assert row["f1_class_2"] == 0.0 and np.isnan(row["f1_class_3"])  # class 3 is not in the truth: not averaged
    assert row["f1_class"] == pytest.approx(1 / 3) and row["f1_hm"] == pytest.approx(2 * 0.5 / 3 / (0.5 + 1 / 3))
    skipped = tabulate(counts, unpredicted="skip").iloc[0]
    assert (skipped["tp"], skipped["fp"], skipped["fn"]) == (2, 2, 1)  # the miss of patch 2 vanishes
    assert skipped["f1_detect"] == pytest.approx(4 / 7)


def test_a_class_of_the_truth_without_a_pair_leaves_f1_class_undefined():
    # Every found defect has its right name, and of class 3 none is found: not a perfect classification.
    truth = truths((0, 0, 0, 10, 10, 1), (0, 20, 0, 30, 10, 2), (1, 0, 0, 10, 10, 3))
    found = predictions((0, 0, 0, 10, 10, 0.9, 1), (0, 20, 0, 30, 10, 0.9, 2), (1, 0, 0, 10, 10, 0.4, 3))
    counts = count(found, known(truth, 2), [0.5], [0.3, 0.5])
    low, high = tabulate(counts).to_dict("records")
    assert (low["f1_class"], low["f1_hm"]) == (1, 1)
    assert (high["f1_class_1"], high["f1_class_2"]) == (1, 1) and high["f1_detect"] == pytest.approx(4 / 5)
    assert all(np.isnan(high[name]) for name in ("f1_class_3", "f1_class", "f1_hm"))
    # Where patches are drawn without the one that holds class 3, the class is not in that truth.
    assert pooled(counts, np.array([1, 0]))["f1_class"][0, 1] == 1


def test_undefined_stays_undefined_and_one_class_has_no_classification_score():
    truth, found = truths((0, 0, 0, 10, 10, 1), (0, 20, 0, 30, 10, 2)), predictions((0, 0, 0, 10, 10, 0.5, 1))
    rows = tabulate(count(found, known(truth, 1, 2), [0.5], [0.4, 0.6])).to_dict("records")
    assert rows[0]["f1_detect"] == pytest.approx(2 / 3) and np.isnan(rows[0]["f1_hm"])  # class 2 is in no pair
    assert rows[1]["tp"] == rows[1]["recall"] == rows[1]["f1_detect"] == 0
    assert all(np.isnan(rows[1][name]) for name in ("precision", "f1_class", "f1_hm"))
    empty = tabulate(count(found[:0], known(truth[:0], 2, 2), [0.5], [0.5])).iloc[0]
    assert all(np.isnan(empty[name]) for name in ("precision", "recall", "f1_detect", "f1_class", "f1_hm"))
    no_truth = tabulate(count(found, known(truth[:0], 1, 2), [0.5], [0.5])).iloc[0]
    assert no_truth["precision"] == 0 and np.isnan(no_truth["recall"])
    truth, found = truths((0, 0, 0, 10, 10, 1)), predictions((0, 0, 0, 10, 10, 0.5, 1))
    row = tabulate(count(found, known(truth, 1, 1), [0.5], [0.5])).iloc[0]
    assert row["f1_detect"] == 1 and all(np.isnan(row[name]) for name in ("f1_class_1", "f1_class", "f1_hm"))
    row = tabulate(count(found.assign(label=2), known(truth, 1, 2), [0.5], [0.5])).iloc[0]
    assert np.isnan(row["f1_class"])  # two classes are named, but only one occurs in the data
