"""Train the autoencoder that comes with the companion, or one on the micrographs of a data set that no split tests on.

The paper's autoencoder came pretrained on natural images. Ours is trained on simulated micrographs drawn from a
root seed of its own, so that no test set is in it. It sees neither mask nor label, and learns to draw the micrograph
without its noise: shot noise, detector noise and scan lines carry nothing that a mask could ask for, and what they
would take of the few latent channels is better spent. `companion.diffusion.noise` puts measured noise back.

    python scripts/pretrain_autoencoder.py weights/autoencoder_phantom.safetensors

takes about eight minutes on one core; interrupted, it continues.

    python scripts/pretrain_autoencoder.py weights/mine.safetensors --profile paper --dataset mine

trains the profile's autoencoder on those micrographs of a data set that no split of the profile tests on: once, then
frozen for every split, as the paper's is. The profile then names the file as ``diffusion.autoencoder.weights``.
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from companion.config import Profile, load_profile, sections
from companion.config.diffusion import Autoencoder
from companion.config.phantom import Phantom
from companion.device import open_device
from companion.diffusion.autoencoder import save_autoencoder
from companion.diffusion.train import Fitting, fit_autoencoder, get_autoencoder, random_crops
from companion.errors import CompanionError
from companion.micrographs.cutting import cut_patches
from companion.micrographs.dataset import DataSet, load_dataset
from companion.micrographs.registry import obtain
from companion.micrographs.splits import choose_split, near_duplicates
from companion.phantom.optics import image
from companion.phantom.scene import draw_scene
from companion.seeds import Seeds

ROOT_SEED = 4_041  # no profile's: a profile's micrographs descend from its own root seed
# One magnification; three; three with fainter defects and fewer electrons; sessions of other contrast, dose and focus.
PRESETS = ("plain", "fecral", "hard", "binned")
IMAGES_PER_PRESET = 10
GREY = (140.0, 30.0)
SETTINGS = Autoencoder(stem=4, channels=[64], codes=1024, steps=2000, batch_size=16, crop_px=64, loss="l2")


def micrographs(size_px: int = 512) -> NDArray[np.uint8]:
    """Simulated micrographs as recorded, and the same without noise: uint8 [n, 2, side, side]."""
    noiseless = {"dose_electrons": 1e7, "dose_spread": 0.0, "detector_noise": 0.0, "stripes": 0.0, "row_jitter_px": 0.0}
    made = []
    for preset in PRESETS:
        # Brightness is varied in training instead, equally in both. Defects are what is to be learned, and a crop of a
        # micrograph holds one: from crowded scenes they keep more of their contrast after half as many steps.
        steady = {"gain_drift": 0.0, "gamma_drift": 0.0, "defects_per_megapixel": 1500.0}
        noisy, seeds = Phantom(preset=preset, size_px=size_px, **steady), Seeds(ROOT_SEED, preset)
        both = noisy, noisy.model_copy(update=noiseless)
        made += [[image(draw_scene(p, seeds, n), p, seeds, n) for p in both] for n in range(1, IMAGES_PER_PRESET + 1)]
    return np.array(made)


def pretrain(path: Path, settings: Autoencoder = SETTINGS, size_px: int = 512) -> None:
    """Train the companion's autoencoder and write it to `path`; checkpoints lie beside it."""
    device, simulated = open_device(sections.Device()), micrographs(size_px)  # (n, 2, S, S): recorded, clean

    def draw(rng: np.random.Generator, *sizes: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        crop_px = int(rng.choice(sizes))
        count = max(1, settings.batch_size * settings.crop_px**2 // crop_px**2)  # the same number of pixels
        crops = random_crops(simulated, count, crop_px, rng).astype(np.float32)  # (B, 2, c, c)
        contrast, shift = rng.uniform(0.6, 1.5, (count, 1, 1, 1)), rng.uniform(-30, 30, (count, 1, 1, 1))
        seen, wanted = np.clip((crops - GREY[0]) * contrast + GREY[0] + shift, 0, 255).astype(np.float32).swapaxes(0, 1)
        return seen, wanted

    # Borders and normalisation over the whole crop let the network lean on the crop's size; it unlearns that at last.
    larger = [min(size_px, factor * settings.crop_px) for factor in (1, 2, 4)]
    more = settings.model_copy(update={"steps": settings.steps // 3, "learning_rate": settings.learning_rate / 3})
    autoencoder, folder = None, path.with_suffix(".training")
    for part, now, sizes in (("first", settings, [settings.crop_px]), ("second", more, larger)):
        fitting = Fitting(device, Seeds(ROOT_SEED, "pretrain", part), folder / part, every=250)
        autoencoder, log = fit_autoencoder(
            lambda rng, sizes=sizes: draw(rng, *sizes), GREY, now, fitting, fitting.identity(now, size_px), autoencoder
        )
    recorded = simulated[:, 0]
    autoencoder.config["spread"] = float(recorded.std()) / GREY[1]
    autoencoder.eval().requires_grad_(False).fit_scaling(recorded)
    origin = {"data": "phantom micrographs of no split, without masks and labels", "presets": PRESETS,
              "root_seed": ROOT_SEED, "settings": settings.model_dump(mode="json"), "last": log[-1]}  # fmt: skip
    save_autoencoder(autoencoder, path, origin=origin)
    shutil.rmtree(folder)


def untested(dataset: DataSet, P: Profile) -> list[str]:
    """Micrographs that no split of the profile holds out for tests or validation, nor shows again."""
    setting = (P.sizes, P.n_test, P.n_val, P.group_by.get(dataset.name), P.root_seed)
    splits = [choose_split(dataset, P.split_source(name), name, *setting) for name in P.split_names]
    held = sorted({file for split in splits for file in (*split.test, *split.val)})
    left = [file for file in dataset.files if file not in held]
    alike = {file for file, _ in near_duplicates(dataset, left, held)}
    if not (kept := [file for file in left if file not in alike]):
        raise CompanionError(
            f"{dataset.name}: of {len(dataset.files)} micrographs {len(held)} are tested on and the others look like "
            "one of them, so none is left to pretrain on; take fewer splits, a smaller n_test, or other micrographs"
        )
    return kept


def pretrain_on(path: Path, P: Profile) -> None:
    """Train the profile's autoencoder (where it names weights, the companion's) on the `untested` micrographs."""
    dataset, cut = load_dataset(obtain(P.dataset, P.phantom, P.root_seed)), P.patches
    files = untested(dataset, P)
    patches, _ = cut_patches(dataset, files, cut.size, cut.train_stride, cut.min_visible, cut.symmetries)
    settings = SETTINGS if P.diffusion.autoencoder.weights else P.diffusion.autoencoder
    seeds, folder = Seeds(P.root_seed, "pretrain", dataset.name), path.with_suffix(".training")
    fitting = Fitting(open_device(P.device), seeds, folder, P.diffusion.checkpoint_every)
    autoencoder, _ = get_autoencoder(patches, settings, fitting)
    save_autoencoder(autoencoder, path, origin={"data": dataset.name, "micrographs": files, "splits": P.split_names})
    shutil.rmtree(folder)
    print(f"{path}: trained on {len(files)} micrographs that no split tests on")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, metavar="FILE.safetensors", help="where the weights are written")
    parser.add_argument("--profile", help="name or YAML file; its autoencoder is trained, its splits are kept out")
    parser.add_argument("--dataset", help="name or folder, instead of the profile's; needs --profile")
    given = parser.parse_args()
    if given.path.suffix != ".safetensors" or (given.dataset and not given.profile):
        parser.error("FILE should end in .safetensors, and --dataset needs --profile, whose splits are kept out")
    try:
        pretrain_on(given.path, load_profile(given.profile, given.dataset)) if given.profile else pretrain(given.path)
    except CompanionError as error:
        sys.exit(f"Error: {error}")
