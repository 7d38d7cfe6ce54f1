"""How many passes are enough: ``python benchmarks/schedule.py [--network tiny] [--passes 300 600 1200]``.

Trains detectors on one set of phantom patches (arm EXP) and prints F1_HM on held-out patches against the number of
passes (images times optimiser steps), for the paper's optimiser and for modern ones, and for patches at their own size
against patches enlarged as the paper enlarges them; of R50-FPN and the compact network also for the presets as they
are. A learning rate that ends depends on where it ends: every number of passes is a training of its own. Interrupted,
the same command goes on from the last checkpoint. Appends a line of JSON to ``benchmarks/results.jsonl``; ``--only``
picks schedules, and prints them without a record.

On a GPU, whether `native` and `compact` lose anything against `paper`, and how many passes are enough (fecral shows
each grain three times: micrographs of one grain stay on one side)::

    python benchmarks/schedule.py --network r50-fpn --size 256 --enlarge 3 --preset fecral --n-train 50 --n-test 22 \
        --seeds 1 2 --passes 12800 51200 200000 --bfloat16 --compile
    python benchmarks/schedule.py --network compact --size 256 --enlarge 3 --preset fecral --n-train 50 --n-test 22 \
        --seeds 1 2 3 4 --passes 12800 25600 64000 200000 --bfloat16 --compile
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from functools import partial
from pathlib import Path

import pandas as pd

from companion import paths
from companion.micrographs.cutting import cut_patches
from companion.micrographs.dataset import load_dataset
from companion.micrographs.patches import Patches
from companion.micrographs.splits import make_split
from companion.detection.predict import predict
from companion.detection.presets import PRESETS
from companion.detection.recipes import recipe
from companion.detection.train import train_detector
from companion.evaluation.scores import count, tabulate
from companion.measurements import finished, forget, record, seconds
from companion.config.profile import Detection, Profile
from companion.config.profile import Patches as Cut
from companion.config.phantom import Phantom
from companion.phantom.render import render_dataset
from companion.provenance import hash_value
from companion.training import compute

NETWORKS = {"tiny": "tiny", "compact": "compact", "r50-fpn": "native"}  # whose preset gives anchors and regions
AS_THEY_ARE = {"tiny": (), "compact": ("compact",), "r50-fpn": ("paper", "native")}
CHECKPOINTS = 20  # of each training
COLUMNS = ["schedule", "passes", "seed", "confidence", "f1_detect", "f1_class", "f1_hm", "train_s"]


def schedules(network: str, size: int, enlarge: int) -> dict[str, Detection]:
    """Settings by name; `steps` is set by the number of passes."""
    base = PRESETS[NETWORKS[network]]
    sides = [[s * enlarge for s in ([side] if isinstance(side, int) else side)] for side in base.anchor_sizes_px]
    adamw = {"optimizer": "adamw-one-cycle", "learning_rate": 2e-3 if network != "r50-fpn" else 5e-4}
    sgd = {"optimizer": "sgd", "learning_rate": 2.5e-4, "batch_size": 2}
    rows = {
        "SGD 2.5e-4, batch 2 (the paper's)": sgd,
        "SGD 1e-2, batch 8": {"optimizer": "sgd", "learning_rate": 1e-2, "batch_size": 8},
        "AdamW one cycle, batch 8": {**adamw, "batch_size": 8},
        "AdamW one cycle, batch 32": {**adamw, "batch_size": 32},
        f"AdamW one cycle, batch 8, enlarged {enlarge}x": {
            **adamw, "batch_size": 8, "resize_px": enlarge * size, "anchor_sizes_px": sides
        },
    }  # fmt: skip
    made = {name: base.model_copy(update=changes) for name, changes in rows.items()}
    return made | {f"preset {name}": PRESETS[name] for name in AS_THEY_ARE[network]}


def phantom(profile: Profile, n_train: int) -> tuple[Patches, Patches]:
    """Training patches of `n_train` micrographs and test patches of others."""
    with tempfile.TemporaryDirectory() as folder:
        render_dataset(profile.phantom, profile.root_seed, Path(folder) / "set")
        dataset, cut = load_dataset(Path(folder) / "set"), profile.patches
        group_by = "grain" if profile.phantom.preset == "fecral" else None
        split = make_split(dataset, 1, [n_train], profile.n_test, profile.root_seed, group_by=group_by)
        train = cut_patches(dataset, split.train, cut.size, cut.train_stride, cut.min_visible, cut.symmetries)[0]
        return train, cut_patches(dataset, split.test, cut.size, cut.test_stride, cut.min_visible)[0]


def score(
    settings: Detection, train: Patches, test: Patches, profile: Profile, seed: int, folder: Path
) -> dict[str, float]:
    """Scores at IoU 0.5 and the confidence of the sweep that is best for F1_HM, and the seconds of the training.

    `folder` keeps its checkpoints until it is done; the seconds are those since the last start.
    """
    made = recipe(
        "EXP", {"real": train}, batch_size=settings.batch_size, generated_share=0, root_seed=profile.root_seed,
        names=("schedule", seed),
    )  # fmt: skip
    hardware = compute(profile)
    began = seconds(hardware.device.type)
    detector, _ = train_detector(made, settings, hardware, folder, inputs={})
    took = seconds(hardware.device.type) - began
    found = predict(detector, test.images, hardware)
    shutil.rmtree(folder)
    codes = range(1, len(test.classes) + 1)
    table = tabulate(count(found, test.table, range(len(test)), codes, [0.5], profile.evaluation.confidence_sweep))
    best = table.loc[table["f1_hm"].fillna(table["f1_detect"] * 1e-6).idxmax()]
    return {**{key: best[key] for key in ("confidence", "f1_detect", "f1_class", "f1_hm")}, "train_s": took}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="tiny", choices=sorted(NETWORKS))
    parser.add_argument("--size", type=int, default=128, help="side of a patch, px")
    parser.add_argument("--enlarge", type=int, default=2, help="how much larger the paper's way sees a patch")
    parser.add_argument("--preset", default="plain", help="of the phantom")
    parser.add_argument("--n-train", type=int, default=10, help="training micrographs")
    parser.add_argument("--n-test", type=int, default=6, help="test micrographs")
    parser.add_argument("--passes", type=int, nargs="+", default=[320, 640, 1280])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--only", nargs="+", help="names of schedules; all by default")
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    given = parser.parse_args()
    profile = Profile(
        name="schedule", n_test=given.n_test, precision="bfloat16" if given.bfloat16 else "float32",
        phantom=Phantom(preset=given.preset, n_images=given.n_train + given.n_test),
        patches=Cut(size=given.size, train_stride=given.size * 3 // 4, test_stride=given.size * 3 // 4),
    )  # fmt: skip
    train, test = phantom(profile, given.n_train)
    rows = []
    every_one = schedules(given.network, given.size, given.enlarge)
    if unknown := set(given.only or ()) - set(every_one):
        parser.error(f"no schedule {', '.join(sorted(unknown))}; there are: {', '.join(every_one)}")
    for name, settings in every_one.items():
        if given.only and name not in given.only:
            continue
        for passes in given.passes:
            for seed in given.seeds:
                steps = max(1, passes // settings.batch_size)
                every = max(1, steps // CHECKPOINTS)
                timed = settings.model_copy(
                    update={"steps": steps, "checkpoint_every": every, "compile": given.compile}
                )
                asked = {"profile": profile.model_dump(mode="json"), "n_train": given.n_train, "seed": seed,
                         "detection": timed.model_dump(mode="json")}  # fmt: skip
                folder = paths.runs() / "benchmarks" / "schedule" / hash_value(asked)[:16]
                found = finished("schedule", asked, partial(score, timed, train, test, profile, seed, folder))
                rows.append({"schedule": name, "passes": passes, "seed": seed, **found})
                print(f"{name}, {passes} passes, seed {seed}: F1_HM {found['f1_hm']}", flush=True)
    table = pd.DataFrame(rows)[COLUMNS]
    setting = {**vars(given), "training_patches": len(train), "test_defects": len(test.table)}
    if not given.only:
        record("schedule", setting=setting, measured=table.to_dict("records"))
        forget("schedule")
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
