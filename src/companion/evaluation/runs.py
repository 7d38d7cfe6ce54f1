"""Detectors of a run: what each predicted, its scores, and what the rule that pairs boxes does to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from companion.evaluation.formats import Truth, read_predictions, truth_of
from companion.evaluation.matching import MATCHINGS, Matching
from companion.evaluation.scores import Counts, Unpredicted, box_overlaps, count, mask_overlaps, tabulate
from companion.micrographs.patches import Patches


@dataclass(frozen=True)
class Run:
    """One detector's predictions on held-out patches of its split.

    Attributes
    ----------
    keys : split, n_train, arm, seed
    predictions : see `formats.read_predictions`
    truth : what should have been found
    patches : the test patches
    val : the same of the validation patches, where the split holds some back
    """

    keys: dict[str, Any]
    predictions: pd.DataFrame
    truth: Truth
    patches: Patches
    val: Run | None = None


def read_run(keys: Mapping[str, Any], folder: Path, test: Patches, val: Patches | None = None) -> Run:
    """Predictions of one detector.

    Parameters
    ----------
    keys : split, n_train, arm, seed
    folder : its predictions: test.parquet, and val.parquet where there are validation patches
    test, val : patches of its split
    """
    truth = truth_of(test, f"patches of split {keys['split']}")
    held_back = None
    if val is not None:
        val_truth = truth_of(val, f"validation patches of split {keys['split']}")
        held_back = Run(dict(keys), read_predictions(folder / "val.parquet", val_truth), val_truth, val)
    return Run(dict(keys), read_predictions(folder / "test.parquet", truth), truth, test, held_back)


def count_runs(
    found: Sequence[Run], iou: Sequence[float], confidence: Sequence[float], matching: Matching = "truth-greedy"
) -> list[Counts]:
    """`scores.count` of every run, at the same thresholds."""
    return [
        count(run.predictions, run.truth.table, run.truth.patches, run.truth.classes, iou, confidence, matching)
        for run in found
    ]


def tabulate_runs(found: Sequence[Run], counts: Sequence[Counts], unpredicted: Unpredicted = "count") -> pd.DataFrame:
    """scores.parquet: the rows of every run."""
    tables = [tabulate(c, run.keys, unpredicted) for run, c in zip(found, counts, strict=True)]
    return pd.concat(tables, ignore_index=True)


def compare_matchings(found: Sequence[Run], iou: float, confidence: float) -> pd.DataFrame:
    """Scores of every run under each rule, on boxes or masks, with classes ignored or equal.

    Returns
    -------
    rule, on, classes, then the columns of scores.parquet; masks only where every prediction that counts has one
    """
    # Of the others a bundle holds no masks.
    counted = [run.predictions[run.predictions["score"] >= confidence].reset_index(drop=True) for run in found]
    masks = all("mask" in chosen and chosen["mask"].notna().all() for chosen in counted)
    tables = []
    for run, chosen in zip(found, counted, strict=True):
        truth = run.truth
        overlaps = {"boxes": box_overlaps(chosen, truth.table, truth.patches)}
        if masks:
            overlaps["masks"] = mask_overlaps(chosen, truth.table, run.patches.instances)
        known = (chosen, truth.table, truth.patches, truth.classes, [iou], [confidence])
        for on, rule, same_class in product(overlaps, MATCHINGS, (False, True)):
            table = tabulate(count(*known, rule, same_class, overlaps[on]), run.keys)
            tables.append(table.assign(rule=rule, on=on, classes="equal" if same_class else "ignored"))
    return pd.concat(tables, ignore_index=True)
