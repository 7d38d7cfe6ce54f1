"""How long scoring takes: every confidence, IoU and matching rule for the paper's 48 runs of 550 test patches.

    python benchmarks/scores.py [--runs 48] [--patches 550]

Predictions are drawn around random truths (3.37 defects per patch, as in the paper's test set). The table gives wall
seconds per rule on one core; some thresholds are checked against counting one at a time.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd

from companion.evaluation.formats import BOX, Truth
from companion.evaluation.matching import MATCHINGS
from companion.evaluation.scores import count, tabulate
from companion.geometry import box_iou

IOU = [round(0.1 * k, 1) for k in range(1, 10)]
CONFIDENCE = [round(0.05 * k, 2) for k in range(1, 20)]


def draw(seed: int, patches: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions and truths of one run: 0-17 defects a patch, crowded, found with jitter among false ones."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(patches), np.minimum(rng.poisson(3.37, patches), 17))
    n = len(owner)
    corner, side = rng.uniform(0, 220, (n, 2)), rng.lognormal(3.2, 0.5, (n, 2))
    truths = pd.DataFrame(np.hstack([corner, corner + side]), columns=BOX)
    truths = truths.assign(patch=owner, **{"class": rng.integers(1, 4, n)})
    copies = np.repeat(np.arange(n), rng.poisson(1.4, n))  # a defect is found never, once or several times
    found = truths.iloc[copies].reset_index(drop=True)
    found[BOX] += rng.normal(0, 0.1, (len(found), 4)) * np.tile(side[copies], 2)
    false = truths.sample(n, replace=True, random_state=seed).assign(patch=rng.integers(0, patches, n))
    table = pd.concat([found, false], ignore_index=True).rename(columns={"class": "label"})
    return table.assign(score=rng.uniform(0.05, 1, len(table))), truths


def plain_pairs(found: pd.DataFrame, truths: pd.DataFrame, patches: int, iou: float, confidence: float) -> int:
    """Matched pairs under truth-greedy, one threshold and one patch at a time."""
    total = 0
    for patch in range(patches):
        here = found[(found["patch"] == patch) & (found["score"] >= confidence)]
        overlap = box_iou(truths.loc[truths["patch"] == patch, BOX], here[BOX])
        for row in overlap:
            if row.size and row.max() >= iou:
                overlap[:, row.argmax()] = -1
                total += 1
    return total


parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--runs", type=int, default=48)
parser.add_argument("--patches", type=int, default=550)
options = parser.parse_args()
drawn = [draw(seed, options.patches) for seed in range(options.runs)]
for rule in MATCHINGS:
    start = time.perf_counter()
    known = [Truth(truths, list(range(options.patches)), {1: "a", 2: "b", 3: "c"}) for _, truths in drawn]
    found = [found for found, _ in drawn]
    tables = [tabulate(count(*pair, IOU, CONFIDENCE, rule)) for pair in zip(found, known, strict=True)]
    print(f"{rule:>14} {time.perf_counter() - start:8.1f} s for {sum(map(len, tables))} rows")
    if rule == "truth-greedy":
        scores = tables[0].set_index(["iou_threshold", "confidence"])["tp"]
        for place in ((0.1, 0.05), (0.5, 0.5), (0.9, 0.9)):
            assert scores[place] == plain_pairs(*drawn[0], options.patches, *place), place
