"""What the page with two sliders shows: scores of every arm, and detections on a few test patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from companion.micrographs.patches import load_patches
from companion.evaluation.formats import BOX
from companion.evaluation.matching import Matching, kept, match, score_order
from companion.evaluation.runs import Run
from companion.evaluation.scores import Counts, pooled
from companion.geometry import box_iou


def slider_data(
    found: Sequence[Run], counts: Sequence[Counts], matching: Matching = "truth-greedy", pictures: int = 6
) -> tuple[dict[str, dict[str, NDArray[np.float64]]], list[dict[str, Any]]]:
    """What the page with the sliders shows (see `figures.threshold_page`): the first split's smallest N.

    Returns
    -------
    arms : arm -> score -> [I, C], mean over seeds, undefined where any seed is
    pictures : test patches whose pairs change with both thresholds (see `lively_patches`); per arm the detections of
        its first seed
    """
    first = (found[0].keys["split"], found[0].keys["n_train"])
    chosen = [(r, c) for r, c in zip(found, counts, strict=True) if (r.keys["split"], r.keys["n_train"]) == first]
    by_arm: dict[str, list[tuple[Run, Counts]]] = {}
    for run, count_ in chosen:
        by_arm.setdefault(run.keys["arm"], []).append((run, count_))
    arms = {}
    for arm, own in by_arm.items():
        scores = [pooled(c) for _, c in own]
        arms[arm] = {name: np.mean([s[name] for s in scores], axis=0) for name in scores[0] if name != "f1_per_class"}
    test = load_patches(found[0].test)
    assert test.images is not None  # test patches are micrographs
    shown = []
    for number in lively_patches([own[0][1] for own in by_arm.values()], test.index["image"].to_numpy())[:pictures]:
        row = test.index.iloc[number]
        picture: dict[str, Any] = {"name": f"{row.image}, patch {row.patch}", "image": test.images[row.patch]}
        truth = test.of(row.patch)[BOX].to_numpy(dtype=float)
        picture |= {"truths": (truth[:, :2] + truth[:, 2:]) / 2, "boxes": {}, "kept": {}, "pairs": {}}
        for arm, own in by_arm.items():
            run, swept = own[0]
            here = run.predictions[run.predictions["patch"] == row.patch]
            here = here.iloc[score_order(here["score"].to_numpy(), here[BOX].to_numpy())]
            n_kept = kept(here["score"].to_numpy(), swept.confidence)
            picture["boxes"][arm] = here[[*BOX, "label"]].to_numpy(dtype=float)
            picture["kept"][arm] = n_kept
            picture["pairs"][arm] = match(box_iou(truth, here[BOX].to_numpy()), n_kept, swept.iou, matching)
        shown.append(picture)
    return arms, shown


def lively_patches(swept: Sequence[Counts], images: NDArray) -> NDArray[np.intp]:
    """Patches in the order in which they are worth looking at under two sliders.

    First those in which the number of pairs changes with the IoU and with the confidence, for every one of `swept`;
    of these the first of each micrograph, then the second of each, and so on. Then the others, likewise.

    Parameters
    ----------
    swept : counts of the same patches by several detectors
    images : [P] micrograph of each patch

    Returns
    -------
    [P] positions
    """
    lively = np.ones(len(images), dtype=bool)
    for counts in swept:
        pairs = counts.pairs.sum(axis=(-2, -1))  # (P, I, C)
        lively &= np.ptp(pairs, axis=1).any(axis=1) & np.ptp(pairs, axis=2).any(axis=1)
    turns: dict[tuple[bool, Any], int] = {}
    turn = np.zeros(len(images), dtype=int)
    for p, key in enumerate(zip(lively.tolist(), images, strict=True)):
        turn[p] = turns[key] = turns.get(key, -1) + 1
    return np.lexsort((np.arange(len(images)), turn, ~lively))
