"""Questions asked of all runs at once: what goes wrong, how optimistic a threshold is, what more images would show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from companion.evaluation.average_precision import coco_average_precision
from companion.evaluation.errors import SIZES, audit, error_shares, image_errors, recall_by, size_bins
from companion.evaluation.matching import Matching
from companion.evaluation.resampling import nested_bootstrap, threshold_optimism
from companion.evaluation.runs import Run
from companion.evaluation.scores import Counts
from companion.evaluation.significance import CONDITION

_KEYS = [*CONDITION, "arm", "seed"]
GROUPINGS = ("class", "size", "pixel size")


def audit_runs(
    found: Sequence[Run], chosen: pd.DataFrame, iou: float, matching: Matching = "truth-greedy"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`errors.audit` of every run, each arm at its own confidence.

    Parameters
    ----------
    chosen : split, n_train, arm, confidence (see `significance.best_confidence`)

    Returns
    -------
    predictions, truths : the tables of `audit` with split, n_train, arm, seed
    """
    tables: tuple[list[pd.DataFrame], list[pd.DataFrame]] = ([], [])
    for run in found:
        audited = audit(run.predictions, run.truth.table, run.index, iou, _confidence(chosen, run), matching)
        for own, table in zip(tables, audited, strict=True):
            own.append(table.assign(**{key: run.keys[key] for key in _KEYS}))
    return pd.concat(tables[0], ignore_index=True), pd.concat(tables[1], ignore_index=True)


def error_counts(predictions: pd.DataFrame, truths: pd.DataFrame) -> pd.DataFrame:
    """Errors of each kind per run: split, n_train, arm, seed, error, count, truths, per_truth (count over truths)."""
    rows = []
    for keys, own in truths.groupby(_KEYS, sort=True):
        theirs = predictions[(predictions[_KEYS] == list(keys)).all(axis=1)]
        rows += [(*keys, kind, n, len(own), n / len(own)) for kind, n in error_shares(theirs, own).items()]
    return pd.DataFrame(rows, columns=[*_KEYS, "error", "count", "truths", "per_truth"])


def error_groups(predictions: pd.DataFrame, truths: pd.DataFrame, classes: Mapping[int, str]) -> pd.DataFrame:
    """`error_counts` inside each class, size group and pixel size.

    A missed defect counts in the group of the defect; every other error, those on background too, in the group of the
    prediction: the class that it says and the size of its own box.

    Parameters
    ----------
    predictions, truths : the tables of `audit_runs`
    classes : class code -> name

    Returns
    -------
    by ("class", "size", "pixel size"), group, then the columns of `error_counts`; per_truth is NaN where the group
    has no truth
    """
    names = ["by", "group", *_KEYS, "error", "count", "truths", "per_truth"]
    both = grouped(pd.concat([truths.assign(true=True), predictions.assign(true=False)], ignore_index=True), classes)
    said, known = both[~both["true"]], both[both["true"]]
    rows = []
    for by in GROUPINGS:
        for keys, own in known.groupby(_KEYS, sort=True):
            theirs = said[(said[_KEYS] == list(keys)).all(axis=1)]
            for group in both[by].cat.remove_unused_categories().cat.categories:
                here = own[own[by] == group]
                for kind, n in error_shares(theirs[theirs[by] == group], here).items():
                    rows.append((by, group, *keys, kind, n, len(here), n / len(here) if len(here) else float("nan")))
    return pd.DataFrame(rows, columns=names)


def grouped(table: pd.DataFrame, classes: Mapping[int, str]) -> pd.DataFrame:
    """A table of `errors.audit` with the categories that it can be divided by: class, size and pixel size."""
    pixel_sizes = sorted(table["pixel_size_nm"].unique())
    return table.assign(**{
        "class": pd.Categorical(table["class"].map(classes), list(classes.values())),
        "size": pd.Categorical(size_bins(table["size_px"]), SIZES),
        "pixel size": pd.Categorical(
            table["pixel_size_nm"].map("{:g} nm".format), dict.fromkeys(map("{:g} nm".format, pixel_sizes))
        ),
    })  # fmt: skip


def materials_runs(found: Sequence[Run], chosen: pd.DataFrame) -> pd.DataFrame:
    """`errors.image_errors` of every run, each arm at its own confidence, with split, n_train, arm, seed."""
    tables = []
    for run in found:
        confidence = _confidence(chosen, run)
        table = image_errors(run.predictions, run.truth.table, run.index, run.truth.classes, confidence, run.size)
        tables.append(table.assign(**{key: run.keys[key] for key in _KEYS}))
    return pd.concat(tables, ignore_index=True)


