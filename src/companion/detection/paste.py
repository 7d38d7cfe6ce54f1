"""Copy-paste (Ghiasi et al. 2021): labelled defects of one patch put onto another, the control without a generator."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from companion.geometry import box_of


def copy_paste(
    target: tuple[NDArray[np.uint8], NDArray[np.integer], NDArray[np.float64]],
    source: tuple[NDArray[np.uint8], NDArray[np.integer], NDArray[np.float64]],
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.integer], NDArray[np.float64]]:
    """A random choice of the source's defects drawn over the target.

    A defect brings its contrast, not its brightness: the pixels are shifted by the difference of the two patches'
    backgrounds (medians outside the defects). Defects of the target that the pasted ones hide wholly lose their row.

    Parameters
    ----------
    target, source : image uint8 [S, S], instance ids [S, S], truth [N, 6]: box x1 y1 x2 y2 in px, class, id
    rng : decides for each defect of the source, with even odds, whether it is pasted

    Returns
    -------
    Image, instance ids and truth of the same form; pasted defects have ids above those of the target.
    """
    image, instances, truth = target[0].copy(), target[1].astype(np.int64), target[2]
    shift = _background(target[0], target[1]) - _background(source[0], source[1])
    pasted, next_id = [], int(instances.max(initial=0)) + 1
    for row in source[2][rng.random(len(source[2])) < 0.5]:
        mask = source[1] == int(row[5])
        image[mask] = np.clip(source[0][mask] + shift, 0, 255).round().astype(np.uint8)
        instances[mask] = next_id
        pasted.append((*row[:5], next_id))
        next_id += 1
    rows = []
    for row in [*truth, *pasted]:
        box = box_of(instances == int(row[5]))
        if box[2] > box[0]:
            rows.append((*box, row[4], row[5]))
    return image, instances, np.array(rows, dtype=float).reshape(-1, 6)


def _background(image: NDArray[np.uint8], instances: NDArray[np.integer]) -> float:
    outside = image[instances == 0]
    return float(np.median(outside if outside.size else image))
