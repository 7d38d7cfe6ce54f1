"""A learned mask sampler: an autoregressive model of the list of instances of a patch.

A small recurrent network reads the instances so far, in random order since a patch is a set, and predicts the next one
attribute by attribute: class (0 ends the list), angle relative to the crystal, axes, place.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import MLP

from companion.config.sections import Masks
from companion.geometry import symmetry_angle
from companion.masks.simulate import azimuths
from companion.masks.spatial import find_crystals
from companion.masks.statistics import CONTOUR_PX
from companion.micrographs.patches import Patches
from companion.training import one_cycle, set_learning_rate

BINS = np.array([18, 20, 20, 24, 24])  # of angle, axes, x, y
WIDTH, BATCH, PEAK_RATE = 128, 64, 3e-3


class InstanceList(nn.Module):
    """Recurrent network over instances, given the pixel size; a head per attribute knows the attributes before it."""

    def __init__(self, classes: int, magnifications: int) -> None:
        super().__init__()
        sizes = [classes + 1, *BINS.tolist()]
        self.embed = nn.ModuleList(nn.Embedding(n, WIDTH) for n in sizes)
        self.first, self.body = nn.Embedding(magnifications, WIDTH), nn.GRU(WIDTH, WIDTH, batch_first=True)
        self.heads = nn.ModuleList(MLP(WIDTH, [WIDTH, n], activation_layer=nn.GELU) for n in sizes)

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
    def sample(self, magnification: Tensor, longest: int) -> Tensor:
        """Lists [B, longest, A] of instances; what follows class 0 does not count."""
        read, state, found = self.first(magnification), None, []
        for _ in range(longest):
            known, state = self.body(read[:, None], state)
            known, read = known[:, 0], 0.0
            for head, embed in zip(self.heads, self.embed, strict=True):
                found.append(torch.multinomial(head(known).softmax(dim=1), 1)[:, 0])
                known, read = known + embed(found[-1]), read + embed(found[-1])
        return torch.stack(found, dim=1).unflatten(1, (longest, len(self.heads)))


def draw_learned(
    statistics: pd.DataFrame, real: Patches, settings: Masks, rng: np.random.Generator
) -> tuple[NDArray[np.int64], pd.DataFrame]:
    """Train `InstanceList` on real patches under the symmetries of the square, seconds on a CPU, and draw from it:
    parents [n], real patches that lend their pixel size and azimuth, and rows like `Simulation.drawn`."""
    azimuth = find_crystals(statistics, settings.crystal_fold)["azimuth_deg"]
    angle = (statistics["angle_deg"] - statistics["image"].map(azimuth)) / 180 % 1
    axes = np.log(statistics[["major_px", "minor_px"]].to_numpy() + CONTOUR_PX)
    low, span = axes.min() - 0.05, np.ptp(axes) + 0.1
    values = np.column_stack([angle, (axes - low) / span, statistics[["x", "y"]] / real.size])  # [M, 5], in [0, 1)
    magnification = torch.from_numpy(pd.factorize(real.index["pixel_size_nm"].round(6))[0])
    lists = [np.flatnonzero(statistics["patch"] == patch) for patch in range(len(real))]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**62)))
        model = InstanceList(len(real.classes), int(magnification.max()) + 1)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.01)
        for step in range(settings.learned_steps):
            patches, tokens = rng.integers(len(lists), size=BATCH), []
            for rows in (rng.permutation(lists[patch]) for patch in patches):
                place = rng.permutation(np.where(rng.random(2) < 0.5, values[rows, 3:], 1 - values[rows, 3:]), axis=1)
                bins = np.clip(np.column_stack([values[rows, :3], place]) * BINS, 0, BINS - 1).astype(np.int64)
                tokens.append(torch.from_numpy(np.column_stack([statistics["class"].to_numpy()[rows], bins])))
            padded = functional.pad(nn.utils.rnn.pad_sequence(tokens, batch_first=True), (0, 0, 0, 1))  # (B, T, A)
            set_learning_rate(optimizer, one_cycle(step, settings.learned_steps, PEAK_RATE))
            optimizer.zero_grad()
            model.loss(magnification[patches], padded).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        parents = rng.integers(len(real), size=settings.n_patches)
        found = model.sample(magnification[parents], 2 * max(map(len, lists))).numpy()
    patch, slot = np.nonzero((found[..., 0] > 0).cumprod(axis=1))
    drawn = found[patch, slot, 1:] + rng.random((len(patch), len(BINS)))  # [M, 5]: anywhere within its bins
    angle, axes, place = np.split(drawn / BINS, [1, 3], axis=1)
    minor, major = np.sort(np.exp(low + span * axes), axis=1).T
    angle = 180 * angle[:, 0] + azimuths(real.index["image"].iloc[parents], azimuth, settings.crystal_fold, rng)[patch]
    return parents, pd.DataFrame({
        "patch": patch, "instance": slot + 1, "class": found[patch, slot, 0], "x": place[:, 0] * real.size,
        "y": place[:, 1] * real.size, "major_px": major, "minor_px": minor, "forced": False, "source": -1,
        "angle_deg": symmetry_angle(angle, rng.choice(real.symmetries, len(parents))[patch]),
    })  # fmt: skip
