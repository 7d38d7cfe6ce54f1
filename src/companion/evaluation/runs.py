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
from companion.evaluation.wording import ARM
from companion.micrographs.patches import Patches


@dataclass(frozen=True)
class Run:
    """One detector's predictions on held-out patches of its split.

    Attributes
    ----------
    keys : split, n_train, arm, seed, and whatever else tells it from others
    predictions : see `formats.read_predictions`
    """

    keys: dict[str, Any]
    predictions: pd.DataFrame
    patches: Patches

    @property
    def truth(self) -> Truth:
        """What should have been found."""
        return truth_of(self.patches)

    def confident(self, chosen: pd.DataFrame) -> pd.DataFrame:
        """Predictions that reach the confidence of its arm among those of `thresholds.operating_points`."""
        confidence = chosen.set_index(ARM)["confidence"][tuple(self.keys[key] for key in ARM)]
        return self.predictions[self.predictions["score"] >= confidence].reset_index(drop=True)


def read_run(keys: Mapping[str, Any], path: Path, patches: Patches) -> Run:
    """Predictions of one detector on `patches`, read from a file."""
    return Run(dict(keys), read_predictions(path, truth_of(patches)), patches)


def count_runs(
    found: Sequence[Run], iou: Sequence[float], confidence: Sequence[float], matching: Matching = "truth-greedy"
) -> list[Counts]:
    """`scores.count` of every run, at the same thresholds."""
    return [count(run.predictions, run.truth, iou, confidence, matching) for run in found]


def tabulate_runs(found: Sequence[Run], counts: Sequence[Counts], unpredicted: Unpredicted = "count") -> pd.DataFrame:
    """scores.parquet: the keys of every run and its rows of `scores.tabulate`."""
    tables = [tabulate(c, unpredicted).assign(**run.keys) for run, c in zip(found, counts, strict=True)]
    table = pd.concat(tables, ignore_index=True)
    return table[[*found[0].keys, *table.columns.drop(list(found[0].keys))]]


def compare_matchings(found: Sequence[Run], iou: float, confidence: float) -> pd.DataFrame:
    """Scores of every run under each rule, on boxes or masks, with classes ignored or equal.

    Returns
    -------
    The columns of scores.parquet, rule, on, classes; masks only where every prediction that counts has one
    """
    counted = [run.predictions[run.predictions["score"] >= confidence].reset_index(drop=True) for run in found]
    masks = all("mask" in chosen and chosen["mask"].notna().all() for chosen in counted)  # a bundle holds few
    tables = []
    for run, chosen in zip(found, counted, strict=True):
        overlaps = {"boxes": box_overlaps(chosen, run.truth)}
        if masks:
            overlaps["masks"] = mask_overlaps(chosen, run.patches)
        for on, rule, same_class in product(overlaps, MATCHINGS, (False, True)):
            table = tabulate(count(chosen, run.truth, [iou], [confidence], rule, same_class, overlaps[on]))
            known = {"rule": rule, "on": on, "classes": "equal" if same_class else "ignored"}
            tables.append(table.assign(**run.keys, **known))
    return pd.concat(tables, ignore_index=True)
