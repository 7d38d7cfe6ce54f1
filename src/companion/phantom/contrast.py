"""What diffraction makes of a defect: bright-field contrast of loops, dots and dislocation lines under one vector g.

Contrast is g.R, R being the displacement of the atoms around the defect (Hirsch et al. 1965; Jenkins & Kirk 2001):
strong where R lies along g, gone on the *line of no contrast* across it. Amplitudes are shares of the local mean;
a negative loss of signal is a white lobe.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

Look = Literal["rim", "filled", "edge-on", "dot"]
Window = tuple[slice, slice]  # (rows, columns)
Stamp = tuple[NDArray[np.float64], Window]  # loss of signal [h, w], and where in the image

NO_CONTRAST_WIDTH = 0.4  # half-width of the line of no contrast, share of the loop's half extent along g
LOBE_OFFSET = 1.2  # distance of the white lobe from the dark one, the same way


@dataclass(frozen=True)
class Defect:
    """One loop or dot."""

    code: int  # class
    look: Look
    x: float  # the ellipse, px
    y: float
    major_px: float
    minor_px: float
    angle_deg: float
    rim_px: float  # width of the rim
    inner: float  # contrast inside the rim, share of the rim's
    amplitude: float  # loss of signal at its strongest, share of the local mean
    blur_px: float
    g_deg: float  # direction of the diffraction vector, the same for all defects of a micrograph
    bean: float  # share of the contrast that is lost on the line of no contrast, across g
    side: float  # -1 to 1: strength of a white lobe (a rim: of its weaker half), and on which side along g

    @property
    def mean_radius_px(self) -> float:
        """Radius of the circle of equal area."""
        return float(np.sqrt(self.major_px * self.minor_px) / 2)


@dataclass(frozen=True)
class Line:
    """An unlabelled dislocation."""

    points: NDArray[np.float64]  # [n, 2], x and y in px
    phases: NDArray[np.float64]  # [n], rad: its depth in extinction distances, times 2 pi
    amplitude: float  # loss of signal at its strongest
    width_px: float  # full width at half maximum


def strain_profile(defect: Defect) -> tuple[NDArray[np.float64], NDArray[np.bool_], int, int]:
    """Contrast of a whole defect in units of its amplitude [s, s], its mask [s, s], and their first column and row."""
    blur = max(defect.blur_px, 0.3)
    a, b, g = defect.major_px / 2, defect.minor_px / 2, np.deg2rad(defect.g_deg)
    off = np.deg2rad(defect.g_deg - defect.angle_deg)
    extent = np.hypot(a * np.cos(off), b * np.sin(off))  # of the ellipse along g
    lobe = LOBE_OFFSET * extent if defect.look != "rim" else 0.0
    reach = a + lobe + 4 * blur + 1
    left, top, side = int(np.floor(defect.x - reach)), int(np.floor(defect.y - reach)), int(np.ceil(2 * reach)) + 2
    dx, dy = np.meshgrid(np.arange(side) + 0.5 + left - defect.x, np.arange(side) + 0.5 + top - defect.y)
    along_g = (dx * np.cos(g) - dy * np.sin(g)) / extent
    profile, radius = _outline(defect, dx, dy)
    # R . g changes sign across the line of no contrast: two lobes, a coffee bean.
    profile *= 1 - defect.bean * NO_CONTRAST_WIDTH**2 / (NO_CONTRAST_WIDTH**2 + along_g**2)
    if defect.look == "rim":
        profile *= 1 + defect.side * np.clip(along_g, -1, 1)
    elif lobe:
        shift = np.sign(defect.side) * lobe
        away = _outline(defect, dx + shift * np.cos(g), dy - shift * np.sin(g))[1]
        profile -= abs(defect.side) * np.exp(-(away**2))
    return cv2.GaussianBlur(profile, (0, 0), blur, borderType=cv2.BORDER_CONSTANT), radius <= 1, left, top


def _outline(defect: Defect, dx: NDArray, dy: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Evenly dark shape of a defect at offsets [s, s] (px) from its centre, 0-1, and the normalised radius there."""
    turn, a, b = np.deg2rad(defect.angle_deg), defect.major_px / 2, defect.minor_px / 2
    along, across = dx * np.cos(turn) - dy * np.sin(turn), dx * np.sin(turn) + dy * np.cos(turn)
    radius = np.sqrt((along / a) ** 2 + (across / b) ** 2)
    # Distance to the outline, px, positive inside: exact on the axes and for circles, enough for a soft edge.
    slope = np.sqrt((along / a**2) ** 2 + (across / b**2) ** 2)
    inside = (1 - radius) * radius / np.maximum(slope, 1e-9)
    inside[radius < 1e-6] = b
    profile = np.clip(inside + 0.5, 0, 1)
    if defect.look in ("rim", "filled"):
        profile -= (1 - defect.inner) * np.clip(inside - min(defect.rim_px, 0.7 * b) + 0.5, 0, 1)
    else:  # darkest in the middle
        profile *= np.clip(1.2 - 0.6 * (radius if defect.look == "dot" else across / b) ** 2, 0, 1)
    return profile, radius


