"""From truth to labels: an annotator who overlooks, draws loosely and confuses, at rates that are parameters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from companion.config.phantom import Annotator
from companion.geometry import ellipse_radius
from companion.phantom.crystal import BLACK_DOT, LOOP_100, LOOP_111
from companion.phantom.scene import SMALL_NM, Defect, Scene, Window

TOUCHING = 1.2  # defects whose centres are nearer than this times the sum of their radii crowd each other
WAVES = (0, 2, 3, 4)  # undulations of a hand-drawn outline; 0 is its size


@dataclass(frozen=True)
class Label:
    """One labelled instance."""

    code: int
    mask: NDArray[np.bool_]  # [h, w]
    window: Window
    defect: int  # its number in the scene


def truth(scene: Scene) -> list[Label]:
    """Every defect of a scene, exactly."""
    return [Label(defect.code, *scene.mask(defect), k) for k, defect in enumerate(scene.defects)]


def annotate(scene: Scene, annotator: Annotator, rng: np.random.Generator) -> list[Label]:
    """What the annotator draws, in the order of the scene's defects."""
    overlooked = miss_probability(scene.defects, annotator)
    labels = []
    for k, defect in enumerate(scene.defects):
        # Drawn for every defect, so that one rate's change leaves the other decisions as they were.
        seen, confused, pick = rng.uniform(size=3)
        waves = rng.standard_normal((2, len(WAVES)))
        if seen < overlooked[k]:
            continue
        code = confusable(defect, scene.pixel_size_nm, pick) if confused < annotator.confusion else defect.code
        mask, window = drawn_mask(scene, defect, annotator, waves)
        if mask.any():
            labels.append(Label(code, mask, window, k))
    return labels


def miss_probability(defects: Sequence[Defect], annotator: Annotator) -> NDArray[np.float64]:
    """Probability that each defect is overlooked: carelessness, faintness and crowding, independent."""
    if not defects:
        return np.zeros(0)
    radius, places = np.array([d.mean_radius_px for d in defects]), np.array([(d.x, d.y) for d in defects])
    neighbours = (cdist(places, places) < TOUCHING * np.add.outer(radius, radius)).sum(axis=1) - 1
    relative = np.array([d.amplitude for d in defects]) / max(annotator.miss_contrast, 1e-9)
    faint = 1 / (1 + relative**4)
    return 1 - (1 - annotator.miss) * (1 - faint) * (1 - annotator.miss_crowded) ** neighbours


def confusable(defect: Defect, pixel_size_nm: float, pick: float) -> int:
    """The class that a defect is most easily taken for: small loops and dots, large loops among each other."""
    if defect.code == BLACK_DOT:
        return LOOP_111 if pick < 0.5 else LOOP_100
    if defect.major_px * pixel_size_nm < 1.3 * SMALL_NM:
        return BLACK_DOT
    return LOOP_100 if defect.code == LOOP_111 else LOOP_111


def drawn_mask(scene: Scene, defect: Defect, annotator: Annotator, waves: NDArray) -> tuple[NDArray[np.bool_], Window]:
    """Mask inside a hand-drawn outline: the ellipse, scaled by undulations around it."""
    if annotator.outline_jitter == 0:
        return scene.mask(defect)
    reach, turn = 1 + 4 * annotator.outline_jitter, np.deg2rad(defect.angle_deg)
    axes = defect.major_px * reach, defect.minor_px * reach
    radius, window = ellipse_radius((scene.size_px, scene.size_px), defect.x, defect.y, *axes, defect.angle_deg)
    rows, columns = (np.arange(part.start, max(part.start, part.stop)) + 0.5 for part in window)
    dx, dy = columns[None, :] - defect.x, rows[:, None] - defect.y
    around = np.arctan2((dx * np.sin(turn) + dy * np.cos(turn)) / defect.minor_px,
                        (dx * np.cos(turn) - dy * np.sin(turn)) / defect.major_px)  # fmt: skip
    outline = np.zeros(radius.shape)
    for k, cosine, sine in zip(WAVES, *waves, strict=True):
        outline += cosine * np.cos(k * around) + sine * np.sin(k * around)
    return radius * reach <= 1 + annotator.outline_jitter / np.sqrt(len(WAVES)) * outline, window
