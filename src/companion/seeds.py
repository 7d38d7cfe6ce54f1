"""Randomness: one root seed, and random numbers of its own for every use, spawned by name.

Names make it independent of order: adding a stage never shifts what another one draws, and what step i of a training
draws depends on i alone, so that an interrupted run goes on with the numbers it would have had.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

Name = str | int


class Seeds:
    """Random numbers by name, e.g. ``Seeds(P.root_seed, "masks", split, n_train).rng("draw")``.

    Parameters
    ----------
    root : root seed of the run
    names : path of names that all uses have in common; 1 and "1" are one name
    """

    def __init__(self, root: int, *names: Name) -> None:
        self.root, self.names = root, names

    def child(self, *names: Name) -> Seeds:
        """The same root with a longer path."""
        return Seeds(self.root, *self.names, *names)

    def sequence(self, *names: Name) -> np.random.SeedSequence:
        """NumPy's seed sequence for a path of names."""
        digest = hashlib.sha256("/".join(map(str, (*self.names, *names))).encode()).digest()
        return np.random.SeedSequence(self.root, spawn_key=tuple(np.frombuffer(digest[:16], dtype="<u4").tolist()))

    def rng(self, *names: Name) -> np.random.Generator:
        """NumPy generator for a path of names."""
        return np.random.Generator(np.random.PCG64(self.sequence(*names)))

    def integer(self, *names: Name) -> int:
        """A 63-bit seed for a path of names, for libraries that take an integer."""
        return int(self.sequence(*names).generate_state(1, dtype=np.uint64)[0] >> 1)

    def torch(self, *names: Name) -> torch.Generator:
        """Torch generator on the CPU for a path of names: the same draws whatever the device."""
        import torch

        return torch.Generator().manual_seed(self.integer(*names))
