"""Arms as recipes: which training patches make batch number i.

Every arm takes the same number of optimiser steps with the same batch size; arms differ only in where the
patches of a batch come from. The draws of a step depend on the step and the seed alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from companion import seeds
from companion.micrographs.patches import Patches
from companion.detection.batch import Batch
from companion.detection.paste import copy_paste
from companion.detection.pools import CPU, Pool, Row, batch_of, joined, rows_of
from companion.errors import CompanionError
from companion.places import split_name
from companion.stages import Stage

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

    def batch(self, step: int, device: torch.device = CPU) -> Batch:
        """Batch number `step`, made on the device; the pools move there at the first call and stay."""
        pools, draws = self._on(device), self.draw(step)
        pasted = {draw.pool: self._pasted(draw, step) for draw in draws if draw.pool == "pasted"}
        counts = [pools[d.pool].most(d.patches) for d in draws if d.pool not in pasted]
        places = max([1, *counts, *(len(truth) for rows in pasted.values() for *_, truth in rows)])
        return joined([
            batch_of(pasted[d.pool], places).to(device) if d.pool in pasted
            else pools[d.pool].take(d.patches, d.symmetries, places)
            for d in draws
        ])  # fmt: skip

    def _pasted(self, draw: Draw, step: int) -> list[Row]:
        """Rows with defects pasted in, on the host: what is pasted depends on what is there."""
        pool, symmetries = self._on(CPU)[draw.pool], np.array(self.pools[draw.pool].symmetries)
        root, path = self.names
        rng = seeds.generator(root, *path, "paste", step)
        others = rng.integers(len(pool), size=len(draw.patches)), rng.choice(symmetries, size=len(draw.patches))
        targets, sources = (
            rows_of(pool.take(numbers, codes, pool.most(numbers)))
            for numbers, codes in ((draw.patches, draw.symmetries), others)
        )
        return [copy_paste(target, source, rng) for target, source in zip(targets, sources, strict=True)]

    def _order(self, pool: str, turn: int) -> NDArray[np.int64]:
        root, path = self.names
        return _permutation(root, (*path, "order", pool, turn), len(self.pools[pool]))

    def _on(self, device: torch.device) -> dict[str, Pool]:
        """Pools on a device, those of the same patches once."""
        if device not in self._placed:
            made = {id(patches): Pool(patches, device) for patches in self.pools.values()}
            self._placed[device] = {name: made[id(patches)] for name, patches in self.pools.items()}
        return self._placed[device]

    @cached_property
    def _placed(self) -> dict[torch.device, dict[str, Pool]]:
        return {}


@lru_cache(maxsize=16)
def _permutation(root: int, names: tuple[str | int, ...], length: int) -> NDArray[np.int64]:
    return seeds.generator(root, *names).permutation(length)


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
            dropped = ": the filter kept none; lower faithfulness.least_confirmed, or train the judging detector longer"
            why = dropped if arm == "EXP+FILTERED" and name == "generated" else ""
            raise CompanionError(f"arm {arm}: the {name} pool has no patches with images{why}")
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
