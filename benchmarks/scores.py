"""How long scoring takes: every confidence, IoU and matching rule for the paper's 48 runs of 550 test patches.

    python benchmarks/scores.py [--runs 48] [--patches 550] [--workers 2]

Predictions are drawn around random truths (3.37 defects per patch, as in the paper's test set). The table gives
wall and CPU seconds per rule (they differ on a busy machine); part of the rows is checked against counting one
threshold at a time.
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pandas as pd

from companion.evaluation.matching import MATCHINGS, Matching
from companion.evaluation.scores import count, tabulate
from companion.geometry import box_iou
from companion.measurements import record

BOX = ["x1", "y1", "x2", "y2"]
IOU = [round(0.1 * k, 1) for k in range(1, 10)]
CONFIDENCE = [round(0.05 * k, 2) for k in range(1, 20)]
CLASSES = (1, 2, 3)


def draw(seed: int, patches: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Predictions and truths of one run: 0-17 defects a patch, crowded, found with jitter among false ones."""
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(patches), np.minimum(rng.poisson(3.37, patches), 17))
    n = len(owner)
    corner, side = rng.uniform(0, 220, (n, 2)), rng.lognormal(3.2, 0.5, (n, 2))
    boxes = np.hstack([corner, corner + side])
    truths = pd.DataFrame(boxes, columns=BOX).assign(patch=owner, **{"class": rng.integers(1, 4, n)})
    copies = np.repeat(np.arange(n), rng.poisson(1.4, n))  # a defect is found never, once or several times
    found = truths.iloc[copies].rename(columns={"class": "label"}).reset_index(drop=True)
    found[BOX] += rng.normal(0, 0.1, (len(found), 4)) * np.tile(side[copies], 2)
    false = truths.sample(n, replace=True, random_state=seed).rename(columns={"class": "label"})
    false = false.assign(patch=rng.integers(0, patches, n))
    table = pd.concat([found, false], ignore_index=True)
    table[["x2", "y2"]] = np.maximum(table[["x2", "y2"]], table[["x1", "y1"]].to_numpy() + 1)
    return table.assign(score=rng.uniform(0.05, 1, len(table))), truths


def score(job: tuple[int, int, Matching]) -> tuple[pd.DataFrame, float]:
    """All scores of one run under one rule, and the CPU seconds they took."""
    seed, patches, rule = job
    found, truths = draw(seed, patches)
    start = time.process_time()
    return tabulate(count(found, truths, range(patches), CLASSES, IOU, CONFIDENCE, rule)), time.process_time() - start


def plain_pairs(found: pd.DataFrame, truths: pd.DataFrame, patches: int, iou: float, confidence: float) -> int:
    """Matched pairs under truth-greedy, one threshold and one patch at a time."""
    total = 0
    for patch in range(patches):
        here = found[(found["patch"] == patch) & (found["score"] >= confidence)]
        overlap = box_iou(truths.loc[truths["patch"] == patch, BOX].to_numpy(), here[BOX].to_numpy())
        for row in overlap:
            if row.size and row.max() >= iou:
                overlap[:, row.argmax()] = -1
                total += 1
    return total


def check(patches: int, places: Iterable[tuple[float, float]]) -> None:
    """Stop when the sweep and plain counting differ anywhere."""
    found, truths = draw(0, patches)
    table = score((0, patches, "truth-greedy"))[0].set_index(["iou_threshold", "confidence"])
    for iou, confidence in places:
        expected = plain_pairs(found, truths, patches, iou, confidence)
        if table.loc[(iou, confidence), "tp"] != expected:
            raise SystemExit(f"IoU {iou}, confidence {confidence}: {table.loc[(iou, confidence), 'tp']} ≠ {expected}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=48)
    parser.add_argument("--patches", type=int, default=550)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    check(min(options.patches, 200), [(0.1, 0.05), (0.5, 0.5), (0.7, 0.3), (0.9, 0.9)])
    seconds, busy = {}, {}
    with ProcessPoolExecutor(options.workers) as pool:
        list(pool.map(score, [(0, 2, "optimal")] * options.workers))  # start the workers before the clock
        for rule in MATCHINGS:
            start = time.perf_counter()
            tables = list(pool.map(score, [(seed, options.patches, rule) for seed in range(options.runs)]))
            seconds[rule] = time.perf_counter() - start
            busy[rule] = sum(cpu for _, cpu in tables)
    rows = sum(len(table) for table, _ in tables)
    print(f"{options.runs} runs x {options.patches} patches x {len(IOU)} IoU x {len(CONFIDENCE)} confidences")
    print(f"{'rule':>14} {'wall, s':>8} {'CPU, s':>8}")
    for rule in MATCHINGS:
        print(f"{rule:>14} {seconds[rule]:8.1f} {busy[rule]:8.1f}")
    print(f"{'all':>14} {sum(seconds.values()):8.1f} {sum(busy.values()):8.1f}")
    print(f"{options.workers} workers on {os.cpu_count()} cores ({platform.machine()}); {rows} rows a rule; "
          "equal to counting one threshold at a time")  # fmt: skip
    record("scores", **vars(options), wall_s=seconds, cpu_s=busy)


if __name__ == "__main__":
    main()
