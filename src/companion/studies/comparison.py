"""Detectors against the exact truth, at thresholds that others chose, and what pairs of them differ in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from companion.config.phantom import Phantom
from companion.config.sections import Evaluation, Shift
from companion.evaluation.runs import Run, count_runs, tabulate_runs
from companion.evaluation.significance import paired_t

MEASURES = ("f1_detect", "f1_class", "f1_hm", "recall")
TRAINED = "as trained"  # test micrographs of the kind that detectors were trained on
LEARNT = 0.5  # F1_detect below which detectors are too poor for differences between them to mean anything
Effects = Mapping[str, Callable[[pd.DataFrame], pd.Series]]
COSTS: Effects = {  # what an annotator's errors cost each arm; whether generated patches pass on more of them
    "cost, EXP": lambda w: w["exact EXP"] - w["annotator EXP"],
    "cost, EXP+GEN": lambda w: w["exact EXP+GEN"] - w["annotator EXP+GEN"],
    "amplification": lambda w: (w["exact EXP+GEN"] - w["annotator EXP+GEN"]) - (w["exact EXP"] - w["annotator EXP"]),
}
SHIFTS: Effects = {  # what a shift costs, what EXP+GEN gains on shifted micrographs, what of the gain the shift takes
    "loss of EXP": lambda w: w["trained EXP"] - w["shifted EXP"],
    "gain": lambda w: w["shifted EXP+GEN"] - w["shifted EXP"],
    "binding": lambda w: (w["trained EXP+GEN"] - w["trained EXP"]) - (w["shifted EXP+GEN"] - w["shifted EXP"]),
}


def scores(runs: Sequence[Run], settings: Evaluation) -> pd.DataFrame:
    """Columns of scores.parquet and all keys of each run, at every confidence of the sweep and the headline's IoU."""
    return tabulate_runs(runs, count_runs(runs, [settings.iou], settings.confidence_sweep, settings.matching))


def at_chosen(test: pd.DataFrame, chosen_on: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Rows of `test` at the confidence where the mean F1_detect of `chosen_on` over seeds is highest, for each `by`."""
    means = chosen_on.groupby([*by, "confidence"])["f1_detect"].mean().fillna(0.0)
    best = means.groupby(list(by)).idxmax().map(lambda key: key[-1]).rename("confidence")
    return test.merge(best.reset_index(), on=[*by, "confidence"])


def paired_effects(table: pd.DataFrame, effects: Effects, level: float) -> pd.DataFrame:
    """Mean and interval over seeds of differences, for every measure: quantity, measure, mean, low, high, n.

    `table` has the scores of detectors: seed, the measures, and column, the name by which `effects` call them.
    """
    rows = []
    for measure in MEASURES:
        wide = table.pivot_table(index="seed", columns="column", values=measure, dropna=False)
        for name, difference in effects.items():
            rows.append({"quantity": name, "measure": measure, **paired_t(difference(wide).dropna(), level)})
    return pd.DataFrame(rows)[["quantity", "measure", "mean", "low", "high", "n"]]


def shift_effects(scores: pd.DataFrame, level: float) -> pd.DataFrame:
    """`SHIFTS` of every kind of test micrograph: tested, and the columns of `paired_effects`.

    `scores` are against the truth, a row per detector and kind: tested (its name), arm, seed, and the measures.
    """
    trained, tables = scores[scores["tested"] == TRAINED], []
    for tested, own in scores[scores["tested"] != TRAINED].groupby("tested", sort=False):
        both = [trained.assign(column="trained " + trained["arm"]), own.assign(column="shifted " + own["arm"])]
        tables.append(paired_effects(pd.concat(both), SHIFTS, level).assign(tested=tested))
    return pd.concat(tables, ignore_index=True)


def test_phantoms(phantom: Phantom, shifts: Mapping[str, Shift], n_test: int) -> dict[str, Phantom]:
    """Phantoms by name, `TRAINED` first, then one for each shift, each of `n_test` micrographs.

    Scenes are drawn by the number of the micrograph, so that one that changes the dose shows the very same defects.
    """
    values: dict[str, Any] = {**phantom.model_dump(), "n_images": n_test}
    return {TRAINED: Phantom(**values), **{name: Phantom(**values | shift.changes()) for name, shift in shifts.items()}}


def verdict(low: float, high: float, positive: str, negative: str, reference: pd.DataFrame) -> str:
    """`positive` or `negative` where an interval lies on one side of zero, else "undecided"; "no verdict" where an arm
    of the detectors that others are compared with (columns arm, f1_detect) has learnt too little."""
    reached = reference.groupby("arm", sort=False)["f1_detect"].mean()
    if not reached.min() >= LEARNT:
        said = ", ".join(f"{arm} {score:.2f}" for arm, score in reached.items())
        return f"no verdict, for detectors that hardly detect (F1_detect against the truth: {said})"
    return positive if low > 0 else negative if high < 0 else "undecided"
