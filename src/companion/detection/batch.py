"""What goes into a detector and what comes out, whichever backend it has."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Batch:
    """Training patches with their truth, padded to equally many instances.

    Attributes
    ----------
    images : uint8 [B, S, S] grey levels (floating where they have been enlarged)
    instances : int32 [B, S, S] instance ids, 0 for none
    boxes : float32 [B, M, 4] x1, y1, x2, y2 in px, half-open; padding is zero
    labels : int64 [B, M] class codes 1..., 0 marks padding
    ids : int64 [B, M] which id of `instances` each box belongs to
    """

    images: Tensor
    instances: Tensor
    boxes: Tensor
    labels: Tensor
    ids: Tensor

    def enlarged(self, size: int) -> Batch:
        """The same batch at another size: instance ids by their nearest pixel, boxes scaled."""
        ids = F.interpolate(self.instances[:, None].double(), size=(size, size))[:, 0].to(self.instances.dtype)
        boxes = self.boxes * (size / self.images.shape[-1])
        return replace(self, images=enlarge(self.images, size), instances=ids, boxes=boxes)


@dataclass(frozen=True)
class Detections:
    """What was found in one patch, best first.

    Attributes
    ----------
    boxes : float32 [N, 4] px
    scores : float32 [N] in [0, 1]
    labels : int64 [N] class codes 1...
    masks : bool [N, S, S]
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_]


def enlarge(images: Tensor, size: int) -> Tensor:
    """Patches [B, S, S] at another size, float32 [B, size, size], interpolated linearly."""
    return F.interpolate(images[:, None].float(), size=(size, size), mode="bilinear", align_corners=False)[:, 0]
