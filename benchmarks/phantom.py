"""Speed of the phantom: ``python benchmarks/phantom.py [--images 122]``.

Draws the paper-like data set (preset fecral, 1024 px) in one process, prints a table and appends it as a line of
JSON to ``benchmarks/results.jsonl``.
"""

from __future__ import annotations

import argparse
import hashlib
import statistics
import tempfile
import time
from pathlib import Path

import cv2

from companion import seeds
from companion.micrographs.images import write_grey
from companion.measurements import record
from companion.config.phantom import Phantom
from companion.phantom import optics
from companion.phantom.annotator import annotate
from companion.phantom.render import render_dataset
from companion.phantom.scene import draw_scene

ROOT_SEED = 20260602
AIMS = {
    "scene [s]": "",
    "imaging [s]": "",
    "annotator [s]": "",
    "writing PNG [s]": "",
    "one 1024 px micrograph, all of it [s]": "<= 1",
    "data set [micrographs]": "",
    "data set, one process [s]": "<= 90 for 122 on two cores",
    "data set, processor time [s]": "the same, where other programs run beside",
}


def steps(parameters: Phantom, folder: Path, repeats: int = 7) -> dict[str, float]:
    """Median seconds of each step of one micrograph."""
    found: dict[str, list[float]] = {name: [] for name in list(AIMS)[:4]}
    for number in range(1, repeats + 1):
        marks = [time.perf_counter()]
        scene = draw_scene(parameters, ROOT_SEED, number)
        marks.append(time.perf_counter())
        pixels = optics.render(scene, parameters, ROOT_SEED, number)
        marks.append(time.perf_counter())
        annotate(scene, parameters.annotator, seeds.generator(ROOT_SEED, "benchmark", number))
        marks.append(time.perf_counter())
        write_grey(folder / f"{number}.png", pixels)
        marks.append(time.perf_counter())
        for name, begin, end in zip(found, marks[:-1], marks[1:], strict=True):
            found[name].append(end - begin)
    medians = {name: statistics.median(values) for name, values in found.items()}
    totals = [sum(values) for values in zip(*found.values(), strict=True)]
    return {**medians, "one 1024 px micrograph, all of it [s]": statistics.median(totals)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=122, help="micrographs of the data set")
    given = parser.parse_args()
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = steps(Phantom(preset="fecral"), Path(folder))
        began, busy = time.perf_counter(), time.process_time()
        render_dataset(Phantom(preset="fecral", n_images=given.images), ROOT_SEED, Path(folder) / "set")
        found["data set [micrographs]"] = given.images
        found["data set, one process [s]"] = time.perf_counter() - began
        found["data set, processor time [s]"] = time.process_time() - busy
        digest = hashlib.sha256((Path(folder) / "set" / "truth.json").read_bytes()).hexdigest()[:16]
    for name, aim in AIMS.items():
        print(f"{name:<45} {found[name]:>10.3f}   {'aim ' + aim if aim else ''}")
    print(f"sha256 of truth.json: {digest} (to compare between machines)")
    record("phantom", measured=found, truth=digest)


if __name__ == "__main__":
    main()
