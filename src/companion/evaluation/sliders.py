"""What the page with two sliders shows: scores of every arm, and detections on a few test patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from companion.evaluation.conditions import CONDITION
from companion.evaluation.formats import BOX
from companion.evaluation.matching import Matching, kept, match, score_order
from companion.evaluation.runs import Run
from companion.evaluation.scores import Counts, pooled
from companion.geometry import box_iou


def slider_data(
    found: Sequence[Run], counts: Sequence[Counts], matching: Matching = "truth-greedy", pictures: int = 6
) -> tuple[dict[str, dict[str, NDArray[np.float64]]], list[dict[str, Any]]]:
    """What `threshold_page` shows, of the condition of the first run.

    Returns
    -------
    arms : arm -> score -> [I, C], mean over seeds, undefined where any seed is
    pictures : test patches whose pairs change with both thresholds (see `lively_patches`); per arm the detections of
        its first seed
    """
    by_arm: dict[str, list[tuple[Run, Counts]]] = {}
    for run, counted in zip(found, counts, strict=True):
        if all(run.keys[key] == found[0].keys[key] for key in CONDITION):
            by_arm.setdefault(run.keys["arm"], []).append((run, counted))
    arms = {}
    for arm, own in by_arm.items():
        scores = [pooled(c) for _, c in own]
        arms[arm] = {name: np.mean([s[name] for s in scores], axis=0) for name in scores[0] if name != "f1_per_class"}
    test, shown = found[0].patches, []
    for p in lively_patches([own[0][1] for own in by_arm.values()], test.index["image"])[:pictures]:
        truth = test.of(p)[BOX].to_numpy(dtype=float)
        name, centres = f"{test.index['image'].iloc[p]}, patch {p}", (truth[:, :2] + truth[:, 2:]) / 2
        picture: dict[str, Any] = {"name": name, "image": test.images[p], "truths": centres}
        picture |= {"boxes": {}, "kept": {}, "pairs": {}}
        for arm, own in by_arm.items():
            run, swept = own[0]
            here = run.predictions[run.predictions["patch"] == p]
            here = here.iloc[score_order(here["score"].to_numpy(), here[BOX].to_numpy())]
            picture["boxes"][arm] = here[[*BOX, "label"]].to_numpy(dtype=float)
            picture["kept"][arm] = kept(here["score"].to_numpy(), swept.confidence)
            overlap = box_iou(truth, here[BOX].to_numpy())
            picture["pairs"][arm] = match(overlap, picture["kept"][arm], swept.iou, matching)
        shown.append(picture)
    return arms, shown


def lively_patches(swept: Sequence[Counts], images: Sequence[str]) -> NDArray[np.intp]:
    """Patches in the order in which they are worth looking at under two sliders.

    First those in which the number of pairs changes with the IoU and with the confidence, for every one of `swept`
    (counts of the same patches by several detectors); of these the first of each micrograph, then the second of each,
    and so on. Then the others, likewise.
    """
    lively = np.ones(len(images), dtype=bool)
    for counts in swept:
        pairs = counts.pairs.sum(axis=(-2, -1))  # (P, I, C)
        lively &= np.ptp(pairs, axis=1).any(axis=1) & np.ptp(pairs, axis=2).any(axis=1)
    table = pd.DataFrame({"still": ~lively, "image": list(images)})
    table["turn"] = table.groupby(["still", "image"]).cumcount()
    return table.sort_values(["still", "turn"], kind="stable").index.to_numpy()
