"""Given defects painted with the phantom's optics: simulated masks become micrograph patches without any network.

What a mask does not say (depth, strength, rim, background, unlabelled lines, noise) is drawn as for a micrograph.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from companion import seeds
from companion.config.phantom import Phantom
from companion.phantom.optics import background, defect_contrast, draw_lines, record
from companion.phantom.scene import CLASSES, EDGE_ON_RATIO, dressed, empty_scene


def paint(
    ellipses: pd.DataFrame,
    pixel_sizes_nm: NDArray[np.floating],
    size: int,
    classes: Sequence[str],
    parameters: Phantom,
    root_seed: int,
    *names: str | int,
) -> NDArray[np.uint8]:
    """Micrograph patches in which the given defects lie.

    Patches are painted as tiles of whole micrographs of one pixel size each, so that neighbours share foil, scan
    and gain as cut patches do; a defect that a border cuts does not reach into the next tile.

    Parameters
    ----------
    ellipses : one row per defect: patch, class, x, y, major_px, minor_px, angle_deg (the ellipse may leave the patch)
    pixel_sizes_nm : [P]
    size : side of a patch, px; at most ``parameters.size_px``
    classes : names of the classes; must be the phantom's
    root_seed, names : where the random draws come from

    Returns
    -------
    uint8 [P, size, size]

    Raises
    ------
    ValueError
        When the classes are not the phantom's or a patch is larger than a micrograph.
    """
    if tuple(classes) != CLASSES or size > parameters.size_px:
        raise ValueError(f"the phantom paints classes {CLASSES} in {parameters.size_px} px, not {classes} in {size} px")
    images = np.empty((len(pixel_sizes_nm), size, size), dtype=np.uint8)
    columns = ["class", "x", "y", "major_px", "minor_px", "angle_deg"]
    by_patch = {patch: rows[columns].to_numpy(dtype=float).tolist() for patch, rows in ellipses.groupby("patch")}
    side = parameters.size_px // size  # tiles along a micrograph
    for pixel_size in np.unique(pixel_sizes_nm):
        own = np.flatnonzero(pixel_sizes_nm == pixel_size)
        for start in range(0, len(own), side**2):
            chosen = own[start : start + side**2]
            # One each, so that foil and scan do not depend on how many defects there are.
            foil, looks, scan = (
                seeds.generator(root_seed, *names, int(chosen[0]), n) for n in ("foil", "looks", "scan")
            )
            scene = empty_scene(parameters, float(pixel_size), foil)
            signal = background(scene.size_px, scene.pixel_size_nm, parameters, foil)
            signal *= 1 - np.minimum(draw_lines(scene.lines, scene.size_px), 0.8)
            corners = [(size * (k // side), size * (k % side)) for k in range(len(chosen))]
            tiles = [(slice(y, y + size), slice(x, x + size)) for y, x in corners]
            for patch, tile in zip(chosen, tiles, strict=True):
                for code, *ellipse in by_patch.get(patch, []):
                    # A loop is edge-on by its aspect, or by being no wider than edge-on loops are.
                    major, minor = ellipse[2:4]
                    thin = minor < EDGE_ON_RATIO * major or minor * pixel_size <= parameters.edge_on_nm[1]
                    defect = dressed(int(code), tuple(ellipse), thin, looks.uniform(size=6), scene, parameters)
                    stamp, window = defect_contrast(defect, size)
                    signal[tile][window] *= 1 - stamp
            micrograph = record(signal, parameters, scene.session, scan)
            for patch, tile in zip(chosen, tiles, strict=True):
                images[patch] = micrograph[tile]
    return images
