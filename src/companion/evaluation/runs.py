"""From the run tree to tables: the scores of every detector, the class shares of every set, the front page's strip."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from companion.micrographs.patches import Patches, load_patches
from companion.evaluation.conditions import headline_condition
from companion.evaluation.formats import BOX, Truth, read_predictions, read_truth
from companion.evaluation.matching import MATCHINGS, Matching
from companion.evaluation.scores import Counts, Overlaps, Unpredicted, count, mask_overlaps, tabulate
from companion.evaluation.significance import best_confidence
from companion.geometry import box_iou
from companion.places import dataset_name, split_name
from companion.stages import Stage

PREDICTED = {"test": "predictions.parquet", "val": "predictions-val.parquet"}


@dataclass(frozen=True)
class Run:
    """One detector's predictions on the test patches of its split, or on its validation patches.

    Attributes
    ----------
    keys : dataset, split (as text), n_train, arm, seed
    predictions : see `formats.read_predictions`
    truth : what should have been found
    test : folder of these patches
    index : of these patches: patch, image, pixel_size_nm and more (see `Patches.index`)
    size : side of a patch, px
    """

    keys: dict[str, Any]
    predictions: pd.DataFrame
    truth: Truth
    test: Path
    index: pd.DataFrame
    size: int


def runs(stage: Stage, held_out: Literal["test", "val"] = "test") -> list[Run]:
    """Every detector that `stage` reads, with the test patches of its split.

    Parameters
    ----------
    held_out : "val" for the validation patches instead, of the splits that have some
    """
    read: dict[Path, tuple[Truth, Patches]] = {}
    found = []
    for keys, source in sources(stage, "detector"):
        micrographs, part = source.upstream[held_out]
        folder, predictions = micrographs.folder / part, source.folder / PREDICTED[held_out]
        if held_out == "val" and not (source.holds("val") and predictions.is_file()):
            continue
        if folder not in read:
            read[folder] = read_truth(folder), load_patches(folder)
        truth, patches = read[folder]
        named = {"dataset": dataset_name(stage.profile.dataset), **keys}
        table = read_predictions(predictions, truth)
        found.append(Run(named, table, truth, folder, patches.index, patches.size))
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


def compare_rules(found: Sequence[Run], iou: float, confidence: float) -> pd.DataFrame:
    """Scores of every run under each way of matching: rule, on boxes or masks, classes ignored or equal.

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
        boxes, truth_boxes = chosen[BOX].to_numpy(), truth.table[BOX].to_numpy()
        overlaps = {"boxes": lambda t, rows, a=truth_boxes, b=boxes: box_iou(a[t], b[rows])}
        if masks:
            overlaps["masks"] = mask_overlaps(chosen, truth.table, load_patches(run.test).instances)
        for on, computed in overlaps.items():
            known = _remembered(computed)
            for rule, same in product(MATCHINGS, (False, True)):
                counts = count(
                    chosen, truth.table, truth.patches, truth.classes, [iou], [confidence], rule, same, known
                )  # fmt: skip
                classes = "equal" if same else "ignored"
                tables.append(tabulate(counts, run.keys).assign(rule=rule, on=on, classes=classes))
    return pd.concat(tables, ignore_index=True)


def _remembered(overlaps: Overlaps) -> Overlaps:
    """`overlaps`, computed once per patch: a patch is told by its first truth, and its rows never change order."""
    known: dict[int, NDArray[np.float64]] = {}

    def remembered(truth: NDArray[np.intp], rows: NDArray[np.intp]) -> NDArray[np.float64]:
        first = int(truth[0])
        if first not in known:
            known[first] = overlaps(truth, rows)
        return known[first]

    return remembered


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
            classes = json.loads((folder / "patches.json").read_text(encoding="utf-8"))["classes"]
            codes = pd.read_parquet(folder / "table.parquet", columns=["class"])["class"]
            numbers = np.bincount(codes, minlength=len(classes) + 1)[1:]
            rows += [
                (keys["split"], keys["n_train"], name, c, int(n), n / max(1, numbers.sum()))
                for c, n in zip(classes, numbers, strict=True)
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
    """Pictures of the first split and the largest N: of each set the first patch with an average number of defects.

    Of the generated patches, the few of ``sample/`` are looked at: they are kept where all are not.

    Parameters
    ----------
    stage : the claims stage
    scores : scores.parquet, from which the detector's confidence threshold follows
    """
    condition = headline_condition(stage.profile)
    generated = next(
        s for k, s in sources(stage, "generated") if k["masks"] == "plain" and (k["split"], k["n_train"]) == condition
    )
    micrographs, part = generated.upstream["train"]
    real, simulated = load_patches(micrographs.folder / part), load_patches(generated.folder / "sample")
    test = load_patches(micrographs.folder / "test")
    run, source = next(
        (k, s) for k, s in sources(stage, "detector") if (k["split"], k["n_train"]) == condition and k["arm"] != "EXP"
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
