"""Arms as recipes: which training patches make batch number i.

Every arm takes the same number of optimiser steps with the same batch size; arms differ only in where the
patches of a batch come from. The draws of a step depend on the step and the seed alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from companion import seeds
from companion.data.patches import Patches
from companion.detection.batch import Batch
from companion.detection.paste import copy_paste
from companion.errors import CompanionError
from companion.geometry import symmetry, symmetry_boxes
from companion.stages import Stage, split_name

# Pools of patches of each arm, in the order of their places in a batch. "again" and "pasted" are made of real ones.
ARMS: Mapping[str, tuple[str, ...]] = {
    "EXP": ("real",),
    "EXP+GEN": ("real", "generated"),
    "EXP+RARE": ("real", "generated"),  # the same mixture; its generated patches hold more of the rare class
    # Controls that the paper lacks (where their generated patches come from: `companion.kinds.POOLS`):
    "EXP+RESYNTH": ("real", "generated"),  # real masks resynthesised: no new mask, only new images
    "EXP+RENDER": ("real", "generated"),  # simulated masks painted by the phantom: the generator's ceiling
    "EXP+FILTERED": ("real", "generated"),  # without the pairs that a detector trained on real patches contradicts
    "GEN": ("generated",),
    "EXP+EXP": ("real", "again"),  # places of generated patches taken by real ones: a difference to EXP is noise
    "EXP+PASTE": ("real", "pasted"),  # the same, with defects of another real patch pasted in
}
_MADE_OF_REAL = ("again", "pasted")


@dataclass(frozen=True)
class Draw:
    """Patches of one batch from one pool: int64 [n] patch numbers, int64 [n] symmetry codes."""

    pool: str
    patches: NDArray[np.int64]
    symmetries: NDArray[np.int64]


@dataclass(frozen=True)
class Recipe:
    """An arm with its pools at a batch size.

    Attributes
    ----------
    pools : patches by pool name, in the order of their places in a batch
    counts : patches per batch from each pool; sums to the batch size
    names : root seed and path of names of the random draws
    """

    pools: Mapping[str, Patches]
    counts: Mapping[str, int]
    names: tuple[int, tuple[str | int, ...]]

    def draw(self, step: int) -> list[Draw]:
        """Which patches make batch number `step`, in which symmetry.

        Every pool is gone through in a new random order each time round, so all its patches are seen equally
        often; a patch comes in a random one of the symmetries that its pool allows.
        """
        draws = []
        for pool, count in self.counts.items():
            patches = self.pools[pool]
            rounds, places = np.divmod(np.arange(step * count, (step + 1) * count), len(patches))
            numbers = np.array([self._order(pool, int(r))[p] for r, p in zip(rounds, places, strict=True)], dtype=int)
            root, path = self.names
            rng = seeds.generator(root, *path, "symmetries", pool, step)
            draws.append(Draw(pool, numbers, rng.choice(np.array(patches.symmetries), size=count)))
        return draws

    def batch(self, step: int) -> Batch:
        """Batch number `step`."""
        parts = [self._take(d, step) for d in self.draw(step)]
        most = max(1, max(len(truth) for part in parts for truth in part.truths))
        images = np.concatenate([part.images for part in parts])
        instances = np.concatenate([part.instances for part in parts])
        boxes = np.zeros((len(images), most, 4), dtype=np.float32)
        labels, ids = np.zeros((2, len(images), most), dtype=np.int64)
        for place, truth in enumerate(truth for part in parts for truth in part.truths):
            boxes[place, : len(truth)] = truth[:, :4]
            labels[place, : len(truth)], ids[place, : len(truth)] = truth[:, 4], truth[:, 5]
        return Batch(*(torch.from_numpy(array) for array in (images, instances, boxes, labels, ids)))

    def _take(self, draw: Draw, step: int) -> _Part:
        source = self._sources[draw.pool]
        part = source.take(draw.patches, draw.symmetries)
        if draw.pool != "pasted":
            return part
        root, path = self.names
        rng = seeds.generator(root, *path, "paste", step)
        others = source.take(
            rng.integers(len(source.patches), size=len(draw.patches)),
            rng.choice(np.array(source.patches.symmetries), size=len(draw.patches)),
        )
        made = [copy_paste(target, other, rng) for target, other in zip(part.rows(), others.rows(), strict=True)]
        images, instances, truths = zip(*made, strict=True)
        return _Part(np.stack(images), np.stack(instances), list(truths))

    def _order(self, pool: str, turn: int) -> NDArray[np.int64]:
        root, path = self.names
        return _permutation(root, (*path, "order", pool, turn), len(self.pools[pool]))

    @cached_property
    def _sources(self) -> dict[str, _Source]:
        return {name: _Source(patches) for name, patches in self.pools.items()}


@lru_cache(maxsize=16)
def _permutation(root: int, names: tuple[str | int, ...], length: int) -> NDArray[np.int64]:
    return seeds.generator(root, *names).permutation(length)


@dataclass(frozen=True)
class _Part:
    images: NDArray[np.uint8]
    instances: NDArray[np.int64]
    truths: list[NDArray[np.float64]]  # per patch [N, 6]: box, class, id

    def rows(self) -> list[tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.float64]]]:
        return list(zip(self.images, self.instances, self.truths, strict=True))


class _Source:
    """A pool of patches, its truth indexed by patch."""

    def __init__(self, patches: Patches) -> None:
        self.patches = patches
        table = patches.table
        # A box without an area (nothing visible) cannot be learnt from.
        table = table[(table["x2"] > table["x1"]) & (table["y2"] > table["y1"])]
        columns = table[["x1", "y1", "x2", "y2", "class", "instance"]].to_numpy(dtype=float)
        order = np.argsort(table["patch"].to_numpy(), kind="stable")
        bounds = np.searchsorted(table["patch"].to_numpy()[order], np.arange(len(patches) + 1))
        self.truths = [columns[order[a:b]] for a, b in itertools.pairwise(bounds)]

    def take(self, numbers: NDArray[np.int64], symmetries: NDArray[np.int64]) -> _Part:
        images, instances, truths = [], [], []
        for number, code in zip(numbers, symmetries, strict=True):
            images.append(symmetry(self.patches.images[number], int(code)))
            instances.append(symmetry(self.patches.instances[number], int(code)))
            truth = self.truths[number].copy()
            truth[:, :4] = symmetry_boxes(truth[:, :4], int(code), self.patches.size)
            truths.append(truth)
        return _Part(np.stack(images), np.stack(instances).astype(np.int64), truths)


def recipe(
    arm: str,
    pools: Mapping[str, Patches],
    *,
    batch_size: int,
    generated_share: float,
    root_seed: int,
    names: tuple[str | int, ...],
) -> Recipe:
    """The recipe of an arm.

    Parameters
    ----------
    arm : a name in `ARMS`
    pools : patches by pool name; only those that the arm needs are used
    batch_size : patches per batch, in every arm
    generated_share : share of a batch from the second pool, in arms that have one
    root_seed, names : where the random draws come from

    Raises
    ------
    CompanionError
        A pool is missing, empty, has no images, or differs from the others in patch size or classes.
    """
    if arm not in ARMS:
        raise CompanionError(f"no arm '{arm}'; arms: {', '.join(ARMS)}")
    pools = {**pools, **dict.fromkeys(_MADE_OF_REAL, pools["real"])} if "real" in pools else pools
    chosen = {}
    for name in ARMS[arm]:
        if name not in pools:
            raise CompanionError(f"arm {arm} needs {name} patches, and none were given")
        if len(pools[name]) == 0 or pools[name].images is None:
            raise CompanionError(f"arm {arm}: the {name} pool has no patches with images")
        chosen[name] = pools[name]
    for what in ("size", "classes"):
        if len({getattr(pool, what) for pool in chosen.values()}) > 1:
            found = ", ".join(f"{name}: {getattr(pool, what)}" for name, pool in chosen.items())
            raise CompanionError(f"arm {arm}: its pools differ in {what} ({found})")
    first, *others = chosen
    added = round(batch_size * generated_share) if others else 0
    counts = {first: batch_size - added, **dict.fromkeys(others, added)}
    return Recipe(chosen, {name: count for name, count in counts.items() if count}, (root_seed, names))


def recipe_of(stage: Stage, pools: Mapping[str, Patches]) -> Recipe:
    """The recipe of a detector stage; its draws depend on split, N and seed, so arms of one seed share them."""
    keys, settings = stage.keys, stage.profile.detection
    return recipe(
        keys["arm"], pools, batch_size=settings.batch_size, generated_share=settings.generated_share,
        root_seed=stage.profile.root_seed,
        names=("detector", split_name(keys["split"]), keys["n_train"], keys["seed"]),
    )  # fmt: skip
