"""From the run tree to tables: the scores of every detector, the class shares of every set, the front page's strip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from companion.data.patches import Patches, load_patches
from companion.evaluation.formats import Truth, read_predictions, read_truth
from companion.evaluation.matching import Matching
from companion.evaluation.scores import Counts, Unpredicted, count, tabulate
from companion.evaluation.significance import best_confidence
from companion.stages import Stage, dataset_name, split_name


@dataclass(frozen=True)
class Run:
    """One detector's predictions on the test patches of its split.

    Attributes
    ----------
    keys : dataset, split (as text), n_train, arm, seed
    predictions : see `formats.read_predictions`
    truth : what should have been found
    test : folder of the test patches
    """

    keys: dict[str, Any]
    predictions: pd.DataFrame
    truth: Truth
    test: Path


def runs(stage: Stage) -> list[Run]:
    """Every detector that `stage` reads, with the test patches of its split."""
    truths: dict[Path, Truth] = {}
    found = []
    for keys, source in sources(stage, "detector"):
        micrographs, part = source.upstream["test"]
        folder = micrographs.folder / part
        truth = truths.setdefault(folder, truths.get(folder) or read_truth(folder))
        named = {"dataset": dataset_name(stage.profile.dataset), **keys}
        found.append(Run(named, read_predictions(source.folder / "predictions.parquet", truth), truth, folder))
    return found


def sources(stage: Stage, kind: str) -> Iterator[tuple[dict[str, Any], Stage]]:
    """Stages of one kind that `stage` reads, with their keys (split as text)."""
    for source, _ in stage.upstream.values():
        if source.kind.name == kind:
            yield {**source.keys, "split": split_name(source.keys["split"])}, source


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


def class_shares(stage: Stage) -> pd.DataFrame:
    """Class shares of the real training set and of the simulated sets.

    Returns
    -------
    split, n_train, set ("real", "simulated-plain", "simulated-rare"), class (name), instances, share
    """
    rows = []
    for keys, source in sources(stage, "masks"):
        micrographs, part = source.upstream["train"]
        names = (("real", micrographs.folder / part), (f"simulated-{keys['masks']}", source.folder))
        for name, folder in names:
            patches = load_patches(folder)
            numbers = np.bincount(patches.table["class"], minlength=len(patches.classes) + 1)[1:]
            rows += [
                (keys["split"], keys["n_train"], name, c, int(n), n / max(1, numbers.sum()))
                for c, n in zip(patches.classes, numbers, strict=True)
            ]
    columns = ["split", "n_train", "set", "class", "instances", "share"]
    return pd.DataFrame(rows, columns=columns).drop_duplicates(ignore_index=True)


@dataclass(frozen=True)
class Strip:
    """Four pictures that show the method, and what they are."""

    real_labels: NDArray[np.uint8]
    simulated_labels: NDArray[np.uint8]
    generated: NDArray[np.uint8]
    test: NDArray[np.uint8]
    found: pd.DataFrame
    classes: dict[int, str]
    caption: str


def strip_pictures(stage: Stage, scores: pd.DataFrame) -> Strip:
    """Pictures of the first split and the smallest N: of each set the first patch with an average number of defects.

    Parameters
    ----------
    stage : the claims stage
    scores : scores.parquet, from which the detector's confidence threshold follows
    """
    keys, generated = next((k, s) for k, s in sources(stage, "generated") if k["masks"] == "plain")
    micrographs, part = generated.upstream["train"]
    real, simulated = load_patches(micrographs.folder / part), load_patches(generated.folder)
    test = load_patches(micrographs.folder / "test")
    run, source = next(
        (k, s)
        for k, s in sources(stage, "detector")
        if (k["split"], k["n_train"]) == (keys["split"], keys["n_train"]) and k["arm"] != "EXP"
    )
    evaluation = stage.profile.evaluation
    measure = "f1_hm" if scores["f1_hm"].notna().any() else "f1_detect"
    best = best_confidence(scores[scores["split"] == run["split"]], evaluation.iou, measure)
    mine = best[(best["n_train"] == run["n_train"]) & (best["arm"] == run["arm"])]["confidence"]
    threshold = float(mine.iloc[0]) if len(mine) else evaluation.confidence
    number = _ordinary(test)
    found = pd.read_parquet(source.folder / "predictions.parquet")
    found = found[(found["patch"] == number) & (found["score"] >= threshold)]
    caption = (
        f"split {run['split']}, N = {run['n_train']}; detections of {run['arm']}, seed {run['seed']}, "
        f"at confidence ≥ {threshold:g}, on test patch {number}"
    )
    drawn = _ordinary(simulated)
    images, pictures = simulated.images, test.images
    assert images is not None and pictures is not None  # generated and test patches are always imaged
    return Strip(
        real.label_maps(np.array([_ordinary(real)]))[0], simulated.label_maps(np.array([drawn]))[0],
        np.asarray(images[drawn]), np.asarray(pictures[number]), found, dict(enumerate(test.classes, 1)), caption,
    )  # fmt: skip


def _ordinary(patches: Patches) -> int:
    """The first patch with the average number of defects or more, so that nobody picks the picture."""
    numbers = np.bincount(patches.table["patch"], minlength=len(patches))
    return int(np.argmax(numbers >= numbers.mean()))
