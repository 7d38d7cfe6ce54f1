"""Simulated masks: how fast, and how far from real ones that the samplers have not seen.

    python benchmarks/masks.py [--masks 10000] [--micrographs 24] [--learned 400]

Real masks are those of phantom micrographs of 1024 px (preset fecral: three magnifications, an annotator), cut as in
the paper (256 px, 192 px apart). Times are for masks of 256 px with their tables, on one core. Then each sampler draws
from half of the micrographs and is compared with the other half. Prints tables and appends a line of JSON to
``benchmarks/results.jsonl``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from companion.config.phantom import Phantom
from companion.config.sections import Masks
from companion.masks.compare import compare, describe
from companion.masks.simulate import simulate, variants
from companion.masks.statistics import counts, measure
from companion.micrographs.cutting import cut_patches
from companion.micrographs.dataset import load_dataset
from companion.micrographs.patches import Patches
from companion.phantom.render import render_dataset


def phantom_patches(micrographs: int) -> list[Patches]:
    """Patches of phantom micrographs like the paper's: those of every second micrograph, and the others."""
    with tempfile.TemporaryDirectory() as folder:
        render_dataset(Phantom(preset="fecral", n_images=micrographs), 0, Path(folder))
        data = load_dataset(folder)
        return [cut_patches(data, data.files[k::2], 256, 192, 0.25, (0, 1, 2, 3))[0] for k in (0, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--masks", type=int, default=10_000, help="masks that are timed")
    parser.add_argument("--micrographs", type=int, default=24, help="phantom micrographs of 1024 px")
    parser.add_argument("--learned", type=int, default=400, help="training steps of the learned sampler; 0: left out")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    seen, unseen = phantom_patches(arguments.micrographs)
    statistics, per_patch = measure(seen), counts(seen)
    compared = ["companion", "learned"] if arguments.learned else ["companion"]
    settings = Masks(n_patches=len(unseen), compare=compared, learned_steps=max(1, arguments.learned))
    rows, described = [], {"real, seen half": describe(seen, settings.crystal_fold)}
    for name, variant in variants(settings).items():
        found = simulate(statistics, per_patch, seen, variant, np.random.default_rng(1), name)
        described[name] = describe(found.patches, settings.crystal_fold, found.origin)
        if not name.startswith("+"):
            many, began = variant.model_copy(update={"n_patches": arguments.masks}), time.process_time()
            table = simulate(statistics, per_patch, seen, many, np.random.default_rng(0), name).patches.table
            rows.append((name, arguments.masks, len(table), time.process_time() - began))
    speed = pd.DataFrame(rows, columns=["sampler", "masks", "defects", "cpu_s"])
    print(f"phantom: {len(seen)} patches, {len(seen.table) / len(seen):.2f} defects each\n")
    print(speed.round(2).to_string(index=False), "\naim: 15 s, rendering included (learned: and training)\n")
    truth = describe(unseen, settings.crystal_fold)
    found = compare(truth, described, settings.crystal_fold, np.random.default_rng(2)).iloc[1:]
    print(found.round(3).to_string(index=False), "\naim: AUC <= 0.60 for the best")
    line = {"benchmark": "masks", **vars(arguments), "speed": rows, "compared": found.to_dict("records")}
    with (Path(__file__).parent / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
