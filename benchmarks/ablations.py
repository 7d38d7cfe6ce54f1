"""What each choice of the diffusion changes: ``python benchmarks/ablations.py TRAIN TEST VAL [--profile reference]``.

TRAIN, TEST and VAL are patches folders of a run, e.g. ``runs/reference/phantom/split-1/micrographs/train-n50``. One
choice of the profile at a time is put to another value (the paper's, or one that the paper does not have), the networks
are trained again, and images for the masks of one half of the test micrographs are compared with the other half: next
to its own original an image would seem more alike than two micrographs ever are. Each training draws at every guidance
of `GUIDANCE`; "chosen" is the one that validation masks choose. Autoencoders are compared by what they make of the
first half itself, without a denoiser; "labelled" is that half itself, the ceiling. Features are in all rows those of
the profile's own autoencoder.

Columns: contrast of each class over that in TRAIN (aim: within 0.15 of 1); recall of a detector (``--detector``,
trained on labelled patches alone) on these images over that on the labelled ones of the same masks (aim: 0.85);
contrast that moved and turned loops keep (aim: 0.8, mean over `LOOPS`); AUC of a classifier (aim: at most 0.75, mean
over `DEALS`); worst difference of the power spectra, decades (aim: 0.15), and the mean over frequencies; difference of
the grey levels across outlines.

``--jobs K`` trains K side by side, each in a process of its own. A line of JSON is appended to ``--out`` the moment
that it is known. Interrupted, the same command goes on after the last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from companion.config import Profile, load_profile
from companion.detection.predict import predict
from companion.detection.train import load_detector
from companion.device import open_device
from companion.diffusion import measures, quality
from companion.diffusion.autoencoder import Autoencoder, reconstruct
from companion.diffusion.denoiser import outlined
from companion.diffusion.sample import LatentDiffusion, noise_of, put_back
from companion.diffusion.train import Fitting, get_autoencoder, get_denoiser
from companion.layout import given as project_file
from companion.micrographs.patches import Patches, instance_table, load_patches
from companion.seeds import Seeds
from companion.stats import c2st_auc
from companion.studies.faithfulness import found_defects

GUIDANCE = [1.0, 1.25, 1.5, 2.0]
LOOPS, DEALS, MOST = 64, 20, 200  # loops moved; deals of the classifier; patches drawn for each row
TRAINED = {"diffusion.autoencoder.weights": None, "diffusion.autoencoder.steps": 600}  # on the N micrographs
NOISELESS = {"sampling.noise": "none"}
AUTOENCODERS: dict[str, dict[str, Any]] = {
    "as the profile": {},
    "no noise put back": NOISELESS,
    "trained here": TRAINED,
}
AT_INPUT = {"mask_at": "input", "outline": "none"}


def denoisers(steps: int) -> dict[str, dict[str, Any]]:
    """Changes of ``diffusion.denoiser`` by the name of the choice; the most telling first."""
    return {
        "as the profile": {},
        "mask at the input (paper)": AT_INPUT | {"mask_channels": 4},
        "32 mask features at the input": AT_INPUT,
        "no outline": {"outline": "none"},
        "distance to the outline": {"outline": "distance"},
        "min-SNR 5": {"min_snr": 5.0},
        "no stem": {"stem": 1},
        "twice as wide": {"channels": [128, 192]},
        "twice as long": {"steps": 2 * steps},
        "no weight on defects (paper)": {"defect_weight": 0.0},
        "mask: bilinear (paper)": {"mask_encoding": "bilinear"},
        "predicts ε (paper)": {"prediction": "epsilon"},
        "L1 loss (paper)": {"loss": "l1"},
    }


def changed(P: Profile, changes: Mapping[str, Any]) -> Profile:
    """The profile with other entries; unlike `load_profile`, None is a value."""
    content = P.model_dump()
    for name, value in changes.items():
        *sections, last = name.split(".")
        place = content
        for section in sections:
            place = place[section]
        place[last] = value
    return Profile.model_validate({**content, "changed": {**P.changed, **changes}})


def autoencoder_of(P: Profile, train: Patches, fitting: Fitting) -> Autoencoder:
    """Given or trained, as the profile says."""
    weights = P.diffusion.autoencoder.weights
    return get_autoencoder(train, P.diffusion.autoencoder, fitting, project_file(weights) if weights else None)[0]


def moved_loops(patches: Patches, rng: np.random.Generator) -> tuple[list[Patches], pd.DataFrame]:
    """Patches of `LOOPS` whole loops, the same with that loop turned by 90 degrees at a free place, and the loops.

    Without images. Loops: all classes but the last, black dots, where there are several.
    """
    table, edge = patches.table, measures.RING_PX
    loops = table[~table["touches_border"] & (table["class"] < max(2, len(patches.classes)))]
    before, after, labels, kept = [], [], [], []
    for loop in loops.iloc[rng.permutation(len(loops))].astype(int).itertuples():
        ids = np.array(patches.instances[loop.patch])
        shape = np.rot90(ids[loop.y1 : loop.y2, loop.x1 : loop.x2] == loop.instance)
        rest = np.where(ids == loop.instance, 0, ids)
        for y, x in rng.integers(edge, max(edge + 1, patches.size - edge - max(shape.shape)), size=(40, 2)):
            around = np.s_[y - edge : y + shape.shape[0] + edge, x - edge : x + shape.shape[1] + edge]
            if ids[around].shape == tuple(side + 2 * edge for side in shape.shape) and not ids[around].any():
                rest[y : y + shape.shape[0], x : x + shape.shape[1]][shape] = loop.instance
                own = patches.of(loop.patch)
                labels += [{(len(kept), int(i)): int(c) for i, c in zip(own["instance"], own["class"], strict=True)}]
                before, after = [*before, ids], [*after, rest]
                kept.append((len(kept), loop.instance, loop.patch))
                break
        if len(kept) == LOOPS:
            break
    chosen = pd.DataFrame(kept, columns=["patch", "instance", "from"])
    index = patches.index.iloc[chosen["from"]].assign(patch=range(len(kept)))
    codes = {place: code for one in labels for place, code in one.items()}
    tables = [instance_table(np.array(ids), codes) for ids in (before, after)]
    sets = [replace(patches, images=None, instances=np.array(ids), index=index, table=table)
            for ids, table in zip((before, after), tables, strict=True)]  # fmt: skip
    return sets, chosen[["patch", "instance"]]


class Bench:
    """Patches to train on, validation and test patches, and what judges images drawn for the masks of the latter."""

    def __init__(self, P: Profile, given: argparse.Namespace) -> None:
        self.train, test, self.val = map(load_patches, (given.train, given.test, given.val))
        self.device, self.folder = open_device(P.device), given.folder
        half = test.index["image"].isin(sorted(set(test.index["image"]))[::2]).to_numpy()
        self.held = test.only(np.flatnonzero(~half))
        self.drawn = quality.few(test.only(np.flatnonzero(half)), np.random.default_rng(0), MOST)
        fitting = Fitting(self.device, Seeds(P.root_seed, "judge"), self.folder / "judge", 1000)
        self.judge = autoencoder_of(P, self.train, fitting)
        self.contrast = quality.contrast_by_class(quality.few(self.train, np.random.default_rng(0), 500))
        self.profile, (self.power, self.seen) = across(self.held), self.look(self.held.images)
        self.detector = load_detector(given.detector, self.device)[0] if given.detector else None
        self.faithfulness, self.recall = P.faithfulness, 1.0  # the recall that others are divided by
        self.recall = self.found(self.drawn) or np.nan
        self.loops, self.moved = moved_loops(self.drawn, np.random.default_rng(0))

    def look(self, images: NDArray[np.uint8]) -> tuple[NDArray, NDArray]:
        """Mean power spectrum, and what the classifier sees of every image."""
        power = measures.power_spectra(images)[1]
        return power.mean(axis=0), np.hstack([self.judge.features(images), np.log10(power + 1e-9)])

    def found(self, images: Patches) -> float:
        """Recall of the detector over its recall on labelled patches; NaN without one."""
        if self.detector is None:
            return np.nan
        judged = {"": (images, predict(self.detector, images.images, self.device))}
        return float((found_defects(judged, self.faithfulness)["error"] != "missed").mean()) / self.recall

    def score(self, images: Patches) -> dict[str, float]:
        """The measures of images for the masks of `drawn`, against the held-out half."""
        power, seen = self.look(images.images)
        apart, rng = quality.spectral_distance(power, self.power), np.random.default_rng(1)
        groups = [patches.index["image"].to_numpy() for patches in (images, self.held)]
        contrast = quality.contrast_by_class(images) / self.contrast
        return {
            **{f"contrast {name}": value for name, value in contrast.items()},
            "recall": self.found(images),
            "c2st_auc": c2st_auc(seen, self.seen, *groups, rng, deals=DEALS),
            "spectrum, worst": apart.max(), "spectrum": apart.mean(),
            "profile": np.nanmean(np.abs(across(images) - self.profile)),
        }  # fmt: skip

    def kept(self, ldm: LatentDiffusion) -> float:
        """Contrast that moved and turned loops keep, mean over them."""
        means = []
        for patches in self.loops:
            table = patches.table.merge(self.moved, on=["patch", "instance"])
            images = ldm.sample(outlined(patches), range(len(patches)))
            means.append(measures.across_outlines(replace(patches, images=images, table=table))[0]["contrast"].mean())
        return means[1] / means[0]

    def rows(self, kind: str, P: Profile, seed: int) -> Iterator[dict[str, Any]]:
        """Train what the profile asks for (or find it finished), draw and measure: a row per guidance."""
        if kind == "labelled":
            yield self.score(self.drawn)
            return
        seeds, began = Seeds(P.root_seed, "ablations", seed), time.monotonic()
        every = max(P.diffusion.checkpoint_every, P.diffusion.denoiser.steps // 4)  # a checkpoint makes a GPU wait
        fitting = Fitting(self.device, seeds, self.folder / P.folder / str(seed), every)
        autoencoder = autoencoder_of(P, self.train, fitting)
        noise = noise_of(self.train, autoencoder, P.sampling)
        if kind == "autoencoder":
            images = put_back(noise, reconstruct(autoencoder, self.drawn.images), seeds, range(len(self.drawn)))
            yield self.score(replace(self.drawn, images=images))
            return
        denoiser, about = get_denoiser(self.train, autoencoder, P.diffusion.denoiser, fitting)
        train_s = time.monotonic() - began
        models = LatentDiffusion(autoencoder, denoiser, P.sampling, self.device, seeds, noise).each()
        chosen, study = quality.choose_guidance(models, self.val, seeds.rng("choosing"))
        alone = self.drawn.index.assign(image=self.drawn.index["patch"])  # generated patches are of no micrograph
        for ldm, off in zip(models, study["off"], strict=True):
            images = ldm.sample(outlined(self.drawn), range(len(self.drawn)))
            scores = self.score(replace(self.drawn, images=images, index=alone))
            yield {"guidance": ldm.settings.guidance, "chosen": ldm is chosen, "off": off, **scores,
                   "moved": self.kept(ldm), "train_s": train_s,
                   "loss": float(np.mean([row[P.diffusion.denoiser.loss] for row in about["log"][-100:]])),
                   "parameters": sum(p.numel() for p in denoiser.parameters())}  # fmt: skip


def across(patches: Patches) -> NDArray[np.float64]:
    """Grey level across the outlines of all defects, [K, 2 * PROFILE_PX]; NaN where there are no pixels."""
    total, count = (part.sum(axis=0) for part in measures.across_outlines(patches)[1:])
    return total / np.where(count > 0, count, np.nan)


def main() -> None:
    """Train every choice with every seed, here or in processes side by side; print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("train", "test", "val"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--profile", default="reference")
    parser.add_argument("--detector", type=Path, help="weights.safetensors of an EXP detector of the same N")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--steps", type=int, help="of the denoiser, instead of the profile's")
    names = ["labelled", *(f"autoencoder: {name}" for name in AUTOENCODERS), *denoisers(1)]
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=f"of {names}")
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    parser.add_argument("--folder", type=Path, default=Path("runs/ablations"), help="of networks and checkpoints")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("results.jsonl"))
    given = parser.parse_args()
    P = load_profile(given.profile, changes={"diffusion.denoiser.steps": given.steps})
    works = list(product(given.only, given.seeds))
    if given.jobs > 1:

        def alone(work: tuple[str, int]) -> int:
            words = [sys.executable, __file__, *sys.argv[1:], "--jobs", "1", "--only", work[0], "--seeds", str(work[1])]
            return subprocess.run(words, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False).returncode

        with ThreadPoolExecutor(given.jobs) as workers:
            failed = [work for work, code in zip(works, workers.map(alone, works), strict=True) if code]
        sys.exit(f"failed: {failed}" if failed else 0)
    bench, rows = Bench(P, given), []
    setting = {"profile": P.name, "train": str(given.train), "steps": P.diffusion.denoiser.steps,
               "drawn": len(bench.drawn), "held": len(bench.held), "loops": len(bench.moved),
               "device": str(bench.device.torch)}  # fmt: skip
    for name, seed in works:
        kind, choice = name.split(": ", 1) if name.startswith("autoencoder: ") else ("denoiser", name)
        if name == "labelled":
            kind, changes = name, {}
        elif kind == "autoencoder":
            changes = AUTOENCODERS[choice]
        else:
            now = denoisers(P.diffusion.denoiser.steps)[name]
            changes = {f"diffusion.denoiser.{key}": value for key, value in now.items()}
            changes["sampling.guidance"] = GUIDANCE
        for row in bench.rows(kind, changed(P, changes), seed):
            rows.append({"kind": kind, "choice": choice, "seed": seed, **row})
            with given.out.open("a", encoding="utf-8") as file:  # one write, so that lines of several jobs stay whole
                file.write(json.dumps({"benchmark": "ablations", "setting": setting, **rows[-1]}, default=float) + "\n")
    print(pd.DataFrame(rows).round(3).to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
