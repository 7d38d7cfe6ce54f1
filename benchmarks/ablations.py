"""What each choice of the diffusion changes: ``python benchmarks/ablations.py TRAIN TEST [--profile reference]``.

TRAIN and TEST are patches folders of a run, e.g. ``runs/reference/phantom/split-1/micrographs/train-n10`` and ``test``.
One choice of the profile at a time is put to another value (the paper's, or one that the paper does not have), the
networks are trained again, and new images for the masks of one half of the held-out micrographs are compared with the
other half: an image next to its own original would seem more alike than two real images ever are. Autoencoders are
compared by what they make of the first half itself, without a denoiser. Features are in all rows those of the profile's
own autoencoder. Appends a line of JSON to ``benchmarks/results.jsonl``, which the book shows; about an hour on one CPU
core for the smoke profile. Interrupted, the same command goes on after the last finished training.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from companion.config import Profile, load_profile
from companion.diffusion import quality
from companion.diffusion.autoencoder import Autoencoder, reconstruct
from companion.diffusion.sample import LatentDiffusion, noise_of, put_back
from companion.diffusion.train import Fitting, get_autoencoder, get_denoiser
from companion.layout import given as project_file
from companion.micrographs.patches import Patches, load_patches
from companion.seeds import Seeds
from companion.training import Device, open_device

TRAINED = {"diffusion.autoencoder.weights": None, "diffusion.autoencoder.steps": 600}  # on the N micrographs
COARSE = {"diffusion.autoencoder.downsampling": 8, "diffusion.autoencoder.channels": [16, 32, 64]}
NOISELESS = {"sampling.noise": "none"}
DENOISERS: dict[str, dict[str, Any]] = {
    "as the profile": {},
    "mask: bilinear (paper)": {"diffusion.denoiser.mask_encoding": "bilinear"},
    "predicts ε (paper)": {"diffusion.denoiser.prediction": "epsilon"},
    "L1 loss (paper)": {"diffusion.denoiser.loss": "l1"},
    "no weight on defects (paper)": {"diffusion.denoiser.defect_weight": 0.0},
    "no average of weights": {"diffusion.denoiser.ema_decay": 0.0},
    "guidance 1.5": {"diffusion.denoiser.mask_dropout": 0.1, "sampling.guidance": 1.5},
    "no noise put back (paper)": NOISELESS,
    "f = 4, trained here": TRAINED,
    "f = 8 (paper), trained here": TRAINED | COARSE,
}
AUTOENCODERS: dict[str, dict[str, Any]] = {
    "as the profile": {},
    "as the profile, no noise put back": NOISELESS,
    "trained here, L1": TRAINED | NOISELESS,
    "trained here, L1, noise put back": TRAINED,
    "trained here, L2, noise put back": TRAINED | {"diffusion.autoencoder.loss": "l2"},
    "f = 8, trained here, L1": TRAINED | COARSE | NOISELESS,
}
MEASURES = ["c2st_auc", "power spectrum", "kid", "contrast of defects", "profile across defects"]


@dataclass(frozen=True)
class Bench:
    """Patches to train on, halves of the held-out ones (masks to draw, images to compare with), and their judge."""

    train: Patches
    drawn: Patches
    held: Patches
    judge: Autoencoder
    device: Device
    folder: Path

    def score(self, images: Patches) -> dict[str, float]:
        """The measures against held-out images."""
        rng = np.random.default_rng(1)
        table = quality.judge(images, self.train, self.held, self.judge.features, rng, resamples=2)
        return table.set_index("measure")["value"][MEASURES].to_dict()

    def row(self, kind: str, P: Profile, seed: int) -> dict[str, float]:
        """Train what the profile asks for (or find it finished), draw, and measure."""
        seeds = Seeds(P.root_seed, "ablations", seed)
        fitting = Fitting(self.device, seeds, self.folder / P.folder / str(seed), P.diffusion.checkpoint_every)
        autoencoder = autoencoder_of(P, self.train, fitting)
        noise = noise_of(self.train, autoencoder, P.sampling)
        if kind == "denoiser":
            denoiser, _ = get_denoiser(self.train, autoencoder, P.diffusion.denoiser, fitting)
            ldm = LatentDiffusion(autoencoder, denoiser, P.sampling, self.device, seeds, noise)
            images = ldm.generate(self.drawn, fitting.folder)
        else:
            images = put_back(noise, reconstruct(autoencoder, self.drawn.images), seeds, range(len(self.drawn)))
        return self.score(replace(self.drawn, images=images))


def autoencoder_of(P: Profile, train: Patches, fitting: Fitting) -> Autoencoder:
    """Given or trained, as the profile says."""
    weights = P.diffusion.autoencoder.weights
    return get_autoencoder(train, P.diffusion.autoencoder, fitting, project_file(weights) if weights else None)[0]


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


def main() -> None:
    """Train every choice with every seed, print and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("--profile", default="reference")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--only", nargs="+", choices=[*DENOISERS, *AUTOENCODERS], help="names of rows; all by default")
    parser.add_argument("--folder", type=Path, default=Path("runs/ablations"), help="of networks and checkpoints")
    given = parser.parse_args()
    P, train, test = load_profile(given.profile), load_patches(given.train), load_patches(given.test)
    device, first = open_device(P.device), test.index["image"].isin(sorted(set(test.index["image"]))[::2]).to_numpy()
    judge = autoencoder_of(P, train, Fitting(device, Seeds(P.root_seed, "judge"), given.folder / "judge", 1000))
    drawn, held = test.only(np.flatnonzero(first)), test.only(np.flatnonzero(~first))
    bench = Bench(train, drawn, held, judge, device, given.folder)
    rows = [{"kind": "real", "choice": "training micrographs", **bench.score(train)}]
    for kind, choices in (("autoencoder", AUTOENCODERS), ("denoiser", DENOISERS)):
        for name, changes in choices.items():
            now = changed(P, changes)
            same = changes and now.model_dump(exclude={"changed"}) == P.model_dump(exclude={"changed"})
            for seed in given.seeds if name in (given.only or choices) and not same else ():
                rows.append({"kind": kind, "choice": name, "seed": seed, **bench.row(kind, now, seed)})
                print(rows[-1], flush=True)
    setting = {"profile": P.name, "train": str(given.train), "held_patches": len(held), "seeds": given.seeds}
    with Path(__file__).with_name("results.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"benchmark": "ablations", "setting": setting, "rows": rows}) + "\n")
    print(pd.DataFrame(rows).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
