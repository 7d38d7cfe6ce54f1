"""A learned mask sampler: an autoregressive model of the list of instances of a patch.

The paper asks for better or learned mask generators. Here a small recurrent network reads the instances so far, in
random order since a patch is a set, and predicts the next one attribute by attribute: class (0 ends the list), angle,
size, aspect, place. It is trained on the real training patches under the symmetries of the square. Angles are read
and predicted relative to the azimuth of the patch's crystal, which is given, as is the pixel size.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from companion.config.sections import Masks
from companion.masks.simulate import azimuths, turned
from companion.masks.spatial import find_crystals
from companion.masks.statistics import CONTOUR_PX
from companion.micrographs.patches import Patches
from companion.training import one_cycle, set_learning_rate

BINS = np.array([18, 16, 10, 24, 24])  # of angle, size, aspect, x, y
LARGEST_ASPECT = 6.0
WIDTH, BATCH, PEAK_RATE = 128, 64, 3e-3
LONGEST = 2  # a list ends at this multiple of the longest real one


class InstanceList(nn.Module):
    """Recurrent network over instances; one head per attribute, each given the attributes before it.

    Parameters
    ----------
    classes : number of classes; class 0 ends the list
    magnifications : number of pixel sizes, of which one is given first
    """

    def __init__(self, classes: int, magnifications: int) -> None:
        super().__init__()
        sizes = [classes + 1, *BINS.tolist()]
        self.embed = nn.ModuleList(nn.Embedding(n, WIDTH) for n in sizes)
        self.first = nn.Embedding(magnifications, WIDTH)
        self.body = nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, n)) for n in sizes
        )

    def loss(self, magnification: Tensor, tokens: Tensor) -> Tensor:
        """Mean negative log-likelihood per patch, nats, of lists [B, T, A] that class 0 ends and pads."""
        read = [self.first(magnification), *sum(e(tokens[..., a]) for a, e in enumerate(self.embed)).unbind(1)[:-1]]
        known, total = self.body(torch.stack(read, dim=1))[0], 0.0  # [B, T, WIDTH]: what is known before each
        there = tokens[..., 0] > 0
        for a, (head, embed) in enumerate(zip(self.heads, self.embed, strict=True)):
            counted = there if a else there | ((~there).cumsum(dim=1) == 1)  # the end counts once
            total = total + functional.cross_entropy(head(known[counted]), tokens[..., a][counted], reduction="sum")
            known = known + embed(tokens[..., a])
        return total / len(tokens)

    @torch.no_grad()
    def sample(self, magnification: Tensor, longest: int, generator: torch.Generator) -> Tensor:
        """Lists [B, longest, A] of instances; what follows class 0 does not count."""
        read, state, found = self.first(magnification), None, []
        for _ in range(longest):
            known, state = self.body(read[:, None], state)
            known, read, tokens = known[:, 0], 0.0, []
            for head, embed in zip(self.heads, self.embed, strict=True):
                tokens.append(torch.multinomial(head(known).softmax(dim=1), 1, generator=generator)[:, 0])
                known, read = known + embed(tokens[-1]), read + embed(tokens[-1])
            found.append(torch.stack(tokens, dim=1))
        return torch.stack(found, dim=1)


def draw_learned(
    statistics: pd.DataFrame, real: Patches, settings: Masks, rng: np.random.Generator
) -> tuple[NDArray[np.int64], pd.DataFrame]:
    """Train `InstanceList` on real patches, seconds on a CPU, and draw ``settings.n_patches`` lists from it.

    Returns
    -------
    parents : [n] real patches that lend their pixel size
    drawn : patch, instance, class, x, y, major_px, minor_px, angle_deg, forced (never), source (-1)
    """
    major, minor = (statistics[["major_px", "minor_px"]] + CONTOUR_PX).to_numpy().T
    azimuth = find_crystals(statistics, settings.crystal_fold)["azimuth_deg"]
    magnification = torch.from_numpy(pd.factorize(real.index["pixel_size_nm"].round(6))[0])
    low, high = np.log(major.min()) - 0.05, np.log(major.max()) + 0.05
    values = np.column_stack([  # numbers in [0, 1)
        (statistics["angle_deg"] - statistics["image"].map(azimuth)) / 180 % 1, (np.log(major) - low) / (high - low),
        np.log(major / minor) / np.log(LARGEST_ASPECT), statistics[["x", "y"]] / real.size,
    ])  # fmt: skip
    lists = [np.flatnonzero(statistics["patch"] == patch) for patch in range(len(real))]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**62)))
        model = InstanceList(len(real.classes), int(magnification.max()) + 1)
        _train(model, magnification, lists, statistics["class"].to_numpy(), values, settings.learned_steps, rng)
    parents = rng.integers(len(real), size=settings.n_patches)
    generator, longest = torch.Generator().manual_seed(int(rng.integers(2**62))), LONGEST * max(map(len, lists))
    found = model.sample(magnification[parents], longest, generator).numpy()
    patch, slot = np.nonzero((found[..., 0] > 0).cumprod(axis=1))
    chosen = found[patch, slot]  # [M, A]
    # Drawn uniformly within bins, so that nothing sits on a grid.
    angle, size, aspect, x, y = ((chosen[:, 1:] + rng.random((len(chosen), len(BINS)))) / BINS).T
    major = np.exp(low + size * (high - low))
    own = azimuths(real.index["image"].iloc[parents], azimuth, settings.crystal_fold, rng)[patch]
    angle = turned(angle * 180 + own, rng.choice(real.symmetries, len(parents))[patch])
    return parents, pd.DataFrame({
        "patch": patch, "instance": slot + 1, "class": chosen[:, 0], "x": x * real.size, "y": y * real.size,
        "major_px": major, "minor_px": major / LARGEST_ASPECT**aspect, "angle_deg": angle, "forced": False,
        "source": -1,
    })  # fmt: skip


def _train(
    model: InstanceList, magnification: Tensor, lists: list[NDArray[np.int64]], classes: NDArray[np.integer],
    values: NDArray[np.float64], steps: int, rng: np.random.Generator,
) -> None:  # fmt: skip
    """Fit to lists of rows of `classes` [M] and `values` [M, 5], in random order and a random symmetry each time."""
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
    for step in range(steps):
        patches = rng.integers(len(lists), size=BATCH)
        tokens = np.zeros((BATCH, 1 + max(len(lists[patch]) for patch in patches), 1 + len(BINS)), dtype=np.int64)
        for line, patch in enumerate(patches):
            rows = rng.permutation(lists[patch])
            angle, size, aspect, x, y = values[rows].T
            x, y = rng.permutation([v if rng.random() < 0.5 else 1 - v for v in (x, y)])  # a symmetry of the square
            bins = np.clip(np.column_stack([angle, size, aspect, x, y]) * BINS, 0, BINS - 1).astype(np.int64)
            tokens[line, : len(rows)] = np.column_stack([classes[rows], bins])
        set_learning_rate(optimizer, one_cycle(step, steps, PEAK_RATE))
        loss = model.loss(magnification[patches], torch.from_numpy(tokens))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
