"""The controls beside generated patches: the same masks painted by the phantom, and real masks instead of simulated."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from companion import geometry
from companion.data.patches import Patches, instance_table
from companion.errors import CompanionError
from companion.masks.statistics import CONTOUR_PX, measure
from companion.params import Profile
from companion.phantom.paint import paint


def painted(masks: Patches, profile: Profile, *names: str | int) -> NDArray[np.uint8]:
    """Images [P, S, S] of the given masks by the phantom's own optics: what a perfect generator would make of them.

    Raises
    ------
    CompanionError
        When the data set is not the phantom, whose optics alone are known.
    """
    if profile.dataset != "phantom":
        raise CompanionError(f"masks are painted with the phantom's optics; data set '{profile.dataset}' is not of it")
    # Moments see the region as it is; only of a defect that the border cuts must the ellipse be continued.
    ellipses, arcs = measure(masks, fit="moments"), measure(masks, fit="arc")
    arcs[["major_px", "minor_px"]] += CONTOUR_PX
    ellipses = ellipses.mask(ellipses["touches_border"], arcs)
    sizes = masks.index["pixel_size_nm"].to_numpy()
    return paint(ellipses, sizes, masks.size, masks.classes, profile.phantom, profile.root_seed, *names)


def real_masks(train: Patches, number: int) -> Patches:
    """Masks of training patches, `number` of them: all once, then again in the next symmetry, round and round.

    Returns
    -------
    Patches without images, in one symmetry each, as simulated masks are
    """
    if len(train) == 0:
        raise CompanionError("real masks are those of training patches, but there is none")
    rounds, patches = np.divmod(np.arange(number), len(train))
    codes = np.asarray(train.symmetries)[rounds % len(train.symmetries)]
    instances = np.stack(
        [geometry.symmetry(train.instances[p], int(code)) for p, code in zip(patches, codes, strict=True)]
    )
    source = pd.DataFrame({"source": patches, "patch": np.arange(number)})
    labels = source.merge(train.table.rename(columns={"patch": "source"}), on="source")[["patch", "instance", "class"]]
    index = train.index.iloc[patches].assign(patch=np.arange(number), symmetry=codes).reset_index(drop=True)
    table = instance_table(instances, labels)
    return replace(train, images=None, instances=instances, index=index, table=table, symmetries=(0,))
