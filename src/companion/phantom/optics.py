"""How a scene is recorded in bright field: background, contrast of its defects, scan and noise.

All that is quantised is computed in float64, so that last-bit differences between machines' mathematics
libraries practically never reach a grey level.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from companion.config.phantom import Phantom
from companion.phantom.contrast import Stamp, defect_contrast, line_contrast, superposed
from companion.phantom.scene import Scene
from companion.seeds import Seeds


def image(scene: Scene, phantom: Phantom, seeds: Seeds, number: int) -> NDArray[np.uint8]:
    """Micrograph `number` of a scene, uint8 [S, S]."""
    foil, size = empty_foil(scene, phantom, seeds.rng("foil", number)), scene.size_px
    loss = superposed([*unlabelled(scene), *(defect_contrast(defect, size) for defect in scene.defects)], size)
    return record(foil * (1 - loss), phantom, scene, seeds.rng("scan", number))


def unlabelled(scene: Scene) -> list[Stamp]:
    """Loss of signal by large loops and lines, all over the image."""
    loops = [defect_contrast(loop, scene.size_px) for loop in scene.large_loops]
    return loops + [line_contrast(line, scene.size_px) for line in scene.lines]


def smooth_field(size: int, n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """A smooth random field [S, S] of mean 0 and standard deviation 1, drawn at n x n knots."""
    field = cv2.resize(rng.standard_normal((n, n)), (size, size), interpolation=cv2.INTER_CUBIC)
    return (field - field.mean()) / field.std()


def empty_foil(scene: Scene, p: Phantom, rng: np.random.Generator) -> NDArray[np.float64]:
    """Signal without any defect or line, [S, S], around 1: unevenness, wedge, bend contours, mottle."""
    size = scene.size_px
    axis = (np.arange(size) + 0.5) / size - 0.5
    turn = rng.uniform(0, 2 * np.pi)
    across = axis[None, :] * np.cos(turn) + axis[:, None] * np.sin(turn)  # -0.7 ... 0.7
    signal = 1 + p.unevenness * smooth_field(size, 4, rng)
    signal *= np.exp(-p.wedge * rng.uniform() * (across + 0.5))
    for _ in range(rng.poisson(p.bend_contours)):
        turn = rng.uniform(0, 2 * np.pi)
        distance = axis[None, :] * np.cos(turn) + axis[:, None] * np.sin(turn) - rng.uniform(-0.5, 0.5)
        distance = distance + 0.05 * smooth_field(size, 3, rng)
        signal *= 1 - rng.uniform(0.1, 0.3) / (1 + (distance / rng.uniform(0.03, 0.12)) ** 2)
    if p.texture:
        width = p.texture_nm / scene.pixel_size_nm / 2
        mottle = cv2.GaussianBlur(rng.standard_normal((size, size)), (0, 0), width)
        # The blur divides the standard deviation of white noise by 2 sqrt(pi) widths.
        signal *= 1 + p.texture * max(1.0, 2 * np.sqrt(np.pi) * width) * mottle
    return np.clip(signal, 0.2, 1.6)


def record(signal: NDArray[np.float64], p: Phantom, scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """What the detector writes, line by line: defocus, shifted lines, line gain, counting and detector noise, gamma."""
    size, dose = len(signal), scene.dose_electrons
    if scene.defocus_px > 0.1:  # a narrower kernel than that is a single pixel
        signal = cv2.GaussianBlur(signal, (0, 0), scene.defocus_px, borderType=cv2.BORDER_REFLECT)
    vertical = bool(rng.integers(2))
    lines = signal.T if vertical else signal
    shift = np.rint(rng.normal(0, p.row_jitter_px, size)).astype(int)
    columns = np.clip(np.arange(size)[None, :] + shift[:, None], 0, size - 1)
    lines = np.take_along_axis(lines, columns, axis=1)
    kernel = np.exp(-0.5 * (np.arange(-15, 16) / 5.0) ** 2)
    slow = np.convolve(rng.standard_normal(size + 30), kernel / np.sqrt(kernel @ kernel), mode="valid")
    gain = 1 + p.stripes * (0.7 * rng.standard_normal(size) + 0.7 * slow)[:, None]
    counts = rng.poisson(dose * np.clip(lines * gain, 0, None))
    level = counts / dose * p.grey_level * np.exp(p.gain_drift * rng.standard_normal())
    level += p.detector_noise * rng.standard_normal(level.shape)
    level[:, 1:] = (1 - p.afterglow) * level[:, 1:] + p.afterglow * level[:, :-1]
    gamma = np.exp(p.gamma_drift * rng.standard_normal())
    grey = np.clip(level, 0, 1) ** gamma
    image = np.rint(255 * grey).astype(np.uint8)
    return np.ascontiguousarray(image.T if vertical else image)
