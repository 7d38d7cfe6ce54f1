"""What the denoiser may be told of a micrograph beside the mask: its pixel size and how noisy it is.

The paper pools magnifications without telling them apart, so that a blob of 20 px may be a dot or a loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import ndimage

from companion.data.patches import Patches

# Immerkaer (1996): blind to planes and straight scan lines; white noise of variance 1 comes out with variance 36.
_LAPLACIANS = np.outer([1, -2, 1], [1, -2, 1])


def noise_level(image: NDArray[np.uint8]) -> float:
    """Standard deviation of the noise of a patch [S, S], grey levels; the median keeps edges of defects out."""
    answer = ndimage.convolve(np.asarray(image, dtype=np.float32), _LAPLACIANS)[1:-1, 1:-1]
    return float(np.median(np.abs(answer)) / 0.6745 / 6)


def describe(train: Patches, names: Sequence[str]) -> dict[str, Any] | None:
    """Conditions of training patches, as plain values kept with the denoiser's weights; None where it is told none.

    Parameters
    ----------
    train : patches with images
    names : "pixel_size_nm", "noise"

    Returns
    -------
    names; micrographs: one row per micrograph with the values of `names` after its pixel size; mean and scale: of
    their logarithms
    """
    if not names:
        return None
    noise = [noise_level(image) for image in train.images]
    table = pd.DataFrame({"image": train.index["image"], "pixel_size_nm": train.index["pixel_size_nm"], "noise": noise})
    table = table.groupby("image", sort=False).mean()
    logs = np.log(table[list(names)].clip(lower=1e-3))
    scale = logs.std(ddof=0)
    return {
        "names": list(names),
        "micrographs": {"image": table.index.tolist(), **table.to_dict("list")},
        "mean": logs.mean().tolist(),
        "scale": scale.where(scale > 1e-6, 1.0).tolist(),  # one magnification only: nothing to tell apart
    }


def of_micrographs(described: dict[str, Any], images: Sequence[str]) -> torch.Tensor:
    """What the denoiser is told of micrographs by name: float32 [n, conditions], logarithms scaled to variance 1."""
    table = pd.DataFrame(described["micrographs"]).set_index("image").loc[list(images), described["names"]]
    scaled = (np.log(table.clip(lower=1e-3)) - described["mean"]) / described["scale"]
    return torch.tensor(scaled.to_numpy(), dtype=torch.float32)


def drawn_micrograph(described: dict[str, Any], pixel_size_nm: float | None, rng: torch.Generator) -> str:
    """A training micrograph that lends a generated patch its conditions.

    One of those whose pixel size is nearest to the mask's, so that the two go together; any where it is not known.
    """
    table = pd.DataFrame(described["micrographs"])
    if pixel_size_nm is not None:
        away = (np.log(table["pixel_size_nm"]) - np.log(pixel_size_nm)).abs()
        table = table[away <= away.min() + 1e-6]
    return str(table["image"].iloc[int(torch.randint(len(table), (1,), generator=rng))])
