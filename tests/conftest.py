"""Small data for every test: dark ellipses on noise, whose truth is known by construction."""

import signal
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import settings

from companion.geometry import ellipse_radius
from companion.micrographs.patches import Patches, instance_table
from companion.stats import c2st_auc

# The same examples every time: a test that fails has failed because of a change.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")
torch.set_num_threads(1)  # threads of tests side by side wait for each other

# Tests started in the background, or by nohup, inherit that these are ignored, and so would the runs they interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

CLASSES = ("<100> loop", "<111> loop", "black dot")


def ellipse(shape: tuple[int, int], x: float, y: float, major: float, minor: float, angle: float = 0.0) -> np.ndarray:
    """Pixels of an ellipse, bool of that shape."""
    mask = np.zeros(shape, dtype=bool)
    radius, window = ellipse_radius(shape, x, y, major, minor, angle)
    mask[window] = radius <= 1
    return mask


def patches_of(instances, labels, images=None, classes=CLASSES, **index) -> Patches:
    """Patches of instance ids [P, S, S], with class codes by (patch, instance) and entries of the index."""
    usual = {"patch": range(len(instances)), "image": "0.png", "x0": 0, "y0": 0, "symmetry": 0, "pixel_size_nm": 0.88}
    table = instance_table(instances, labels)
    return Patches(images, instances, pd.DataFrame(usual | index), table, classes, (0, 1, 2, 3))


def ellipse_patches(n: int, size: int = 64, seed: int = 0, classes: int = 3) -> Patches:
    """`n` patches of `size` px with 0-4 ellipses each; class told by size, some empty, some cut by the border."""
    rng = np.random.default_rng(seed)
    images = rng.normal(170, 8, (n, size, size))
    instances = np.zeros((n, size, size), dtype=np.uint8)
    labels: dict[tuple[int, int], int] = {}
    for patch in range(n):
        for instance in range(1, rng.integers(0, 5) + 1):
            code = int(rng.integers(1, classes + 1))
            major = (20, 15, 9)[(code - 1) % 3] * rng.uniform(0.9, 1.1)
            x, y = rng.uniform(2, size - 2, 2)
            mask = ellipse((size, size), x, y, major, 0.7 * major, rng.uniform(0, 180))
            instances[patch][mask] = instance
            images[patch][mask] -= 60
            labels[patch, instance] = code
    images, names = np.clip(images, 0, 255).astype(np.uint8), [f"{p // 4}.png" for p in range(n)]
    return patches_of(instances, labels, images, CLASSES[:classes], image=names)


@pytest.fixture
def two_deals(monkeypatch):
    """Two deals of the classifier two-sample test instead of its twenty, which steady what it says."""
    for module in ("diffusion.quality", "masks.compare"):
        monkeypatch.setattr(f"companion.{module}.c2st_auc", partial(c2st_auc, deals=2))


@pytest.fixture
def deterministic():
    """Torch refuses what may differ from run to run."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
