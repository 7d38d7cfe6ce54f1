"""Pictures of the two primers for teaching, from the package: ``python scripts/primer_pictures.py RUN``.

RUN is the folder of a run on the phantom, for instance runs/smoke/phantom; the second primer takes patches of it.
Writes book/_static/primers/: film strips for the browser (one frame below the other), and one still of each for print.
"""

import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.special import softmax

from companion.config import load_profile
from companion.masks.plots import color_mask
from companion.micrographs.patches import Patches, load_patches
from companion.phantom import optics, scene
from companion.seeds import Seeds

OUT = Path(__file__).resolve().parents[1] / "book" / "_static" / "primers"
DIRECTIONS = range(0, 360, 15)  # of g, degrees
WINDOW, SIDE, STEPS = 11, 80, 25  # px of what is compared, px of the picture, noise levels
HIGHEST, LOWEST = 20.0, 0.15  # noise over signal, standard deviations of grey levels
SHOWN = (0, 8, 13, 17, 20, STEPS - 1)  # steps of the still
MASK_COUNTS = 1.5  # how much a pixel of the mask counts beside one of the picture


def loops() -> None:
    """Four defects under each direction of g, in the middle of the foil and near its surface."""
    p = load_profile("smoke").phantom.model_copy(update={"size_px": 256, "wedge": 0.0, "bend_contours": 0.0})
    seeds, scale = Seeds(0, "primer"), 0.4785  # nm per px
    bare = scene.empty_scene(p, scale, seeds.rng("scene"))
    looks = [(2, 22, 0.58, 45), (1, 24, 0.18, 90), (1, 20, 1.0, 0), (3, 9, 0.9, 0)]  # class, nm, minor/major, angle
    stills = []
    for name, depth in (("deep", 0.5), ("surface", 0.0)):
        frames = []
        for g in DIRECTIONS:
            here, defects = replace(bare, g_deg=float(g), large_loops=(), lines=(), contrast=1.0), []
            for k, (code, nm, ratio, angle) in enumerate(looks):
                ellipse = 32 + 64 * k, 32, nm / scale, ratio * nm / scale, angle
                defects.append(scene.dressed(code, ellipse, ratio < 0.25, (depth, 0.8, 0.5, 0.2, 0), here, p))
            frames.append(optics.image(replace(here, defects=tuple(defects)), p, seeds, 1)[:64])
        write(f"loops-{name}.jpg", np.concatenate(frames))
        few = [np.pad(frames[g // 15], ((0, 4), (0, 8)), constant_values=255) for g in (0, 45, 90, 135)]
        stills.append(np.concatenate(few))
    write("loops.jpg", cv2.resize(np.concatenate(stills, axis=1), None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC))


def windows(images: NDArray, masks: NDArray) -> NDArray[np.float32]:
    """Every window of images [P, S, S] in units of their spread, with the mask's beside it [n, 2 WINDOW²]."""
    both = np.stack([images, MASK_COUNTS * masks], axis=1)  # [P, 2, S, S]
    padded = np.pad(both, ((0, 0), (0, 0), (WINDOW // 2,) * 2, (WINDOW // 2,) * 2), mode="reflect").astype(np.float32)
    seen = np.lib.stride_tricks.sliding_window_view(padded, (WINDOW, WINDOW), axis=(2, 3))
    return np.moveaxis(seen, 1, 3).reshape(-1, 2 * WINDOW**2)


def best_guess(noisy: NDArray, mask: NDArray, sigma: float, known: NDArray) -> NDArray:
    """The mean of what may be under the noise, pixel by pixel: known windows, weighted by how well they fit [S, S]."""
    half = WINDOW**2
    seen, scale = windows(noisy[None], mask[None]), np.repeat([1 / (np.sqrt(2) * sigma), 1], half)
    distances = (cdist(some, known * scale, "sqeuclidean") for some in np.array_split(seen * scale, 16))
    guess = np.concatenate([softmax(-some, axis=1) @ known[:, half // 2] for some in distances])
    return guess.astype(np.float32).reshape(noisy.shape)


def diffusion(run: Path) -> None:
    """One picture out of noise under three masks: what is in the noise and the best guess, at every noise level."""
    train = load_patches(run / "split-1" / "micrographs" / "train-n10")
    drawn = load_patches(run / "split-1" / "n-10" / "masks-plain" / "patches")
    rng = Seeds(0, "primer").rng("diffusion")
    mean, spread = train.images.mean(), train.images.std()
    every = windows((train.images - mean) / spread, Patches.label_maps(train))
    held = every[:, WINDOW**2 + WINDOW**2 // 2] > 0  # half of the windows on defects, half beside them
    known = every[np.concatenate([rng.choice(np.flatnonzero(part), 6000, replace=False) for part in (held, ~held)])]
    one = int(drawn.table.groupby("patch")["area_px"].sum().sub(2200).abs().idxmin())
    mask = drawn.label_maps(np.array([one]))[0, 24 : 24 + SIDE, 24 : 24 + SIDE].astype(np.float32)
    start = rng.standard_normal(mask.shape)
    sigmas = np.append(np.geomspace(HIGHEST, LOWEST, STEPS - 1), 0)
    for name, asked in (("drawn", mask), ("turned", np.rot90(mask).copy()), ("empty", np.zeros_like(mask))):
        x, frames = HIGHEST * start, []
        for sigma, lower in zip(sigmas, np.append(sigmas[1:], 0), strict=True):
            guess = best_guess(x, asked, max(sigma, LOWEST), known)
            pair = np.concatenate([x / np.hypot(1, sigma), guess], axis=1)
            frames.append(np.clip(pair * spread + mean, 0, 255).astype(np.uint8))
            x = x + (lower - sigma) / max(sigma, LOWEST) * (x - guess)
        write(f"noise-{name}.jpg", np.concatenate(frames))
        write(f"mask-{name}.png", np.uint8(255 * color_mask(asked.astype(np.uint8)))[..., ::-1])  # BGR
        if name == "drawn":  # noise above, best guess below
            still = np.concatenate([np.concatenate(np.hsplit(frames[k], 2)) for k in SHOWN], axis=1)
    write("noise.jpg", cv2.resize(still, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC))


def write(name: str, picture: NDArray) -> None:
    """Write a picture of grey levels or BGR [H, W(, 3)]."""
    cv2.imwrite(str(OUT / name), picture, [cv2.IMWRITE_JPEG_QUALITY, 82] if name.endswith("jpg") else [])


if __name__ == "__main__":
    loops()
    diffusion(Path(sys.argv[1]))
