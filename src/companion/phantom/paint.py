"""Given masks painted with the phantom's optics: simulated masks become micrograph patches without any network.

What a mask does not say (depth, strength, rim, background, unlabelled lines, noise) is drawn as for a micrograph.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.measure import find_contours, regionprops

from companion.config.phantom import Phantom
from companion.errors import CompanionError
from companion.phantom.contrast import defect_contrast, superposed
from companion.phantom.optics import empty_foil, record, unlabelled
from companion.phantom.scene import CLASSES, EDGE_ON_RATIO, Ellipse, dressed, empty_scene, seen
from companion.seeds import Seeds

ARC_POINTS = 10  # an ellipse has five parameters; part of one needs more points
SMALLEST_MINOR_PX, LARGEST_MAJOR = 0.5, 2.0  # beyond them a fit has failed; the latter in diagonals of its box


def paint_masks(patches: Any, phantom: Phantom, seeds: Seeds) -> NDArray[np.uint8]:
    """Images of the given masks as a perfect image model would make them.

    Patches are painted as tiles of whole micrographs of one pixel size each, so that neighbours share foil, scan
    and gain as cut patches do; a defect that a border cuts does not reach into the next tile.

    Parameters
    ----------
    patches : `companion.micrographs.patches.Patches` of the phantom's classes; their images are not looked at
    phantom : whose optics; what it says of the number of micrographs and of their defects does not matter

    Returns
    -------
    uint8 [P, S, S]
    """
    size = patches.size
    if tuple(patches.classes) != CLASSES or size > phantom.size_px:
        raise CompanionError(
            f"patches of {patches.classes}, {size} px: the phantom has {CLASSES}, {phantom.size_px} px"
        )
    images = np.empty(patches.instances.shape, dtype=np.uint8)
    codes = patches.table.set_index(["patch", "instance"])["class"].to_dict()
    scales, side = patches.index["pixel_size_nm"].to_numpy(), phantom.size_px // size  # tiles along a micrograph
    for scale in np.unique(scales):
        own = np.flatnonzero(scales == scale)
        for chosen in np.split(own, range(side**2, len(own), side**2)):
            # One each, so that foil and scan do not depend on how many defects there are.
            foil, looks, scan = (seeds.rng(int(chosen[0]), name) for name in ("foil", "looks", "scan"))
            scene = empty_scene(phantom, float(scale), foil)
            signal = empty_foil(scene, phantom, foil)
            tiles = [np.s_[size * y : size * (y + 1), size * x : size * (x + 1)]
                     for y, x in (divmod(k, side) for k in range(len(chosen)))]  # fmt: skip
            around = superposed(unlabelled(scene), len(signal))
            for patch, tile in zip(chosen, tiles, strict=True):
                stamps = [(around[tile], np.s_[:, :])]
                for instance, ellipse in ellipses(np.asarray(patches.instances[patch])).items():
                    # A loop is edge-on by its aspect, or by being no wider than edge-on loops are.
                    thin = ellipse[3] < EDGE_ON_RATIO * ellipse[2] or ellipse[3] * scale <= phantom.edge_on_nm[1]
                    code = codes[int(patch), instance]
                    defect = dressed(code, ellipse, thin, looks.uniform(size=5), scene, phantom)
                    stamps.append(defect_contrast(seen(defect, scene, phantom), size))
                signal[tile] *= 1 - superposed(stamps, size)
            micrograph = record(signal, phantom, scene, scan)
            images[chosen] = [micrograph[tile] for tile in tiles]
    return images


def ellipses(ids: NDArray[np.integer]) -> dict[int, Ellipse]:
    """Ellipse of every instance of a patch [S, S] by its id.

    That of the second moments of its pixels; of an instance that the border cuts, the one through its outline inside
    the patch (cv2.fitEllipse), which continues beyond the border, unless that outline is too short.
    """
    found = {}
    for region in regionprops(ids):
        y, x = region.centroid
        # A pixel is a square: its sides add 1/12 to the variance of its centre, which is L^2 / 16 for an axis L.
        major, minor = np.hypot((region.axis_major_length, region.axis_minor_length), np.sqrt(16 / 12)).tolist()
        found[region.label] = (x + 0.5, y + 0.5, major, minor, np.rad2deg(region.orientation) + 90.0)
        y1, x1, y2, x2 = region.bbox
        if min(y1, x1) > 0 and max(y2, x2) < len(ids):
            continue
        outlines = find_contours(ids == region.label, 0.5)  # open where the border cuts
        arc = max(outlines, key=len, default=np.zeros((0, 2)))[:, ::-1].astype(np.float32)
        if len(arc) >= ARC_POINTS:
            (x, y), (width, height), turned = cv2.fitEllipse(arc)
            minor, major = sorted((width, height))
            if minor >= SMALLEST_MINOR_PX and major <= LARGEST_MAJOR * np.hypot(y2 - y1, x2 - x1):
                # OpenCV turns clockwise as displayed, and its angle is that of the first side.
                angle = -turned if width >= height else 90.0 - turned
                found[region.label] = (x + 0.5, y + 0.5, major, minor, angle)
    return found
