"""What each choice of the diffusion stage changes: ``python benchmarks/ablations.py [--profile mini] [--n-train 16]``.

One choice of the profile at a time is put to another value (the paper's, or one that the paper does not have), the
networks are trained again, and new images for the masks of one half of the held-out micrographs are compared with the
other half: an image next to its own original would seem more alike than two real images ever are. Autoencoders are
compared by what they make of the first half itself, without a denoiser: trained with reconstruction losses alone, with
a discriminator and its features as VQGAN, and with noise put back from a measured model. Features are in all rows those
of the profile's own autoencoder. Appends a line of JSON per kind to ``benchmarks/results.jsonl``, which the book shows;
about an hour on one CPU core. ``--only`` picks rows, and prints them without a record.

On a GPU: ``python benchmarks/ablations.py --profile course --n-train 100 --seeds 1 2 3``. Interrupted, the same command
goes on after the last finished row.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from companion.config import profile as params, seeds
from companion.micrographs.cutting import cut_patches
from companion.micrographs.dataset import load_dataset
from companion.micrographs.patches import Patches
from companion.micrographs.registry import obtain
from companion.micrographs.splits import profile_split
from companion.diffusion import autoencoder as autoencoders
from companion.diffusion import pools, quality
from companion.diffusion.autoencoder import Autoencoder
from companion.diffusion.sample import generate, noise_of
from companion.diffusion.train import get_denoiser
from companion.diffusion.train_autoencoder import get_autoencoder
from companion.measurements import finished, forget, record, seconds
from companion.config.profile import Profile, load_profile
from companion.training import Compute, compute

Changes = Mapping[str, Mapping[str, Any]]  # section -> its changed entries
TRAINED = {"weights": None, "steps": 600}  # an autoencoder trained on the N micrographs
COARSE = {"downsampling": 8, "channels": [16, 32, 64]}
NOISELESS = {"sampling": {"noise": "none"}}
VQGAN = {"adversarial_weight": 0.5, "feature_weight": 1.0}
DENOISERS: dict[str, Changes] = {
    "as the profile": {},
    "mask: bilinear (paper)": {"denoiser": {"mask_encoding": "bilinear"}},
    "predicts ε (paper)": {"denoiser": {"prediction": "epsilon"}},
    "L1 loss (paper)": {"denoiser": {"loss": "l1"}},
    "no weight on defects (paper)": {"denoiser": {"defect_weight": 0.0}},
    "no average of weights": {"denoiser": {"ema_decay": 0.0}},
    "guidance 1.5": {"denoiser": {"mask_dropout": 0.1}, "sampling": {"guidance": 1.5}},
    "told pixel size and noise": {"denoiser": {"conditions": ["pixel_size_nm", "noise"]}},
    "no noise put back (paper)": NOISELESS,
    "f = 4, trained here": {"autoencoder": TRAINED},
    "f = 8 (paper), trained here": {"autoencoder": {**TRAINED, **COARSE}},
}
AUTOENCODERS: dict[str, Changes] = {
    "as the profile": {},
    "as the profile, no noise put back": NOISELESS,
    "trained here, L1": {"autoencoder": TRAINED, **NOISELESS},
    "trained here, L1, noise put back": {"autoencoder": TRAINED},
    "trained here, L2, noise put back": {"autoencoder": {**TRAINED, "loss": "l2"}},
    "trained here, L2, defects count nine times, noise put back": {
        "autoencoder": {**TRAINED, "loss": "l2", "defect_weight": 8.0}
    },
    "trained here, L1 + spectrum": {"autoencoder": {**TRAINED, "spectral_weight": 0.1}, **NOISELESS},
    "trained here, L1 + discriminator and its features": {"autoencoder": {**TRAINED, **VQGAN}, **NOISELESS},
    "f = 8, trained here, L1": {"autoencoder": {**TRAINED, **COARSE}, **NOISELESS},
    "f = 8, trained here, L1, noise put back": {"autoencoder": {**TRAINED, **COARSE}},
}
CHOICES = {"autoencoder": AUTOENCODERS, "denoiser": DENOISERS}
MEASURES = {
    "told apart from held-out by a classifier": "auc",
    "power spectrum, distance to held-out": "spectrum",
    "features, kernel distance to held-out": "kid",
    "contrast of defects": "contrast",
    "profile across defects, distance to held-out": "profile",
}


@dataclass(frozen=True)
class Bench:
    """Patches of N training micrographs and of two halves of the held-out ones, a judge of images, where to train."""

    profile: Profile
    machine: Compute
    train: Patches
    drawn: Patches  # new images are made for the masks of these
    held: Patches  # and compared with these
    judge: Autoencoder

    def changed(self, changes: Changes) -> tuple[params.Diffusion, params.Sampling]:
        """The profile's sections with `changes`, validated."""
        values = self.profile.model_dump()
        for section, entries in changes.items():
            place = values["sampling"] if section == "sampling" else values["diffusion"][section]
            place.update(entries)
        return params.Diffusion(**values["diffusion"]), params.Sampling(**values["sampling"])

    def score(self, images: Patches, others: Mapping[str, Patches] | None = None) -> pd.DataFrame:
        """Measures against the held-out micrographs, one row each, a column per set: value, yardstick, others."""
        rng = seeds.generator(self.profile.root_seed, "ablations")
        table = quality.judge(images, self.train, self.held, self.judge.features, rng, others=others, resamples=2)
        return table.set_index("measure").loc[list(MEASURES)].rename(index=MEASURES)

    def real(self) -> dict[str, float]:
        """What real micrographs give: training against held-out ones; contrast: of those drawn anew."""
        own = self.score(self.drawn)["value"]["contrast"]
        return self.score(self.train)["value"].to_dict() | {"contrast": own}

    def row(self, kind: str, name: str, changes: Changes, seed: int, folder: Path) -> dict[str, Any]:
        """Train what `changes` ask for, draw, and measure."""
        diffusion, sampling = self.changed(changes)
        setting = {"machine": self.machine, "name": f"ablations/{seed}"}
        training = {**setting, "folder": folder, "every": diffusion.checkpoint_every}
        began = seconds(self.machine.device.type)
        autoencoder, _ = get_autoencoder(self.train, diffusion.autoencoder, **training)
        noise = noise_of(self.train, autoencoder, sampling)
        if kind == "denoiser":
            denoiser, _ = get_denoiser(self.train, autoencoder, diffusion.denoiser, **training)
            took = seconds(self.machine.device.type) - began
            drawn = generate(
                autoencoder, denoiser, replace(self.drawn, images=None), sampling, noise=noise, folder=folder, **setting
            )
        else:
            took = seconds(self.machine.device.type) - began
            root_seed, images = self.profile.root_seed, self.drawn.images
            drawn = replace(self.drawn, images=pools.decoded(images, autoencoder, noise, root_seed, setting["name"]))
        measured = self.score(drawn)["value"].to_dict()
        return {"choice": name, "seed": seed, **measured, "train_s": took}


