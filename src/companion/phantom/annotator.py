"""From truth to labels: what an annotator would have drawn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from companion.phantom.scene import Scene, Window


@dataclass(frozen=True)
class Label:
    """One labelled instance: class code, mask [h, w] and its window in the image."""

    code: int
    mask: NDArray[np.bool_]
    window: Window


def truth(scene: Scene) -> list[Label]:
    """Every defect of a scene, exactly."""
    return [Label(defect.code, *scene.mask(defect)) for defect in scene.defects]
