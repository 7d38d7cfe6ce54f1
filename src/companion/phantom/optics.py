"""How a scene looks in bright field: contrast, background, scan and noise.

All that is quantised is computed in float64, so that last-bit differences between machines' mathematics
libraries practically never reach a grey level.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from companion.config.phantom import Phantom
from companion.phantom.scene import Defect, Line, Scene, Window
from companion.seeds import Seeds

SUBPIXEL_BITS = 4  # cv2 draws lines at 1/16 px


def image(scene: Scene, phantom: Phantom, seeds: Seeds, number: int) -> NDArray[np.uint8]:
    """Micrograph `number` of a scene, uint8 [S, S]."""
    signal = empty_foil(scene, phantom, seeds.rng("foil", number))
    for defect in scene.defects:
        stamp, window = defect_contrast(defect, scene.size_px)
        signal[window] *= 1 - stamp
    return record(signal, phantom, scene, seeds.rng("scan", number))


def defect_contrast(defect: Defect, size: int) -> tuple[NDArray[np.float64], Window]:
    """Loss of signal by one defect, [h, w] in [0, 1), and its window in the image of side `size` px."""
    blur = max(defect.blur_px, 0.3)
    reach = defect.major_px / 2 + 4 * blur + 1
    (y1, y2), (x1, x2) = ((int(max(0, np.floor(c - reach))), int(min(size, np.ceil(c + reach))))
                          for c in (defect.y, defect.x))  # fmt: skip
    # Drawn whole and then cropped: a blur must not know where the image ends.
    ox, oy = np.floor(defect.x - reach), np.floor(defect.y - reach)
    side = int(np.ceil(2 * reach)) + 2
    dx = np.arange(side)[None, :] + 0.5 + ox - defect.x
    dy = np.arange(side)[:, None] + 0.5 + oy - defect.y
    turn = np.deg2rad(defect.angle_deg)
    along, across = dx * np.cos(turn) - dy * np.sin(turn), dx * np.sin(turn) + dy * np.cos(turn)
    a, b = defect.major_px / 2, defect.minor_px / 2
    radius = np.sqrt((along / a) ** 2 + (across / b) ** 2)
    # Distance to the outline, px, positive inside: exact on the axes and for circles, enough for a soft edge.
    slope = np.sqrt((along / a**2) ** 2 + (across / b**2) ** 2)
    inside = (1 - radius) * radius / np.maximum(slope, 1e-9)
    inside[radius < 1e-6] = b
    profile = np.clip(inside + 0.5, 0, 1)
    if defect.look == "rim":
        hole = np.clip(inside - min(defect.rim_px, 0.7 * b) + 0.5, 0, 1)
        profile = profile - (1 - defect.inner) * hole
    if defect.look in ("rim", "filled"):
        # Strain contrast vanishes where the displacement lies in the diffracting planes.
        weak = np.deg2rad(defect.uneven_deg)
        toward = (dx * np.cos(weak) - dy * np.sin(weak)) ** 2 / np.maximum(dx**2 + dy**2, 0.25)
        profile = profile * (1 - defect.unevenness * toward * np.clip(radius, 0, 1))
    elif defect.look == "dot":
        profile = profile * np.clip(1.15 - 0.5 * radius**2, 0, 1)
    blurred = cv2.GaussianBlur(profile, (0, 0), blur, borderType=cv2.BORDER_CONSTANT)
    rows = slice(y1 - int(oy), y2 - int(oy))
    columns = slice(x1 - int(ox), x2 - int(ox))
    return defect.amplitude * blurred[rows, columns], (slice(y1, y2), slice(x1, x2))


def draw_lines(lines: tuple[Line, ...], size: int) -> NDArray[np.float64]:
    """Loss of signal by unlabelled lines, [S, S] in [0, 0.8]."""
    total = np.zeros((size, size))
    for line in lines:
        layer = np.zeros((size, size), dtype=np.uint8)
        fixed = np.rint(line.points * 2**SUBPIXEL_BITS).astype(np.int64)
        fixed = np.clip(fixed, -(2**20), 2**20).astype(np.int32)
        for start, end, amplitude in zip(fixed[:-1], fixed[1:], line.amplitudes, strict=True):
            cv2.line(layer, start.tolist(), end.tolist(), round(255 * float(amplitude)),
                     max(1, round(line.width_px)), cv2.LINE_AA, SUBPIXEL_BITS)  # fmt: skip
        total = np.maximum(total, layer / 255.0)
    return np.minimum(cv2.GaussianBlur(total, (0, 0), 1.0), 0.8)


def smooth_field(size: int, order: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """A smooth random field [S, S] of mean 0 and standard deviation about 1: cosines up to `order` half-waves."""
    waves = np.cos(np.pi * np.outer((np.arange(size) + 0.5) / size, np.arange(order + 1)))
    squared = np.add.outer(np.arange(order + 1) ** 2, np.arange(order + 1) ** 2)
    weights = rng.standard_normal(squared.shape) / (1 + squared) ** 0.75
    weights[0, 0] = 0
    norm = np.sqrt((1 / (1 + squared[squared > 0]) ** 1.5).sum() / 4)
    return waves @ weights @ waves.T / norm


def empty_foil(scene: Scene, p: Phantom, rng: np.random.Generator) -> NDArray[np.float64]:
    """Signal without defects, [S, S], around 1: unevenness, wedge, bend contours, mottle, unlabelled lines."""
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
    return np.clip(signal, 0.2, 1.6) * (1 - draw_lines(scene.lines, size))


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
