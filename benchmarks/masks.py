"""Simulated masks: how fast, and how far from real ones that the samplers have not seen.

    python benchmarks/masks.py [--masks 10000] [--micrographs 24] [--learned 400]

Real masks are those of phantom micrographs of 1024 px (preset fecral: three magnifications, an annotator), cut as in
the paper (256 px, 192 px apart). Times are for masks of 256 px with their tables, on one core; the plain way draws an
ellipse at a time with rejection in Python. Then each sampler draws from half of the micrographs and is judged against
the other half.
Prints tables and appends a line of JSON to ``benchmarks/results.jsonl``.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from companion.micrographs.cutting import cut_patches
from companion.micrographs.dataset import load_dataset
from companion.micrographs.patches import Patches, instance_table
from companion.masks.judge import describe, judge
from companion.masks.simulate import simulate, variants
from companion.masks.statistics import counts, measure
from companion.measurements import record
from companion.config.profile import Masks, Phantom
from companion.phantom.render import render_dataset

SIZE, STRIDE, MIN_VISIBLE = 256, 192, 0.25
AIM_S, AIM_AUC = 15, 0.60


def phantom_patches(micrographs: int) -> Patches:
    """Patches of phantom micrographs like the paper's: three magnifications, three frames per grain, an annotator."""
    with tempfile.TemporaryDirectory() as folder:
        render_dataset(Phantom(preset="fecral", n_images=micrographs), 0, Path(folder))
        data = load_dataset(folder)
        return cut_patches(data, data.files, SIZE, STRIDE, MIN_VISIBLE, (0, 1, 2, 3))[0]


def halves(patches: Patches, rng: np.random.Generator) -> list[Patches]:
    """The patches of half of the micrographs, and of the others."""
    names = rng.permutation(patches.index["image"].unique())
    parts = []
    for chosen in (names[::2], names[1::2]):
        rows = np.flatnonzero(patches.index["image"].isin(chosen))
        number = pd.Series(np.arange(len(rows)), index=rows)
        table = patches.table[patches.table["patch"].isin(rows)]
        parts.append(Patches(
            None, patches.instances[rows], patches.index.iloc[rows].assign(patch=np.arange(len(rows))),
            table.assign(patch=table["patch"].map(number)), patches.classes, patches.symmetries,
        ))  # fmt: skip
    return parts


def plain_way(
    statistics: pd.DataFrame, per_patch: pd.DataFrame, masks: Masks, rng: np.random.Generator
) -> pd.DataFrame:
    """The paper's sampler as one would write it down: mask after mask, ellipse after ellipse. Returns the table."""
    total = per_patch.groupby("patch")["count"].sum()
    numbers = total[total > 0].to_numpy()
    shares = statistics["class"].value_counts(normalize=True).sort_index()
    shapes = {c: statistics.loc[statistics["class"] == c, ["major_px", "minor_px", "angle_deg"]].to_numpy()
              for c in shares.index}  # fmt: skip
    instances, labels = np.zeros((masks.n_patches, SIZE, SIZE), np.uint8), {}
    for patch in range(masks.n_patches):
        boxes: list[tuple[float, float, float, float]] = []
        for instance in range(1, int(rng.choice(numbers)) + 1):
            code = int(rng.choice(shares.index, p=shares))
            major, minor, angle = shapes[code][rng.integers(len(shapes[code]))]
            for _ in range(masks.overlap_tries):
                x, y = rng.uniform(0, SIZE, 2)
                box = (x - major / 2, y - minor / 2, x + major / 2, y + minor / 2)
                gap = masks.overlap_buffer_px
                if not any(box[0] < b[2] + gap and box[2] > b[0] - gap and box[1] < b[3] + gap and box[3] > b[1] - gap
                           for b in boxes):  # fmt: skip
                    break
            boxes.append(box)
            axes = (round(major / 2), round(minor / 2))
            cv2.ellipse(instances[patch], (round(x), round(y)), axes, -angle, 0, 360, instance, -1)
            labels[patch, instance] = code
    return instance_table(instances, labels)


def timed(masks: int, real: Patches) -> pd.DataFrame:
    """Seconds for every sampler to draw, render and tabulate `masks` masks."""
    statistics, per_patch = measure(real), counts(real)
    settings = Masks(n_patches=masks)
    named = {name: variants(settings)[name] for name in ("authors", "companion", "companion, real outlines")}
    rows = []
    for name in ("authors, an ellipse at a time", *named):
        rng, began = np.random.default_rng(0), (time.perf_counter(), time.process_time())
        if name in named:
            table = simulate(statistics, per_patch, real, named[name], rng, name).patches.table
        else:
            table = plain_way(statistics, per_patch, settings, rng)
        wall, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
        rows.append({"sampler": name, "masks": masks, "defects": len(table), "wall_s": wall, "cpu_s": cpu})
    return pd.DataFrame(rows)


def judged(real: Patches, learned_steps: int) -> pd.DataFrame:
    """Every sampler, drawn from half of the micrographs, against the other half."""
    seen, unseen = halves(real, np.random.default_rng(0))
    statistics, per_patch, compare = measure(seen), counts(seen), ["companion", *(["learned"] if learned_steps else [])]
    settings = Masks(n_patches=len(unseen), compare=compare, learned_steps=max(1, learned_steps))
    described = {"real, seen half": describe(seen, settings.crystal_fold)}
    for name, variant in variants(settings).items():
        drawn = simulate(statistics, per_patch, seen, variant, np.random.default_rng(1), name)
        described[name] = describe(drawn.patches, settings.crystal_fold, drawn.origin)
    truth = describe(unseen, settings.crystal_fold)
    return judge(truth, described, settings.crystal_fold, np.random.default_rng(2)).iloc[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=int, default=10_000, help="masks that are timed")
    parser.add_argument("--micrographs", type=int, default=24, help="phantom micrographs of 1024 px")
    parser.add_argument("--learned", type=int, default=400, help="training steps of the learned sampler; 0: left out")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    real = phantom_patches(arguments.micrographs)
    print(f"phantom: {len(real)} patches of {SIZE} px, {len(real.table) / len(real):.2f} defects each\n")
    speed = timed(arguments.masks, real)
    print(speed.round(2).to_string(index=False), f"\naim: {AIM_S} s on two cores, rendering included\n")
    verdict = judged(real, arguments.learned)
    columns = [c for c in verdict if not c.startswith("wasserstein")]
    print(verdict[columns].round(3).to_string(index=False), f"\naim: AUC <= {AIM_AUC} for the best\n")
    print(verdict[["sampler", *(c for c in verdict if c.startswith("wasserstein"))]].round(3).to_string(index=False))
    record("masks", **vars(arguments), speed=speed.to_dict("records"), judged=verdict.to_dict("records"))


if __name__ == "__main__":
    main()