def precision_runs(found: Sequence[Run]) -> pd.DataFrame:
    """COCO's average precision of every run: split, n_train, arm, seed, class, AP, AP50, AP75."""
    tables = [
        coco_average_precision(run.predictions, run.truth.table, run.truth.patches, run.truth.classes).assign(
            **{key: run.keys[key] for key in _KEYS}
        )
        for run in found
    ]
    return pd.concat(tables, ignore_index=True)


def optimism_runs(
    found: Sequence[Run], counts: Sequence[Counts], iou: float, measure: str, rng: np.random.Generator, repeats: int
) -> pd.DataFrame:
    """`resampling.threshold_optimism` of every run: split, n_train, arm, seed, then its entries."""
    rows = []
    for run, swept in zip(found, counts, strict=True):
        place = swept.iou.index(iou)
        entries = threshold_optimism(swept, run.index["image"].to_numpy(), place, measure, rng, repeats)
        rows.append({**{key: run.keys[key] for key in _KEYS}, **entries.to_dict()})
    return pd.DataFrame(rows)


def bootstrap_runs(
    found: Sequence[Run],
    counts: Sequence[Counts],
    chosen: pd.DataFrame,
    arms: tuple[str, str],
    iou: float,
    measure: str,
    rng: np.random.Generator,
    resamples: int,
    level: float,
) -> pd.DataFrame:
    """Difference of two arms per split and N, over test micrographs alone and with seeds nested.

    Returns
    -------
    split, n_train, resampled ("images", "images and seeds"), then the entries of `resampling.nested_bootstrap`
    """
    rows: list[dict[str, Any]] = []
    runs = {tuple(run.keys[key] for key in _KEYS): (run, c) for run, c in zip(found, counts, strict=True)}
    for split, n_train in sorted({key[:2] for key in runs}):
        seeds = sorted(
            {k[3] for k in runs if k[:3] == (split, n_train, arms[0])}
            & {k[3] for k in runs if k[:3] == (split, n_train, arms[1])}
        )
        if not seeds:
            continue
        sides = tuple([runs[split, n_train, arm, seed] for seed in seeds] for arm in arms)
        places = tuple(
            (side[0][1].iou.index(iou), side[0][1].confidence.index(_confidence(chosen, side[0][0]))) for side in sides
        )
        images = sides[0][0][0].index["image"].to_numpy()
        for name, with_seeds in (("images", False), ("images and seeds", True)):
            result = nested_bootstrap(
                ([c for _, c in sides[0]], [c for _, c in sides[1]]), images, (places[0], places[1]), measure, rng,
                resamples, level, with_seeds,
            )  # fmt: skip
            rows.append({"split": split, "n_train": n_train, "resampled": name, **result})
    columns = ["split", "n_train", "resampled", "difference", "low", "high", "p", "images", "pairs"]
    return pd.DataFrame(rows, columns=columns)


def _confidence(chosen: pd.DataFrame, run: Run) -> float:
    here = (chosen[[*CONDITION, "arm"]] == [run.keys[key] for key in (*CONDITION, "arm")]).all(axis=1)
    return float(chosen.loc[here, "confidence"].iloc[0])


def recall_tables(
    truths: pd.DataFrame, classes: Mapping[int, str], rng: np.random.Generator, resamples: int, level: float
) -> dict[str, pd.DataFrame]:
    """Share of defects found per split, N and arm: by class, by size and, where there are several, by pixel size.

    Parameters
    ----------
    truths : second table of `audit_runs`

    Returns
    -------
    grouping -> columns split, n_train, arm, group, truths (distinct defects), images, recall (over seeds), low, high
    """
    named = grouped(truths, classes)
    tables = {}
    for by in [name for name in GROUPINGS if named[name].nunique() > 1] or ["class"]:
        parts = [
            recall_by(own, by, rng, resamples, level)
            .rename(columns={by: "group"})
            .assign(split=split, n_train=n_train, arm=arm)
            for (split, n_train, arm), own in named.groupby([*CONDITION, "arm"], sort=True)
        ]
        table = pd.concat(parts, ignore_index=True)
        tables[by] = table[[*CONDITION, "arm", "group", "truths", "images", "recall", "low", "high"]]
    return tables
