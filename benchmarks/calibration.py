"""How hard the phantom is: ``python benchmarks/calibration.py [--preset fecral] [--profile course] [--sizes 10 50]``.

Trains the reference detector on micrographs alone (EXP) at several N, on one split, and prints F1 at IoU 0.5, with
the best confidence of the sweep, and the gain from the smallest to the largest N with a bootstrap interval over the
test micrographs. The paper's regime at N=50 is F1_detect and F1_class of 0.6 to 0.85, rising with N.
Appends a line of JSON to ``benchmarks/results.jsonl``; ``--record`` also states the result on the phantom's data set
card. ``--preset binned --steps 3000 --record`` takes about 25 minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import pandas as pd

from companion import measurements, seeds
from companion.micrographs.cutting import cut_patches
from companion.micrographs.dataset import load_dataset
from companion.micrographs.splits import profile_split
from companion.detection.predict import predict
from companion.detection.recipes import recipe_of
from companion.detection.train import train_detector
from companion.evaluation.resampling import nested_bootstrap
from companion.evaluation.scores import Counts, count, tabulate
from companion.kinds import KINDS
from companion.config.profile import Profile, load_profile
from companion.config.phantom import PRESETS, Phantom
from companion.phantom.difficulty import record
from companion.phantom.render import render_dataset
from companion.stages import Stage
from companion.training import compute

COLUMNS = ["preset", "n_train", "steps", "confidence", "precision", "recall", "f1_detect", "f1_class", "f1_hm"]


def calibrate(profile: Profile, n_train: int, folder: Path) -> tuple[dict[str, float], Counts, pd.Series]:
    """One EXP detector: its scores at the confidence that is best for F1_HM, its counts, the micrograph per patch."""
    dataset, cut = load_dataset(folder / "set"), profile.patches
    split = profile_split(dataset, 1, profile)
    train, _ = cut_patches(dataset, split.train[:n_train], cut.size, cut.train_stride, cut.min_visible, cut.symmetries)
    test, _ = cut_patches(dataset, split.test, cut.size, cut.test_stride, cut.min_visible)
    stage = Stage(KINDS["detector"], {"split": 1, "n_train": n_train, "arm": "EXP", "seed": 1}, profile)
    recipe, hardware = recipe_of(stage, {"real": train}), compute(profile)
    detector, _ = train_detector(recipe, profile.detection, hardware, folder / f"n-{n_train}", inputs={})
    found = predict(detector, test.images, hardware)
    counts = count(
        found, test.table, range(len(test)), range(1, len(test.classes) + 1), [0.5], profile.evaluation.confidence_sweep
    )
    table = tabulate(counts)
    best = table.loc[table["f1_hm"].fillna(table["f1_detect"] * 1e-6).idxmax()]
    return {**best.to_dict(), "n_train": n_train, "steps": profile.detection.steps}, counts, test.index["image"]


def gains(runs: list[tuple[dict[str, float], Counts, pd.Series]], profile: Profile) -> list[dict[str, float]]:
    """Differences of the last run from the first, with intervals over resampled test micrographs."""
    (first, before, images), (last, after, _) = runs[0], runs[-1]
    sweep = list(profile.evaluation.confidence_sweep)
    places = tuple((0, sweep.index(row["confidence"])) for row in (first, last))
    arms, evaluation = ([before], [after]), profile.evaluation
    return [
        {"measure": measure, **nested_bootstrap(
            arms, images, places, measure, seeds.generator(profile.root_seed, "calibration", measure),
            evaluation.bootstrap, evaluation.confidence_level, seeds=False)}
        for measure in ("f1_detect", "f1_class", "f1_hm")
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=sorted(PRESETS), default="plain")
    parser.add_argument("--profile", default="smoke", help="detector, patches and optimiser steps")
    parser.add_argument("--sizes", type=int, nargs="+", default=[10, 50, 100])
    parser.add_argument("--n-test", type=int, default=22, help="test micrographs")
    parser.add_argument("--steps", type=int, help="optimiser steps instead of the profile's")
    parser.add_argument("--record", action="store_true", help="state the result on the phantom's data set card")
    given = parser.parse_args()
    profile = load_profile(given.profile, n_test=given.n_test, sizes=given.sizes, splits=[1], imbalance_sizes=[])
    phantom = Phantom(preset=given.preset, n_images=max(given.sizes) + profile.n_test)  # enough for every N
    changes = {"steps": given.steps} if given.steps else {}
    detection = profile.detection.model_copy(update=changes)
    profile = profile.model_copy(update={"phantom": phantom, "detection": detection})
    with tempfile.TemporaryDirectory() as folder:
        render_dataset(phantom, profile.root_seed, Path(folder) / "set")
        runs = [calibrate(profile, n, Path(folder)) for n in sorted(given.sizes)]
    rows, gained = [{"preset": given.preset, **row} for row, _, _ in runs], gains(runs, profile)
    print(pd.DataFrame(rows)[COLUMNS].round(3).to_string(index=False))
    print(f"Gain from N={rows[0]['n_train']} to N={rows[-1]['n_train']}:")
    print(pd.DataFrame(gained)[["measure", "difference", "low", "high"]].round(3).to_string(index=False))
    if given.record:
        keep = ["n_train", "confidence", "precision", "recall", "f1_detect", "f1_class", "f1_hm"]
        passes = f"{detection.steps} steps of {detection.batch_size} patches of {profile.patches.size} px"
        record(
            phantom, f"Mask R-CNN '{detection.network}', {passes}", pd.DataFrame(rows)[keep].to_dict("records"), gained
        )
    measurements.record("calibration", profile=given.profile, measured=rows, gain=gained)


if __name__ == "__main__":
    main()
