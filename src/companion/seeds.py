"""Randomness: one root seed, and a generator of its own for every stage, worker and step.

Generators are spawned by name, so adding a stage never shifts the numbers another one draws, and a
step's draws depend on the step alone: an interrupted run continues with the numbers it would have had.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def sequence(root_seed: int, *names: str | int) -> np.random.SeedSequence:
    """SeedSequence of `root_seed` for a path of names, e.g. ``("masks", "split-1", 10)``."""
    digest = hashlib.sha256("/".join(str(name) for name in names).encode()).digest()
    return np.random.SeedSequence(root_seed, spawn_key=tuple(np.frombuffer(digest[:16], dtype="<u4").tolist()))


def generator(root_seed: int, *names: str | int) -> np.random.Generator:
    """NumPy generator for a path of names."""
    return np.random.Generator(np.random.PCG64(sequence(root_seed, *names)))


def integer(root_seed: int, *names: str | int) -> int:
    """A 63-bit seed for a path of names, for libraries that take an integer."""
    return int(sequence(root_seed, *names).generate_state(1, dtype=np.uint64)[0] >> 1)


def torch_generator(root_seed: int, *names: str | int, device: str = "cpu") -> torch.Generator:
    """Torch generator on `device` for a path of names."""
    import torch

    return torch.Generator(device=device).manual_seed(integer(root_seed, *names))