def bench(profile: Profile, n_train: int) -> Bench:
    dataset, cut, machine = load_dataset(obtain(profile)), profile.patches, compute(profile)
    split = profile_split(dataset, profile.splits[0], profile)
    train, _ = cut_patches(dataset, split.train[:n_train], cut.size, cut.train_stride, cut.min_visible, cut.symmetries)
    halves = split.test[::2], split.test[1::2]
    drawn, held = (cut_patches(dataset, half, cut.size, cut.test_stride, cut.min_visible)[0] for half in halves)
    with tempfile.TemporaryDirectory() as folder:
        judge, _ = get_autoencoder(train, profile.diffusion.autoencoder, machine=machine, name="ablations/judge",
                                   folder=Path(folder), every=profile.diffusion.checkpoint_every)  # fmt: skip
    return Bench(profile, machine, train, drawn, held, autoencoders.freeze(judge))


def kept_row(made: Bench, kind: str, name: str, seed: int, setting: Mapping[str, Any]) -> Mapping[str, Any]:
    """`Bench.row`, or the row of an earlier call that was interrupted."""

    def measure() -> Mapping[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            return made.row(kind, name, changes, seed, Path(folder))

    changes = CHOICES[kind][name]
    asked = {"kind": kind, "changes": changes, "seed": seed, "profile": made.profile.model_dump(mode="json"),
             "n_train": setting["n_train"]}  # fmt: skip
    return {**finished(f"ablations-{kind}", asked, measure), "choice": name}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--n-train", type=int, default=16, help="N, training micrographs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--denoiser-steps", type=int, help="instead of the profile's")
    parser.add_argument("--kind", nargs="+", choices=list(CHOICES), default=list(CHOICES), help="a record for each")
    parser.add_argument("--only", nargs="+", choices=[*DENOISERS, *AUTOENCODERS], help="names of rows; all by default")
    given = parser.parse_args()
    profile = load_profile(given.profile)
    if given.denoiser_steps:
        denoiser = profile.diffusion.denoiser.model_copy(update={"steps": given.denoiser_steps})
        profile = profile.model_copy(update={"diffusion": profile.diffusion.model_copy(update={"denoiser": denoiser})})
    made = bench(profile, given.n_train)
    real = made.real()
    setting = {"profile": profile.name, "dataset": profile.dataset, "n_train": given.n_train, "seeds": given.seeds,
               "denoiser_steps": profile.diffusion.denoiser.steps, "held_patches": len(made.held)}  # fmt: skip
    for kind in given.kind:
        rows = []
        for name, changes in CHOICES[kind].items():
            same = bool(changes) and made.changed(changes) == made.changed({})  # the profile has chosen so already
            for seed in given.seeds if name in (given.only or CHOICES[kind]) and not same else ():
                rows.append(kept_row(made, kind, name, seed, setting))
                shown = ", ".join(f"{key} {_shown(rows[-1][key])}" for key in MEASURES.values())
                print(f"{kind}: {name}, seed {seed}: {shown}, {rows[-1]['train_s']:.0f} s", flush=True)
        if not given.only:
            record("ablations", kind=kind, setting=setting, real=real, measured=rows)
            forget(f"ablations-{kind}")
        print(pd.DataFrame(rows).round(3).to_string(index=False))
    print("real training against held-out images:", ", ".join(f"{n} {_shown(value)}" for n, value in real.items()))


def _shown(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


if __name__ == "__main__":
    main()