def defect_contrast(defect: Defect, size: int) -> Stamp:
    """Loss of signal by one defect in an image of side `size` px."""
    # Drawn whole and then cropped: a blur must not know where the image ends.
    profile, _, left, top = strain_profile(defect)
    x1, y1, x2, y2 = max(0, left), max(0, top), min(size, left + len(profile)), min(size, top + len(profile))
    window = slice(y1, max(y1, y2)), slice(x1, max(x1, x2))
    return defect.amplitude * profile[y1 - top : max(y1, y2) - top, x1 - left : max(x1, x2) - left], window


def visibility(defect: Defect, dose_electrons: float, structure: float) -> float:
    """Contrast-to-noise ratio of a defect: what Rose (1948) found must be about 5 for an observer to see it.

    rms of its contrast in its mask of n px, over the noise of that mask's mean: counting noise 1 / (n dose), and
    `structure`, the standard deviation of mottle and stripes, which have the size of defects and do not average out.
    """
    profile, mask, *_ = strain_profile(defect)
    pixels = max(1, int(mask.sum()))
    rms = np.sqrt((profile[mask] ** 2).sum() / pixels)
    return float(defect.amplitude * rms / np.sqrt(structure**2 + 1 / (pixels * dose_electrons)))


def line_contrast(line: Line, size: int) -> Stamp:
    """Loss of signal by one line: a dark peak beside the core, and a white fringe on the other side.

    Strength and side alternate with depth, by the extinction distance (Howie & Whelan 1962): c (0.65 + 0.35 cos phase)
    where the dark peak is, at 0.3 sin phase widths from the core.
    """
    knots, length = np.arange(len(line.points)), np.hypot(*np.diff(line.points, axis=0).T).sum()
    steps = np.linspace(0, knots[-1], int(8 * length) + 2)  # eight points per px, blurred to a line
    x, y, phase = (np.interp(steps, knots, v) for v in (*line.points.T, line.phases))
    normal, side = np.arctan2(np.gradient(y), np.gradient(x)) + np.pi / 2, np.sin(phase)
    away = line.width_px * np.concatenate([0.3 * side, -1.1 * np.sign(side)])
    weights = np.concatenate([0.65 + 0.35 * np.cos(phase), -0.3 * np.abs(side)])
    places = np.tile([y, x], 2) + away * np.tile([np.sin(normal), np.cos(normal)], 2)
    drawn = np.histogram2d(*places, bins=2 * size, range=[(0, size)] * 2, weights=weights)[0]  # at half a px
    sigma = np.hypot(line.width_px / 2.355, 0.4)
    drawn = cv2.GaussianBlur(drawn, (0, 0), 2 * sigma, borderType=cv2.BORDER_CONSTANT).reshape(size, 2, size, 2)
    return line.amplitude * np.sqrt(2 * np.pi) * sigma / 2 * drawn.mean(axis=(1, 3)), np.s_[:, :]


def superposed(stamps: Iterable[Stamp], size: int) -> NDArray[np.float64]:
    """Loss of signal by all defects together, [size, size] below 1: the cube root of the sum of cubes.

    Displacements add and contrast saturates, so that where images overlap the stronger one is seen: twice the same
    loss c gives 1.26 c, where two grey glasses would give 2 c - c^2. A single defect keeps its contrast.
    """
    cubes = np.zeros((size, size))
    for stamp, window in stamps:
        cubes[window] += stamp * stamp * stamp
    return np.minimum(np.cbrt(cubes), 0.8)
