"""How many passes are enough: ``python benchmarks/schedule.py TRAIN HELD [--passes 8000 16000 32000]``.

TRAIN and HELD are patches folders of a run; HELD are not its tests, e.g. ``fresh``: what is chosen here may not have
seen them. Trains detectors on labelled patches alone (arm EXP) and prints the best F1HM on HELD against the number of
passes (images times optimiser steps), for the profile's settings and for one change of them at a time. A learning rate
that ends depends on where it ends: every number of passes is a training of its own. Interrupted, the same command goes
on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from companion import layout
from companion.config import load_profile
from companion.config.sections import Detection
from companion.detection.data import recipe_of
from companion.detection.predict import predict
from companion.detection.train import train_detector
from companion.device import Device, open_device
from companion.evaluation.formats import truth_of
from companion.evaluation.scores import count, pooled
from companion.micrographs.patches import Patches, load_patches
from companion.provenance import hash_value
from companion.seeds import Seeds

CONFIDENCE = [round(0.05 * k, 2) for k in range(1, 20)]


def schedules(base: Detection, size: int, enlarge: float) -> dict[str, Detection]:
    """Settings by name; `steps` is set by the number of passes."""
    side = round(enlarge * size / 32) * 32
    sides = [[round(s * side / size) for s in ([level] if isinstance(level, int) else level)]
             for level in base.anchor_sizes_px]  # fmt: skip
    changes: dict[str, dict[str, Any]] = {
        "the profile's": {},
        "half the peak rate": {"learning_rate": base.learning_rate / 2},
        "twice the peak rate": {"learning_rate": base.learning_rate * 2},
        "half the batch": {"batch_size": base.batch_size // 2},
        "twice the batch": {"batch_size": base.batch_size * 2},
        "enlarged": {"resize_px": side, "anchor_sizes_px": sides},
        "SGD 1e-2": {"optimizer": "sgd", "learning_rate": 1e-2},
        "SGD 2.5e-4, batch 2 (the paper's)": {"optimizer": "sgd", "learning_rate": 2.5e-4, "batch_size": 2},
    }
    return {name: base.model_copy(update=change) for name, change in changes.items()}


def score(settings: Detection, train: Patches, test: Patches, seeds: Seeds, device: Device) -> dict[str, float]:
    """Scores at box IoU 0.5 and at the confidence that is best for F1HM; weights are kept and found again."""
    about, began = [settings.model_dump(mode="json"), list(seeds.names), len(train)], time.monotonic()
    folder = layout.runs() / "benchmarks" / "schedule" / hash_value(about)[:16]
    detector, _ = train_detector(recipe_of("EXP", train, None, settings, seeds), settings, device, folder)
    spent = time.monotonic() - began
    scores = pooled(count(predict(detector, test.images, device), truth_of(test), [0.5], CONFIDENCE))
    best = int(np.nan_to_num(scores["f1_hm"][0]).argmax())
    found = {name: float(scores[name][0, best]) for name in ("f1_detect", "f1_class", "f1_hm")}
    return {"confidence": CONFIDENCE[best], **found, "training_s": spent}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("held", type=Path)
    parser.add_argument("--profile", default="smoke")
    parser.add_argument("--enlarge", type=float, default=2.0, help="how much larger the paper's way sees a patch")
    parser.add_argument("--only", nargs="+", help="names of schedules; all by default")
    parser.add_argument("--passes", type=int, nargs="+", default=[320, 640, 1280])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    given = parser.parse_args()
    P = load_profile(given.profile)
    train, test, device, rows = load_patches(given.train), load_patches(given.held), open_device(P.device), []
    choices = schedules(P.detection, train.size, given.enlarge)
    for name, settings in {name: choices[name] for name in given.only or choices}.items():
        for passes in given.passes:
            steps = max(1, passes // settings.batch_size)
            settings = settings.model_copy(update={"steps": steps, "checkpoint_every": max(1, steps // 20)})
            for seed in given.seeds:
                found = score(settings, train, test, Seeds(P.root_seed, "schedule", seed), device)
                rows.append({"schedule": name, "passes": passes, "seed": seed, **found})
                print(f"{name}, {passes} passes, seed {seed}: F1HM {found['f1_hm']:.3f}", flush=True)
    with Path(__file__).with_name("results.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"benchmark": "schedule", "setting": vars(given), "rows": rows}, default=str) + "\n")
    print(pd.DataFrame(rows).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
