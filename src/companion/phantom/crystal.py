"""Loops in a crystal: normals of their planes, zone axes, and what a circular loop projects to.

A circular loop with normal n seen along the beam B is an ellipse with minor/major = |n.B| and its long axis
along n x B.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LOOP_100, LOOP_111, BLACK_DOT = 1, 2, 3  # class codes

# Plane normals of the loop variants, and for each zone axis B an in-plane direction at azimuth 0.
NORMALS = {
    LOOP_100: np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=float),
    LOOP_111: np.array([[1, 1, 1], [-1, 1, 1], [1, -1, 1], [1, 1, -1]]) / np.sqrt(3),
}
BEAMS = {"001": ((0, 0, 1), (1, 0, 0)), "110": ((1, 1, 0), (0, 0, 1)), "111": ((1, 1, 1), (1, -1, 0))}
REFLECTIONS = np.array([[1, 1, 0], [1, -1, 0], [1, 0, 1], [1, 0, -1], [0, 1, 1], [0, 1, -1],
                        [2, 0, 0], [0, 2, 0], [0, 0, 2]])  # fmt: skip  # the strongest of a body-centred cubic crystal


def projected(normal: NDArray, beam: NDArray, reference: NDArray) -> tuple[float, float]:
    """Aspect ratio (minor/major, 0-1) and long-axis angle (degrees, [0, 180)) of a circular loop.

    Unit vectors [3] in crystal axes: `normal` of its plane, `beam`; `reference` is displayed at angle 0.
    """
    along = np.cross(normal, beam)
    e1 = reference - (reference @ beam) * beam
    e2 = np.cross(beam, e1)
    angle = float(np.rad2deg(np.arctan2(along @ e2, along @ e1))) % 180.0
    return float(min(1.0, abs(normal @ beam))), angle


def zone_axis(beam: str, error_deg: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Unit vector along the beam, tilted off the zone axis by a normal error."""
    direction = np.array(BEAMS[beam][0], dtype=float)
    return _tilted(direction / np.linalg.norm(direction), error_deg, rng)


def random_loop(
    code: int, beam: str, along: NDArray, jitter_deg: float, rng: np.random.Generator
) -> tuple[float, float]:
    """Aspect ratio and long-axis angle of a random variant of a class, seen along the vector `along`."""
    normal = _tilted(NORMALS[code][rng.integers(len(NORMALS[code]))], jitter_deg, rng)
    return projected(normal, along, np.array(BEAMS[beam][1], dtype=float))


def random_reflection(beam: str, rng: np.random.Generator) -> float:
    """Angle, degrees, of the strongest diffraction vector g of a micrograph: one of those across the zone axis."""
    zone, reference = (np.array(vector, dtype=float) for vector in BEAMS[beam])
    across = REFLECTIONS[REFLECTIONS @ zone == 0]
    return projected(across[rng.integers(len(across))], zone / np.linalg.norm(zone), reference)[1] + 90


def g_dot_b(ratio: float, angle_deg: float, g_deg: float) -> float:
    """Cosine between the diffraction vector and the Burgers vector of an edge loop of this projected outline.

    The Burgers vector is along the normal, of which sqrt(1 - ratio^2) lies in the image, across the long axis.
    """
    return float(np.sqrt(1 - min(ratio, 1.0) ** 2) * np.sin(np.deg2rad(g_deg - angle_deg)))


def _tilted(vector: NDArray, spread_deg: float, rng: np.random.Generator) -> NDArray[np.float64]:
    moved = vector + np.deg2rad(spread_deg) * rng.standard_normal(3)
    return moved / np.linalg.norm(moved)
