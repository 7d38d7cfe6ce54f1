"""Speed of the phantom: ``python benchmarks/phantom.py [--images 122]``.

Draws the paper-like data sets (presets binned, 512 px, and fecral, 1024 px) in one process, cuts and splits the latter,
prints a table and appends it as a line of JSON to ``benchmarks/results.jsonl``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2

from companion.config.phantom import Phantom
from companion.micrographs.cutting import cut_patches
from companion.micrographs.dataset import load_dataset
from companion.micrographs.importers import import_dataset
from companion.micrographs.splits import choose_split
from companion.phantom.annotator import annotate
from companion.phantom.optics import image
from companion.phantom.render import render_dataset
from companion.phantom.scene import draw_scene
from companion.seeds import Seeds

ROOT_SEED = 20260602


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=122, help="micrographs of the data set")
    n = parser.parse_args().images
    cv2.setNumThreads(1)
    phantom, seeds = Phantom(preset="fecral", n_images=n), Seeds(ROOT_SEED, "phantom")
    measured: dict[str, float] = {}

    def timed(what: str, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        result = work()
        measured[f"{what} [s]"] = time.perf_counter() - began
        print(f"{what:<55} {measured[f'{what} [s]']:8.2f} s")
        return result

    some = range(1, 8)
    scenes = timed("7 scenes of 1024 px", lambda: [draw_scene(phantom, seeds, k) for k in some])
    timed("their images", lambda: [image(scenes[k - 1], phantom, seeds, k) for k in some])
    timed("their labels", lambda: [annotate(scenes[k - 1], phantom.annotator, seeds.rng("annotator", k)) for k in some])
    with tempfile.TemporaryDirectory() as scratch:
        small = Phantom(preset="binned", n_images=n)
        timed(
            f"data set of {n}, binned (aim: 40 s for 122)",
            lambda: render_dataset(small, ROOT_SEED, Path(scratch) / "b"),
        )
        folder = Path(scratch) / "set"
        timed(f"data set of {n} (aim: 90 s for 122)", lambda: render_dataset(phantom, ROOT_SEED, folder))
        dataset = timed("reading and checking it", lambda: load_dataset(folder))
        timed("a split", lambda: choose_split(dataset, 1, "1", [n // 2], n // 5, 0, None, ROOT_SEED))
        timed("cutting it into patches of 256 px", lambda: cut_patches(dataset, dataset.files, 256, 192, 0.25))
        labels, out = folder / "annotations.json", Path(scratch) / "again"
        timed("importing it from COCO", lambda: import_dataset("coco", folder / "images", labels, None, None, out))
        digest = hashlib.sha256((folder / "truth.json").read_bytes()).hexdigest()[:16]
    print(f"sha256 of truth.json: {digest} (to compare between machines)")
    row = {"benchmark": "phantom", "time": datetime.now(UTC).isoformat(timespec="seconds"), "images": n,
           "measured": measured, "truth": digest}  # fmt: skip
    with open(Path(__file__).with_name("results.jsonl"), "a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
