"""What is in a simulated micrograph: one crystal, its loops and dots, and what else crosses the field.

One in-plane crystal azimuth per image ties all orientations together; with the aspect ratio it
is what tells the classes apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from companion.config.phantom import Phantom
from companion.geometry import ellipse_radius
from companion.phantom.contrast import Defect, Line, Look, Window, visibility
from companion.phantom.crystal import BLACK_DOT, LOOP_111, g_dot_b, random_loop, random_reflection, zone_axis
from companion.seeds import Seeds

CLASSES = ("<100> loop", "<111> loop", "black dot")
Ellipse = tuple[float, float, float, float, float]  # x, y, major_px, minor_px, angle_deg

EDGE_ON_RATIO = 0.25  # below this minor/major a loop looks like a bar
SMALL_NM = 11.0  # loops below this diameter have no room for a rim
PLACEMENT_TRIES = 40
HIGHEST_CONTRAST = 0.5  # of a single defect, whatever the session
LAYERS, SURFACE_DEPTH = 3.0, 0.3  # extinction distances in the foil's thickness; depth by which lobes have faded
VISIBLE_PX = 12  # an instance with fewer pixels in the image is not an instance


@dataclass(frozen=True)
class Scene:
    """Truth of one micrograph, and the conditions under which it was recorded, which the frames of one grain share."""

    size_px: int
    pixel_size_nm: float
    beam: NDArray[np.float64]  # vector [3] along the beam, crystal axes
    azimuth_deg: float  # displayed angle of the in-plane reference direction of the zone axis
    g_deg: float  # displayed angle of the diffraction vector
    dose_electrons: float  # per px
    contrast: float  # factor on the amplitude of all defects
    defocus_px: float  # blur
    magnification: str = ""  # name of the pixel size
    grain: int = 0  # number of the crystal that it shows, shared by neighbouring frames
    defects: tuple[Defect, ...] = ()
    large_loops: tuple[Defect, ...] = ()  # these and the lines are not labelled
    lines: tuple[Line, ...] = ()

    def mask(self, defect: Defect) -> tuple[NDArray[np.bool_], Window]:
        """Pixels of a defect [h, w] and their window in the image."""
        radius, window = ellipse_radius(
            (self.size_px, self.size_px), defect.x, defect.y, defect.major_px, defect.minor_px, defect.angle_deg
        )
        return radius <= 1, window


def draw_scene(phantom: Phantom, seeds: Seeds, number: int) -> Scene:
    """Draw the content of micrograph `number` (1, 2, ...) of a data set.

    The density is per px, not per nm: microscopists choose the magnification by what they want to see.
    """
    p, rng = phantom, seeds.rng("scene", number)
    names = sorted(p.magnifications)
    name = names[rng.choice(len(names), p=[p.magnifications[n][1] for n in names])]
    grain = 1 + (number - 1) // p.frames_per_grain
    empty = _crystal(p, p.magnifications[name][0], seeds.rng("grain", grain), seeds.rng("session", grain))
    defects = _place_defects(empty, p, rng)
    return replace(_with_unlabelled(empty, p, rng), magnification=name, grain=grain, defects=defects)


def empty_scene(phantom: Phantom, pixel_size_nm: float, rng: np.random.Generator) -> Scene:
    """A micrograph of a crystal of its own with the unlabelled lines, but without a defect."""
    return _with_unlabelled(_crystal(phantom, pixel_size_nm, rng, rng), phantom, rng)


def _crystal(p: Phantom, pixel_size_nm: float, crystal: np.random.Generator, rng: np.random.Generator) -> Scene:
    """A scene with nothing in it: orientation drawn from `crystal`, recording conditions from `rng`."""
    beam, azimuth = zone_axis(p.beam, p.zone_error_deg, crystal), float(crystal.uniform(0, 360))
    return Scene(
        p.size_px, pixel_size_nm, beam, azimuth, (azimuth + random_reflection(p.beam, crystal)) % 360,
        dose_electrons=float(p.dose_electrons * np.exp(p.dose_spread * rng.standard_normal())),
        contrast=float(np.exp(p.contrast_spread * rng.standard_normal())),
        defocus_px=float(rng.uniform(0, p.defocus_nm)) / pixel_size_nm,
    )  # fmt: skip


def _place_defects(scene: Scene, p: Phantom, rng: np.random.Generator) -> tuple[Defect, ...]:
    margin = p.loop100_nm[2] / scene.pixel_size_nm / 2  # centres outside the frame make defects that its border cuts
    area = (scene.size_px + 2 * margin) ** 2 / 2**20
    density = p.defects_per_megapixel * np.exp(p.density_spread * rng.standard_normal())
    codes = 1 + rng.choice(3, size=rng.poisson(density * area), p=np.array(p.class_shares) / sum(p.class_shares))
    defects: list[Defect] = []
    taken = np.zeros((0, 3))  # x, y, mean radius
    for code in codes:
        low, median, high = (p.loop100_nm, p.loop111_nm, p.black_dot_nm)[code - 1]
        diameter = np.clip(median * np.exp(np.log(high / low) / 4 * rng.standard_normal()), low, high)
        shape = _draw_defect(int(code), float(diameter), scene, p, rng)
        # The first of many centres whose circle of equal area keeps its distance from the others; none: left out.
        places = rng.uniform(-margin, scene.size_px + margin, size=(PLACEMENT_TRIES, 2))
        gaps = ((places[:, None] - taken[:, :2]) ** 2).sum(axis=2)
        free = (gaps >= ((1 - p.crowding) * (taken[:, 2] + shape.mean_radius_px)) ** 2).all(axis=1)
        if free.any():
            x, y = places[free.argmax()].tolist()
            defects.append(seen(replace(shape, x=x, y=y), scene, p))
            taken = np.vstack([taken, (x, y, shape.mean_radius_px)])
    return tuple(defect for defect in defects if scene.mask(defect)[0].sum() >= VISIBLE_PX)


def _draw_defect(code: int, diameter: float, scene: Scene, p: Phantom, rng: np.random.Generator) -> Defect:
    *looks, width = (float(u) for u in rng.uniform(size=6))
    if code == BLACK_DOT:
        ratio, angle = float(rng.uniform(0.75, 1.0)), float(rng.uniform(0, 180))
        minor = ratio * diameter
    else:
        ratio, angle = random_loop(code, p.beam, scene.beam, p.tilt_jitter_deg, rng)
        # Seen along its plane a loop is as wide as its strain contrast, but no wider than it is long.
        minor = min(max(ratio * diameter, _between(p.edge_on_nm, width)), diameter)
    ellipse = (0.0, 0.0, diameter / scene.pixel_size_nm, minor / scene.pixel_size_nm, angle + scene.azimuth_deg)
    return dressed(code, ellipse, ratio < EDGE_ON_RATIO, looks, scene, p)


def dressed(code: int, ellipse: Ellipse, edge_on: bool, draws: Sequence[float], scene: Scene, p: Phantom) -> Defect:
    """A defect of given outline with everything else that decides how it looks.

    Parameters
    ----------
    edge_on : whether a loop is seen along its plane
    draws : five uniform numbers in 0-1, for depth (0: top face), strength, rim, inside and look
    """
    x, y, major_px, minor_px, angle_deg = ellipse
    depth, strength, rim, inner, pick = draws
    small = major_px * scene.pixel_size_nm < SMALL_NM
    filled = small or pick > 1 - p.filled_share
    look: Look = "dot" if code == BLACK_DOT else "edge-on" if edge_on else "filled" if filled else "rim"
    # A dot's strain is that of a sphere: it has no Burgers vector to lie across g.
    strong = 1.0 if look == "dot" else abs(g_dot_b(0.0 if edge_on else minor_px / major_px, angle_deg, scene.g_deg))
    amplitude = scene.contrast * p.contrast[0] * (p.contrast[1] / p.contrast[0]) ** strength
    amplitude *= 1 - p.depth_fade * depth
    # Black-white lobes change sides with the depth, by the extinction distance, and fade away from the surfaces.
    layer = np.cos(2 * np.pi * depth * LAYERS) * np.exp(-min(depth, 1 - depth) / SURFACE_DEPTH)
    lobe = p.one_sided if look == "rim" else p.black_white * (small or look == "edge-on" or look == "dot")
    inner = 1.0 if small else _between(p.filled_contrast if filled else p.inner_contrast, inner)
    return Defect(
        code, look, x, y, major_px, minor_px, angle_deg % 180, rim_px=_between(p.rim_nm, rim) / scene.pixel_size_nm,
        inner=inner, amplitude=min(amplitude, HIGHEST_CONTRAST),
        blur_px=_between(p.depth_blur_nm, depth) / scene.pixel_size_nm, g_deg=scene.g_deg,
        bean=p.no_contrast * (1 - strong) * (look in ("rim", "filled")), side=float(lobe * strong * layer),
    )  # fmt: skip


def seen(defect: Defect, scene: Scene, p: Phantom) -> Defect:
    """The defect, drawn at the limit of what can be seen if it was fainter: labels stand on nothing else."""
    lacking = p.min_visibility / visibility(defect, scene.dose_electrons, float(np.hypot(p.texture, p.stripes)))
    return replace(defect, amplitude=min(defect.amplitude * max(1.0, lacking), HIGHEST_CONTRAST))


def _between(limits: tuple[float, float], share: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * share


def _with_unlabelled(scene: Scene, p: Phantom, rng: np.random.Generator) -> Scene:
    """The scene with loops too large to be labelled, rims around nothing, and with dislocations.

    A dislocation in the foil's plane descends no extinction distance and is one-sided all along.
    """
    loops, lines, n = [], [], 60
    for _ in range(rng.poisson(p.large_loops_per_megapixel * scene.size_px**2 / 2**20)):
        loop = _draw_defect(LOOP_111, rng.uniform(*p.large_loop_nm), scene, p, rng)
        x, y = rng.uniform(0, scene.size_px, 2).tolist()
        loops.append(replace(loop, x=x, y=y, inner=0.0, rim_px=p.line_nm[0] / scene.pixel_size_nm))
    for _ in range(rng.poisson(p.dislocations_per_megapixel * scene.size_px**2 / 2**20)):
        heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.12, n)) + rng.normal(0, 0.03) * np.arange(n)
        steps = rng.uniform(0.4, 1.2) * scene.size_px / n * np.stack([np.cos(heading), np.sin(heading)], axis=1)
        phases = rng.uniform(0, 2 * np.pi) + np.linspace(0, 2 * np.pi * rng.uniform(0, p.line_fringes), n)
        strong = abs(g_dot_b(*random_loop(LOOP_111, p.beam, scene.beam, 0.0, rng), scene.g_deg - scene.azimuth_deg))
        amplitude = scene.contrast * rng.uniform(np.mean(p.contrast), p.contrast[1]) * (0.5 + 0.5 * strong)
        points, width = rng.uniform(0, scene.size_px, 2) + np.cumsum(steps, axis=0), rng.uniform(*p.line_nm)
        lines.append(Line(points, phases, min(amplitude, HIGHEST_CONTRAST), width / scene.pixel_size_nm))
    return replace(scene, large_loops=tuple(loops), lines=tuple(lines))
