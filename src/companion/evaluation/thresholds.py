"""The confidence threshold chosen on other images than those that are scored, and how much the usual choice flatters.

The paper reads the best threshold from the test images. A threshold chosen on validation micrographs has seen none of
them; the difference of the two test scores is the optimism of the former.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from companion.evaluation.resampling import percentiles, resampled_weights
from companion.evaluation.runs import Run, count_runs, runs
from companion.evaluation.scores import Counts, pooled
from companion.evaluation.significance import CONDITION
from companion.evaluation.studies import optimism_runs
from companion.evaluation.wording import with_interval
from companion.stages import Stage

HALVINGS = 50  # random halvings of the test micrographs where nothing else can choose
Swept = Sequence[tuple[Run, Counts]]
COLUMNS = [
    *CONDITION, "arm", "on_test", "on_validation", "best_on_test", "chosen_on_validation", "optimism", "low", "high",
    "seeds", "test_micrographs", "validation_micrographs",
]  # fmt: skip


def optimism(stage: Stage, found: Sequence[Run], counts: Sequence[Counts], measure: str) -> tuple[pd.DataFrame, str]:
    """How much the threshold that is best on test flatters, by the best means that a run has.

    Parameters
    ----------
    stage : the thresholds stage, whose profile says at which IoU and with how many resamples
    found, counts : its runs on test patches, and their counts
    measure : e.g. "f1_hm"

    Returns
    -------
    table : of `validated` where a split holds validation micrographs, else means of `studies.optimism_runs` per
        split, N and arm
    said : Markdown, what the numbers are and what they come to
    """
    evaluation = stage.profile.evaluation
    held_back = runs(stage, "val")
    if not held_back:
        halves = optimism_runs(found, counts, evaluation.iou, measure, stage.rng("halvings"), HALVINGS)
        columns = ["best_on_test", "chosen_elsewhere", "optimism"]
        table = halves.groupby([*CONDITION, "arm"])[columns].mean().reset_index()
        return table, (
            "These splits hold no validation micrographs back, so halves of the test micrographs stand in: optimism "
            f"{_shown(table['optimism'].min())} to {_shown(table['optimism'].max())} {measure}, an upper estimate."
        )
    swept = count_runs(held_back, [evaluation.iou], evaluation.confidence_sweep, evaluation.matching)
    table = validated(
        list(zip(found, counts, strict=True)), list(zip(held_back, swept, strict=True)), evaluation.iou, measure,
        stage.rng("validation"), evaluation.bootstrap, evaluation.confidence_level,
    )  # fmt: skip
    return table, optimism_in_words(table, measure, evaluation.confidence_level)


def validated(
    test: Swept, validation: Swept, iou: float, measure: str, rng: np.random.Generator, resamples: int, level: float
) -> pd.DataFrame:
    """Test scores at the confidence chosen on validation patches, beside those at the one that is best on test.

    Both are chosen once per split, N and arm, as the highest mean over seeds (a confidence counts where the measure is
    defined for every seed; of equal means the lowest). For the interval, test and validation micrographs are drawn
    with replacement and both confidences are chosen anew in every draw. The optimism is never negative, by
    construction; it holds the luck of the one choice as well as the bad luck of the other.

    Parameters
    ----------
    test, validation : runs with their counts; a condition without validation patches gives no row
    iou : box IoU, one of those swept
    measure : e.g. "f1_hm"
    resamples : draws behind each interval
    level : of the interval

    Returns
    -------
    split, n_train, arm, on_test and on_validation (confidences; NaN where the measure is undefined everywhere),
    best_on_test and chosen_on_validation (test scores at them, mean over seeds), optimism (their difference) with low
    and high, seeds, test_micrographs, validation_micrographs
    """
    rows = []
    held_back = _by_condition(validation)
    for condition, scored in _by_condition(test).items():
        if condition not in held_back:
            continue
        numbers, whole, drawn = [], [], []  # of test and of validation; curves as they are, and in every draw
        for own in (scored, held_back[condition]):
            names, member = np.unique(own[0][0].index["image"], return_inverse=True)
            numbers.append(len(names))
            whole.append(_curve(own, iou, measure, np.ones((1, len(member)))))
            drawn.append(_curve(own, iou, measure, resampled_weights(len(names), rng, resamples)[:, member]))
        best, chosen = (_at_best(whole[0], by)[0] for by in whole)
        low, high = percentiles(_at_best(drawn[0], drawn[0]) - _at_best(drawn[0], drawn[1]), level)
        confidence = np.append(scored[0][1].confidence, np.nan)  # position -1: nowhere
        places = [float(confidence[_best(curve)[0]]) for curve in whole]
        rows.append((*condition, *places, best, chosen, best - chosen, low, high, len(scored), *numbers))
    return pd.DataFrame(rows, columns=COLUMNS)


def optimism_in_words(table: pd.DataFrame, measure: str, level: float) -> str:
    """One line per condition of `validated`, Markdown."""
    lines = []
    for row in table.itertuples():
        where = f"- split {row.split}, N = {row.n_train}, {row.arm}: "
        if np.isnan(row.on_validation):
            lines.append(f"{where}{measure} is undefined on the validation patches at every confidence")
            continue
        lines.append(
            f"{where}best on test at confidence {row.on_test:g} ({_shown(row.best_on_test)}), chosen on validation "
            f"{row.on_validation:g} ({_shown(row.chosen_on_validation)}); optimism "
            f"{with_interval(row.optimism, row.low, row.high, level=level)}"
        )
    return "\n".join(lines)


def _shown(score: float) -> str:
    return "undefined for a seed" if np.isnan(score) else f"{score:.3f}"


def _by_condition(swept: Swept) -> dict[tuple, list[tuple[Run, Counts]]]:
    found: dict[tuple, list[tuple[Run, Counts]]] = {}
    for run, counts in swept:
        found.setdefault(tuple(run.keys[key] for key in (*CONDITION, "arm")), []).append((run, counts))
    return dict(sorted(found.items()))


def _curve(own: Swept, iou: float, measure: str, weights: NDArray) -> NDArray[np.float64]:
    """[R, C] mean over seeds of the score of each draw of patches [R, P]; NaN where it is undefined for any seed."""
    place = own[0][1].iou.index(iou)
    slices = (replace(c, pairs=c.pairs[:, place : place + 1], iou=c.iou[place : place + 1]) for _, c in own)
    return np.mean([pooled(counts, weights)[measure][:, 0] for counts in slices], axis=0)


def _best(curves: NDArray[np.float64]) -> NDArray[np.intp]:
    """[R] position of the highest entry of each row, the first of equal ones; -1 where all are NaN."""
    empty = np.isnan(curves).all(axis=1)
    return np.where(empty, -1, np.where(np.isnan(curves), -np.inf, curves).argmax(axis=1))


def _at_best(scores: NDArray[np.float64], chosen_by: NDArray[np.float64]) -> NDArray[np.float64]:
    """[R] entry of each row of `scores` where the same row of `chosen_by` is highest; NaN where that is nowhere."""
    places = _best(chosen_by)
    found = np.take_along_axis(scores, np.maximum(places, 0)[:, None], axis=1)[:, 0]
    return np.where(places < 0, np.nan, found)
