"""The autoencoder that comes with the companion: trained once, on phantom micrographs that belong to no split.

The paper's autoencoder came pretrained on natural images. Ours is trained on simulated micrographs drawn from a
root seed of its own, so that no test set is in it, and it learns to draw the micrograph without its noise: shot
noise, detector noise and scan lines carry nothing that a mask could ask for, and what they would take of the few
latent channels is better spent on defects. `companion.diffusion.noise` puts measured noise back after sampling.

    python -m companion.diffusion.pretrain weights/autoencoder_phantom.safetensors

takes about four minutes on one free core and 16 MB of disk while it runs; interrupted, it continues.

    python -m companion.diffusion.pretrain weights/autoencoder_mine.safetensors --profile paper --dataset mine

trains the profile's autoencoder on those micrographs of a data set that no split of the profile tests on: once, then
frozen for every split, as the paper's is. The profile then names the file as ``diffusion.autoencoder.weights``.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from companion.config import profile as params, training
from companion.micrographs.cutting import cut_patches
from companion.micrographs.dataset import DataSet, load_dataset
from companion.micrographs.registry import obtain
from companion.micrographs.splits import near_duplicates, profile_split
from companion.diffusion import autoencoder as autoencoders
from companion.diffusion import train, train_autoencoder
from companion.errors import CompanionError
from companion.config.phantom import Phantom

ROOT_SEED = 4_041  # no profile's: a profile's micrographs descend from its own root seed
# One magnification; three; three with fainter defects and fewer electrons; sessions of other contrast, dose and focus.
PRESETS = ("plain", "fecral", "hard", "binned")
IMAGES_PER_PRESET = 10
GREY = (140.0, 30.0)
PARAMETERS = params.Autoencoder(
    downsampling=4, stem=2, channels=[16, 32], codes=1024, steps=3000, batch_size=16, crop_px=64, learning_rate=4e-3,
    loss="l2", defect_weight=8.0,
)  # fmt: skip


def micrographs(size_px: int = 512) -> NDArray[np.uint8]:
    """Simulated micrographs as recorded, without noise, and where they hold defects (1): uint8 [n, 3, side, side]."""
    from companion.phantom import optics
    from companion.phantom.scene import draw_scene

    steady = {"gain_drift": 0.0, "gamma_drift": 0.0}  # brightness is varied in training instead, equally in both
    noiseless = {"dose_electrons": 1e7, "detector_noise": 0.0, "stripes": 0.0, "row_jitter_px": 0.0}
    made = []
    for preset in PRESETS:
        noisy_parameters = Phantom(preset=preset, size_px=size_px, **steady)
        # Per px, the phantom's crowded presets are sparser than the plain one; defects are what is to be learned.
        noisy_parameters = noisy_parameters.model_copy(update={"defects_per_megapixel": 250.0})
        for number in range(1, IMAGES_PER_PRESET + 1):
            scene = draw_scene(noisy_parameters, ROOT_SEED, number)
            recorded = optics.render(scene, noisy_parameters, ROOT_SEED, number)
            clean = optics.render(scene, noisy_parameters.model_copy(update=noiseless), ROOT_SEED, number)
            defects = np.zeros_like(clean)
            for mask, window in map(scene.mask, scene.defects):
                defects[window][mask] = 1
            made.append((recorded, clean, defects))
    return np.array(made)


def pretrain(path: Path, parameters: params.Autoencoder = PARAMETERS, size_px: int = 512) -> None:
    """Train the autoencoder on one CPU thread and write it to `path`; its checkpoints lie beside it meanwhile."""
    torch.set_num_threads(1)
    machine = training.Compute(torch.device("cpu"), torch.float32, ROOT_SEED)
    simulated = torch.from_numpy(micrographs(size_px))  # (n, 3, S, S): recorded, clean, defects
    recorded = simulated[:, 0].numpy()

    def drawing(crops_px: tuple[int, ...]) -> Callable[[torch.Generator], tuple[Tensor, Tensor, Tensor]]:
        def draw(rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
            crop_px = crops_px[int(torch.randint(len(crops_px), (1,), generator=rng))]
            count = max(1, parameters.batch_size * parameters.crop_px**2 // crop_px**2)  # the same number of pixels
            crops = train.random_crops(simulated, count, crop_px, rng).float()  # (B, 3, c, c)
            contrast = 0.6 + 0.9 * torch.rand((len(crops), 1, 1, 1), generator=rng)
            shift = 60 * torch.rand((len(crops), 1, 1, 1), generator=rng) - 30
            seen, wanted = ((crops[:, :2] - GREY[0]) * contrast + GREY[0] + shift).clamp(0, 255).unbind(dim=1)
            return seen, wanted, crops[:, 2]

        return draw

    identity = training.fingerprint(__name__, parameters=parameters.model_dump(mode="json"), size_px=size_px)
    setting = {"machine": machine, "every": 250}
    folders = [path.with_suffix(f".{part}") for part in ("first", "second")]
    autoencoder, _ = train_autoencoder.fit_autoencoder(
        drawing((parameters.crop_px,)),
        GREY,
        parameters,
        name="pretrain",
        folder=folders[0],
        identity=identity,
        **setting,
    )
    # Borders and normalisation over the whole crop let the network lean on the crop's size; it unlearns that here.
    sizes = tuple(min(size_px, factor * parameters.crop_px) for factor in (1, 2, 4))
    more = parameters.model_copy(update={"steps": parameters.steps // 3, "learning_rate": parameters.learning_rate / 3})
    autoencoder, log = train_autoencoder.fit_autoencoder(
        drawing(sizes), GREY, more, name="pretrain, all sizes", folder=folders[1], identity=f"{identity}, all sizes",
        start=autoencoder, **setting,
    )  # fmt: skip
    autoencoder.config["spread"] = float(recorded.std()) / GREY[1]
    autoencoders.freeze(autoencoder).fit_scaling(recorded, 1)
    origin = {"data": "phantom micrographs of no split", "presets": PRESETS, "root_seed": ROOT_SEED,
              "parameters": parameters.model_dump(mode="json"), "losses": train.last_losses(log)}  # fmt: skip
    autoencoders.save(autoencoder, path, identity=identity, origin=origin)
    for folder in folders:
        shutil.rmtree(folder)


def untested(dataset: DataSet, profile: params.Profile) -> list[str]:
    """Micrographs that no split of the profile holds out for tests or validation, nor shows again.

    Raises
    ------
    CompanionError
        When none is left.
    """
    splits = [profile_split(dataset, split, profile) for split in profile.splits]
    held = {file for split in splits for file in (*split.test, *split.val)}
    left = [file for file in dataset.files if file not in held]
    alike = {file for file, _ in near_duplicates(dataset, left, sorted(held))}
    if not (kept := [file for file in left if file not in alike]):
        raise CompanionError(
            f"{dataset.name}: of {len(dataset.files)} micrographs, {len(held)} are tested on in splits "
            f"{', '.join(map(str, profile.splits))} of profile '{profile.name}' and the other {len(left)} look like "
            "one of them, so none is left to pretrain on; take fewer splits, a smaller n_test, or other micrographs"
        )
    return kept


def pretrain_on(path: Path, profile: params.Profile) -> list[str]:
    """Train the profile's autoencoder on the `untested` micrographs of its data set and write it to `path`.

    Where the profile names pretrained weights, network and schedule are those of the companion's own (`PARAMETERS`).

    Returns
    -------
    file names of the micrographs
    """
    dataset, cut = load_dataset(obtain(profile)), profile.patches
    files = untested(dataset, profile)
    patches, _ = cut_patches(dataset, files, cut.size, cut.train_stride, cut.min_visible, cut.symmetries)
    parameters = profile.diffusion.autoencoder
    parameters = parameters if parameters.weights is None else PARAMETERS
    folder = path.with_suffix(".training")
    autoencoder, log = train_autoencoder.get_autoencoder(
        patches, parameters, machine=training.compute(profile), name=f"pretrain/{dataset.name}", folder=folder,
        every=profile.diffusion.checkpoint_every,
    )  # fmt: skip
    origin = {"data": f"{dataset.name}, micrographs that no split tests on", "micrographs": files,
              "profile": profile.name, "splits": list(map(str, profile.splits)), "root_seed": profile.root_seed,
              "parameters": parameters.model_dump(mode="json"), "losses": train.last_losses(log)}  # fmt: skip
    autoencoders.save(autoencoder, path, origin=origin)
    shutil.rmtree(folder)
    return files


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, metavar="FILE.safetensors", help="where the weights are written")
    parser.add_argument("--profile", help="name or YAML file; its autoencoder is trained, its splits are kept out")
    parser.add_argument("--dataset", help="name or folder, instead of the profile's; needs --profile")
    given = parser.parse_args(arguments)
    if given.path.suffix != ".safetensors":
        parser.error(f"{given.path} should end in .safetensors")
    if given.profile is None:
        if given.dataset is not None:
            parser.error("--dataset needs --profile, whose splits say which micrographs are tested on")
        pretrain(given.path)
        return
    profile = params.load_profile(given.profile, **({"dataset": given.dataset} if given.dataset else {}))
    files = pretrain_on(given.path, profile)
    print(f"{given.path}: trained on {len(files)} micrographs of {profile.dataset} that no split tests on")


if __name__ == "__main__":
    try:
        main()
    except CompanionError as error:
        sys.exit(f"Error: {error}")
