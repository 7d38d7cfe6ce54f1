"""What is in a simulated micrograph: one crystal, its loops and dots, and what else crosses the field.

A circular loop with normal n seen along the beam B is an ellipse with minor/major = |n.B| and its long axis
along n x B. One in-plane crystal azimuth per image ties all orientations together; with the aspect ratio it
is what tells the classes apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from companion.geometry import ellipse_radius
from companion.params import Phantom

CLASSES = ("<100> loop", "<111> loop", "black dot")
LOOP_100, LOOP_111, BLACK_DOT = 1, 2, 3
Look = Literal["rim", "filled", "coffee-bean", "edge-on", "dot"]
Window = tuple[slice, slice]

# Plane normals of the loop variants, and for each zone axis B an in-plane direction at azimuth 0.
NORMALS = {
    LOOP_100: np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=float),
    LOOP_111: np.array([[1, 1, 1], [-1, 1, 1], [1, -1, 1], [1, 1, -1]]) / np.sqrt(3),
}
BEAMS = {"001": ((0, 0, 1), (1, 0, 0)), "110": ((1, 1, 0), (0, 0, 1)), "111": ((1, 1, 1), (1, -1, 0))}
EDGE_ON_RATIO = 0.25  # below this minor/major a loop looks like a bar
SMALL_NM = 11.0  # loops below this diameter have no room for a rim
EDGE_WIDTH_NM = 3.0  # a loop seen edge-on is as wide as its strain contrast
LARGE_LOOP_NM = (90.0, 220.0)
PLACEMENT_TRIES = 40
VISIBLE_PX = 12  # an instance with fewer pixels in the image is not an instance


@dataclass(frozen=True)
class Defect:
    """One loop or dot: centre (x, y), axes and blur in px, angle in degrees, depth 0 (top) to 1 (bottom)."""

    code: int
    look: Look
    x: float
    y: float
    major_px: float
    minor_px: float
    angle_deg: float
    rim_px: float
    inner: float
    depth: float
    amplitude: float
    blur_px: float


@dataclass(frozen=True)
class Line:
    """An unlabelled curve: points float [n, 2] (x, y) in px, width in px, amplitude of each segment [n - 1]."""

    points: NDArray[np.float64]
    width_px: float
    amplitudes: NDArray[np.float64]


@dataclass(frozen=True)
class Scene:
    """Truth of one micrograph. `azimuth_deg`: angle of the in-plane reference direction of its zone axis."""

    size_px: int
    pixel_size_nm: float
    beam: str
    azimuth_deg: float
    defects: tuple[Defect, ...]
    lines: tuple[Line, ...]

    def mask(self, defect: Defect) -> tuple[NDArray[np.bool_], Window]:
        """Pixels of a defect [h, w] and their window in the image."""
        radius, window = ellipse_radius(
            (self.size_px, self.size_px), defect.x, defect.y, defect.major_px, defect.minor_px, defect.angle_deg
        )
        return radius <= 1, window


def projected(normal: NDArray, beam: NDArray, reference: NDArray) -> tuple[float, float]:
    """Aspect ratio (minor/major, 0-1) and long-axis angle (degrees, [0, 180)) of a circular loop.

    Parameters
    ----------
    normal : [3] unit normal of the loop plane, crystal axes
    beam : [3] unit vector along the beam
    reference : [3] in-plane direction that is displayed at angle 0
    """
    along = np.cross(normal, beam)
    e1 = reference - (reference @ beam) * beam
    e1 /= np.sqrt(e1 @ e1)
    e2 = np.cross(beam, e1)
    angle = float(np.rad2deg(np.arctan2(along @ e2, along @ e1))) % 180.0
    return float(min(1.0, abs(normal @ beam))), angle


def draw_scene(parameters: Phantom, rng: np.random.Generator) -> Scene:
    """Draw the content of one micrograph.

    The density is per px, not per nm: microscopists choose the magnification by what they want to see.
    """
    p, size = parameters, parameters.size_px
    scale = p.pixel_size_nm
    direction, reference = (np.array(v, dtype=float) for v in BEAMS[p.beam])
    beam = _tilted(direction / np.sqrt(direction @ direction), p.zone_error_deg, rng)
    azimuth = float(rng.uniform(0, 360))
    margin = p.loop100_nm[2] / scale / 2  # centres outside the frame make the defects that its border cuts
    area = (size + 2 * margin) ** 2 / 2**20
    density = p.defects_per_megapixel * np.exp(p.density_spread * rng.standard_normal())
    codes = 1 + rng.choice(3, size=rng.poisson(density * area), p=np.array(p.class_shares) / sum(p.class_shares))
    defects: list[Defect] = []
    for code in codes:
        shape = _draw_defect(int(code), p, scale, beam, reference, azimuth, rng)
        place = _free_place(shape.major_px, shape.minor_px, defects, size, margin, p.crowding, rng)
        if place is not None:
            placed = Defect(**{**vars(shape), "x": place[0], "y": place[1]})
            defects.append(placed)
    shape_only = Scene(size, scale, p.beam, azimuth, (), ())
    visible = [d for d in defects if shape_only.mask(d)[0].sum() >= VISIBLE_PX]
    lines = _draw_lines(p, size, scale, beam, reference, azimuth, rng)
    return Scene(size, scale, p.beam, azimuth, tuple(visible), tuple(lines))


def _draw_defect(
    code: int, p: Phantom, scale: float, beam: NDArray, reference: NDArray, azimuth: float, rng: np.random.Generator
) -> Defect:
    low, median, high = (p.loop100_nm, p.loop111_nm, p.black_dot_nm)[code - 1]
    sigma = np.log(high / low) / 4
    diameter = float(np.clip(median * np.exp(sigma * rng.standard_normal()), low, high))
    depth, strength, rim, inner, pick = (float(u) for u in rng.uniform(size=5))
    amplitude = p.contrast[0] * (p.contrast[1] / p.contrast[0]) ** strength * (1 - p.depth_fade * depth)
    look: Look
    if code == BLACK_DOT:
        ratio, angle, look = float(rng.uniform(0.75, 1.0)), float(rng.uniform(0, 180)), "dot"
    else:
        variants = NORMALS[code]
        normal = _tilted(variants[rng.integers(len(variants))], p.tilt_jitter_deg, rng)
        ratio, angle = projected(normal, beam, reference)
        if ratio < EDGE_ON_RATIO:
            look = "edge-on"
        elif code == LOOP_111 and pick < p.coffee_bean_share and diameter > SMALL_NM:
            look = "coffee-bean"
        else:
            look = "filled" if diameter < SMALL_NM or pick > 1 - p.filled_share else "rim"
    blur = p.depth_blur_nm[0] + (p.depth_blur_nm[1] - p.depth_blur_nm[0]) * depth
    return Defect(
        code=code, look=look, x=0.0, y=0.0, major_px=diameter / scale,
        minor_px=max(ratio * diameter, EDGE_WIDTH_NM) / scale, angle_deg=(angle + azimuth) % 180,
        rim_px=(p.rim_nm[0] + (p.rim_nm[1] - p.rim_nm[0]) * rim) / scale,
        inner=p.inner_contrast[0] + (p.inner_contrast[1] - p.inner_contrast[0]) * inner,
        depth=depth, amplitude=amplitude, blur_px=blur / scale,
    )  # fmt: skip


def _tilted(vector: NDArray, spread_deg: float, rng: np.random.Generator) -> NDArray[np.float64]:
    moved = vector + np.deg2rad(spread_deg) * rng.standard_normal(3)
    return moved / np.sqrt(moved @ moved)


def _free_place(
    major: float, minor: float, others: list[Defect], size: int, margin: float, crowding: float,
    rng: np.random.Generator,
) -> tuple[float, float] | None:  # fmt: skip
    """A centre whose mean-radius circle keeps its distance from the others; None after many tries."""
    radius = np.sqrt(major * minor) / 2
    taken = np.array([(d.x, d.y, np.sqrt(d.major_px * d.minor_px) / 2) for d in others]).reshape(-1, 3)
    for x, y in rng.uniform(-margin, size + margin, size=(PLACEMENT_TRIES, 2)):
        gap = (taken[:, 0] - x) ** 2 + (taken[:, 1] - y) ** 2
        if (gap >= ((1 - crowding) * (taken[:, 2] + radius)) ** 2).all():
            return float(x), float(y)
    return None


def _draw_lines(
    p: Phantom, size: int, scale: float, beam: NDArray, reference: NDArray, azimuth: float, rng: np.random.Generator
) -> list[Line]:
    megapixels = size * size / 2**20
    lines: list[Line] = []
    for _ in range(rng.poisson(p.dislocations_per_megapixel * megapixels)):
        # Half of the lines start on another one: dislocations meet in networks.
        if lines and rng.uniform() < 0.5:
            start = lines[rng.integers(len(lines))].points[rng.integers(12)]
        else:
            start = rng.uniform(0, size, 2)
        heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.12, 60)) + rng.normal(0, 0.03) * np.arange(60)
        step = rng.uniform(0.4, 1.2) * size / 60
        points = start + np.cumsum(step * np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0)
        lines.append(Line(points, rng.uniform(1.5, 4.0) / scale, _uneven(59, p, rng)))
    for _ in range(rng.poisson(p.large_loops_per_megapixel * megapixels)):
        code = int(rng.integers(1, 3))
        ratio, angle = projected(_tilted(NORMALS[code][0], p.tilt_jitter_deg, rng), beam, reference)
        major = rng.uniform(*LARGE_LOOP_NM) / scale / 2
        turn, t = np.deg2rad(angle + azimuth), np.linspace(0, 2 * np.pi, 73)
        along, across = major * np.cos(t), max(ratio, 0.1) * major * np.sin(t)
        x, y = rng.uniform(0, size, 2)
        outline = np.stack([x + along * np.cos(turn) + across * np.sin(turn),
                            y - along * np.sin(turn) + across * np.cos(turn)], axis=1)  # fmt: skip
        lines.append(Line(outline, rng.uniform(1.5, 3.5) / scale, _uneven(72, p, rng)))
    return lines


def _uneven(n: int, p: Phantom, rng: np.random.Generator) -> NDArray[np.float64]:
    """Amplitudes along a line that runs through the foil: its contrast oscillates with depth."""
    phase = rng.uniform(0, 2 * np.pi) + np.arange(n) * rng.uniform(0.05, 0.9)
    return rng.uniform(*p.contrast) * (0.7 + 0.3 * np.cos(phase)) * 0.8
