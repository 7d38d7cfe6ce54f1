"""Questions asked of all runs at once: what goes wrong, how optimistic a threshold is, what more images would show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from companion.evaluation.average_precision import coco_average_precision
from companion.evaluation.errors import audit, error_shares, image_errors, recall_by, size_bins
from companion.evaluation.matching import Matching
from companion.evaluation.resampling import nested_bootstrap, threshold_optimism
from companion.evaluation.runs import Run
from companion.evaluation.scores import Counts
from companion.evaluation.significance import CONDITION

_KEYS = [*CONDITION, "arm", "seed"]


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
    """Errors of each kind per run: split, n_train, arm, seed, error, count, per_truth (count over truths)."""
    rows = []
    for keys, own in truths.groupby(_KEYS, sort=True):
        theirs = predictions[(predictions[_KEYS] == list(keys)).all(axis=1)]
        rows += [(*keys, kind, n, n / len(own)) for kind, n in error_shares(theirs, own).items()]
    return pd.DataFrame(rows, columns=[*_KEYS, "error", "count", "per_truth"])


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
    """Share of defects found per arm: by class, by size and, where there are several, by pixel size.

    Parameters
    ----------
    truths : second table of `audit_runs`

    Returns
    -------
    grouping -> columns arm, group, truths, images, recall, low, high
    """
    named = truths.assign(
        **{
            "by class": truths["class"].map(classes),
            "by size": pd.Categorical(size_bins(truths["size_px"])),
            "by pixel size": truths["pixel_size_nm"].map("{:g} nm".format),
        }
    )
    groupings = [name for name in ("by class", "by size", "by pixel size") if named[name].nunique() > 1]
    tables = {}
    for name in groupings or ["by class"]:
        parts = [
            recall_by(own, name, rng, resamples, level).rename(columns={name: "group"}).assign(arm=arm)
            for arm, own in named.groupby("arm", sort=True)
        ]
        table = pd.concat(parts, ignore_index=True)
        tables[name] = table[["arm", "group", "truths", "images", "recall", "low", "high"]]
    return tables
