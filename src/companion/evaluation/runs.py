"""Detectors of a run: what each predicted, its scores against labels and truth, and what the rule of matching does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from companion.config.sections import Patches as Cut
from companion.evaluation.formats import Truth, read_predictions, truth_of
from companion.evaluation.matching import MATCHINGS, Matching
from companion.evaluation.precision import average_precision, mean_precision
from companion.evaluation.scores import Counts, Unpredicted, count, tabulate
from companion.evaluation.wording import ARM, F1
from companion.micrographs.cutting import cut_patches
from companion.micrographs.dataset import load_dataset
from companion.micrographs.patches import Patches
from companion.phantom.render import TRUTH


@dataclass(frozen=True)
class Run:
    """One detector's predictions on held-out patches of its split."""

    keys: dict[str, Any]  # split, n_train, arm, seed, and whatever else tells it from others
    predictions: pd.DataFrame  # see `formats.read_predictions`
    patches: Patches

    @property
    def truth(self) -> Truth:
        """What should have been found."""
        return truth_of(self.patches)

    def confidence(self, points: pd.DataFrame) -> float:
        """Threshold of its arm among `points`, a row per split, N and arm (see `thresholds.choices`)."""
        return float(points.set_index(ARM)["confidence"][tuple(self.keys[key] for key in ARM)])

    def confident(self, points: pd.DataFrame) -> pd.DataFrame:
        """Predictions that reach the threshold of its arm."""
        return self.predictions[self.predictions["score"] >= self.confidence(points)].reset_index(drop=True)


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
    """scores.parquet of every run under each rule, with classes ignored or equal; with columns rule and classes."""
    tables = []
    for run, rule, classes in product(found, MATCHINGS, ("ignored", "equal")):
        table = tabulate(count(run.predictions, run.truth, [iou], [confidence], rule, classes == "equal"))
        tables.append(table.assign(**run.keys, rule=rule, classes=classes))
    return pd.concat(tables, ignore_index=True)


def cut_again(folder: Path, files: Sequence[str], cut: Cut, document: str = TRUTH, training: bool = False) -> Patches:
    """Patches of the micrographs `files` as another document of the data set labels them, such as a phantom's truth: on
    the grid of test patches, or on that of training patches and with their symmetries."""
    stride, symmetries = (cut.train_stride, cut.symmetries) if training else (cut.test_stride, (0,))
    return cut_patches(load_dataset(folder, document), files, cut.size, stride, cut.min_visible, symmetries)[0]


def true_patches(folder: Path, labels: Mapping[str, Patches], cut: Cut) -> dict[str, Patches]:
    """The test patches of each split with the exact truth for labels; none where nobody knows it."""
    known = labels.items() if (folder / TRUTH).is_file() else ()
    return {name: cut_again(folder, list(own.index["image"].unique()), cut) for name, own in known}


def ceiling(labels: Mapping[str, Patches], exact: Mapping[str, Patches], iou: float) -> pd.DataFrame:
    """What the labels of each split's test patches score against the truth: f1_detect, f1_class, f1_hm, map50 by split.

    No detector that learns to label as the annotator does can be told from a better one above it.
    """
    tables = []
    for split, patches in labels.items():
        drawn, truth = patches.table.rename(columns={"class": "label"}).assign(score=1.0), truth_of(exact[split])
        ranked = mean_precision(average_precision(drawn, truth).assign(split=split))
        tables.append(tabulate(count(drawn, truth, [iou], [0.5])).assign(split=split, map50=ranked["map50"]))
    return pd.concat(tables).set_index("split")[[*F1, "map50"]]
