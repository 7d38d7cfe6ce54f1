"""A learned mask sampler: an autoregressive model of the list of instances of a patch.

The paper asks for better or learned mask generators. Here a small causal transformer reads the instances so far, in
random order and without positions, since a patch is a set, and predicts the next one attribute by attribute: class
(or that the list ends), angle, size, aspect, place. It is trained on the real training patches under the symmetries
of the square. Angles are read and predicted relative to the azimuth of the patch's crystal, which is given.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from companion.micrographs.patches import Patches
from companion.errors import CompanionError
from companion.geometry import SYMMETRIES, symmetry_angle
from companion.masks.spatial import find_crystals
from companion.masks.statistics import CONTOUR_PX, measure
from companion.config.profile import Masks
from companion.training import one_cycle, set_learning_rate

ATTRIBUTES = ("class", "angle", "size", "aspect", "x", "y")
BINS = {"angle": 18, "size": 16, "aspect": 10, "x": 24, "y": 24}
MARGIN = 0.25  # centres of cut ellipses lie at most so far outside, share of the side
LARGEST_ASPECT = 6.0
WIDTH, LAYERS, HEADS, DROPOUT = 64, 2, 4, 0.1
BATCH, PEAK_RATE, LONGEST = 64, 3e-3, 2.0  # LONGEST: a list ends at this multiple of the longest real one


@dataclass(frozen=True)
class Coding:
    """Continuous attributes in [0, 1) and back; bins are drawn from uniformly, so nothing sits on a grid.

    Attributes
    ----------
    size : side of a patch, px
    low, high : natural logarithm of the shortest and the longest major axis in px
    """

    size: int
    low: float
    high: float

    def encode(self, table: pd.DataFrame) -> NDArray[np.float64]:
        """[M, 5]: angle, size, aspect, x, y as numbers in [0, 1)."""
        place = (table[["x", "y"]].to_numpy() / self.size + MARGIN) / (1 + 2 * MARGIN)
        size = (np.log(table["major_px"]) - self.low) / (self.high - self.low)
        aspect = np.log(table["major_px"] / table["minor_px"]) / np.log(LARGEST_ASPECT)
        values = np.column_stack([table["angle_deg"] / 180, size, aspect, place])
        return np.clip(values, 0, 1 - 1e-6)

    def decode(self, values: NDArray[np.float64]) -> pd.DataFrame:
        """The inverse of `encode`."""
        angle, size, aspect, x, y = values.T
        major = np.exp(self.low + size * (self.high - self.low))
        place = [(v * (1 + 2 * MARGIN) - MARGIN) * self.size for v in (x, y)]
        return pd.DataFrame({"angle_deg": angle * 180, "major_px": major, "minor_px": major / LARGEST_ASPECT**aspect,
                             "x": place[0], "y": place[1]})  # fmt: skip


class InstanceList(nn.Module):
    """Causal transformer over instances; one head per attribute, each given the attributes before it.

    Parameters
    ----------
    classes : number of classes; class 0 ends the list
    magnifications : number of pixel sizes, a prefix that is given
    """

    def __init__(self, classes: int, magnifications: int) -> None:
        super().__init__()
        sizes = [classes + 1, *BINS.values()]
        self.embed = nn.ModuleList(nn.Embedding(n, WIDTH) for n in sizes)
        self.prefix = nn.Embedding(magnifications, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, DROPOUT, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, n)) for n in sizes
        )

    def context(self, tokens: Tensor, magnification: Tensor) -> Tensor:
        """Tokens [B, T, A] and magnification [B] -> what is known before each instance, [B, T + 1, WIDTH]."""
        instances = sum(embed(tokens[..., a]) for a, embed in enumerate(self.embed))
        sequence = torch.cat([self.prefix(magnification)[:, None], instances], dim=1)
        hidden = nn.Transformer.generate_square_subsequent_mask(sequence.shape[1])
        return self.body(sequence, mask=hidden, is_causal=True)

    def loss(self, tokens: Tensor, magnification: Tensor) -> Tensor:
        """Mean negative log-likelihood per patch, nats; class 0 pads the lists."""
        end = torch.zeros_like(tokens[:, :1])
        target = torch.cat([tokens, end], dim=1)  # [B, T + 1, A]
        known = self.context(tokens, magnification)
        present = target[..., 0] > 0
        first_end = (~present).cumsum(dim=1) == 1
        total = known.new_zeros(())
        for a, (head, embed) in enumerate(zip(self.heads, self.embed, strict=True)):
            counted = present | first_end if a == 0 else present
            logits = head(known[counted])
            total = total + functional.cross_entropy(logits, target[..., a][counted], reduction="sum")
            known = known + embed(target[..., a])
        return total / len(tokens)

    @torch.no_grad()
    def sample(self, magnification: Tensor, longest: int, generator: torch.Generator) -> Tensor:
        """Lists [B, longest, A] of instances, class 0 where there is none."""
        tokens = torch.zeros(len(magnification), longest, len(ATTRIBUTES), dtype=torch.long)
        active = torch.arange(len(magnification))
        for t in range(longest):
            known = self.context(tokens[active, :t], magnification[active])[:, -1]
            for a, (head, embed) in enumerate(zip(self.heads, self.embed, strict=True)):
                drawn = torch.multinomial(head(known).softmax(dim=1), 1, generator=generator)[:, 0]
                tokens[active, t, a] = drawn
                known = known + embed(drawn)
            active = active[tokens[active, t, 0] > 0]
            if len(active) == 0:
                break
        return tokens


def draw_learned(
    statistics: pd.DataFrame, real: Patches, masks: Masks, rng: np.random.Generator
) -> tuple[NDArray[np.int64], pd.DataFrame]:
    """Train `InstanceList` on real patches and draw ``masks.n_patches`` lists from it.

    Returns
    -------
    parents : [n] real patches that lend their pixel size
    drawn : patch, instance, class, x, y, major_px, minor_px, angle_deg, forced (never), source (-1)
    """
    if len(statistics) == 0:
        raise CompanionError("no instance in the training patches: there is nothing to learn masks from")
    table = measure(real, fit="arc")
    table[["major_px", "minor_px"]] += CONTOUR_PX
    azimuth = find_crystals(table, masks.crystal_fold).azimuth_deg
    table["angle_deg"] = (table["angle_deg"] - table["image"].map(azimuth)) % 180
    logs = np.log(table["major_px"])
    coding = Coding(real.size, float(logs.min()) - 0.05, float(logs.max()) + 0.05)
    magnification, _ = pd.factorize(real.index["pixel_size_nm"].round(6))
    lists = _Lists(table, coding, len(real), magnification)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**62)))
        model = InstanceList(len(real.classes), int(magnification.max()) + 1)
        _train(model, lists, masks.learned_steps, rng)
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    parents = rng.integers(len(real), size=masks.n_patches)
    longest = int(np.ceil(LONGEST * lists.number.max()))
    tokens = model.eval().sample(torch.from_numpy(magnification[parents]), longest, generator).numpy()
    patch, slot = np.nonzero(tokens[..., 0])
    chosen = tokens[patch, slot]  # [M, A]
    values = (chosen[:, 1:] + rng.random((len(chosen), len(BINS)))) / np.array(list(BINS.values()))
    drawn = coding.decode(values)
    own = np.array(real.index["image"].iloc[parents].map(azimuth), dtype=float)
    own = np.where(np.isnan(own), rng.uniform(0, 180, len(own)), own)
    angle, turned = (drawn["angle_deg"].to_numpy() + own[patch]) % 180, rng.choice(real.symmetries, len(own))[patch]
    for symmetry in real.symmetries:
        angle[turned == symmetry] = symmetry_angle(angle[turned == symmetry], symmetry) % 180
    return parents, drawn.assign(**{
        "patch": patch, "instance": slot + 1, "class": chosen[:, 0], "forced": False, "source": -1, "angle_deg": angle,
    })  # fmt: skip


class _Lists:
    """The instance lists of real patches, drawn in random order and with a random symmetry of the square."""

    def __init__(self, table: pd.DataFrame, coding: Coding, n_patches: int, magnification: NDArray) -> None:
        self.magnification = magnification
        self.number = np.bincount(table["patch"], minlength=n_patches)
        self.values = coding.encode(table)  # [M, 5]
        self.code = table["class"].to_numpy()
        order = np.argsort(table["patch"].to_numpy(), kind="stable")
        self.rows = np.split(order, np.cumsum(self.number)[:-1])

    def batch(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        chosen = rng.integers(len(self.rows), size=BATCH)
        tokens = np.zeros((BATCH, int(self.number[chosen].max()), len(ATTRIBUTES)), dtype=np.int64)
        bins = np.array(list(BINS.values()))
        for line, patch in enumerate(chosen):
            rows = rng.permutation(self.rows[patch])
            values = self.values[rows].copy()
            symmetry = int(rng.integers(SYMMETRIES))
            angle, x, y = values[:, 0], values[:, 3] - 0.5, values[:, 4] - 0.5
            if symmetry >= 4:
                angle, x = -angle, -x
            for _ in range(symmetry % 4):  # a counter-clockwise quarter turn takes (x, y) to (y, -x)
                x, y = y, -x
            # A turn moves the crystal along, so relative angles stay; a mirror changes their sign.
            values[:, 0], values[:, 3], values[:, 4] = angle % 1.0, x + 0.5, y + 0.5
            tokens[line, : len(rows), 0] = self.code[rows]
            tokens[line, : len(rows), 1:] = np.minimum(values * bins, bins - 1)
        return torch.from_numpy(tokens), torch.from_numpy(self.magnification[chosen])


def _train(model: InstanceList, lists: _Lists, steps: int, rng: np.random.Generator) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, weight_decay=0.01)
    for step in range(steps):
        set_learning_rate(optimizer, one_cycle(step, steps, PEAK_RATE))
        loss = model.loss(*lists.batch(rng))
        if not torch.isfinite(loss):
            raise CompanionError(f"learned masks: loss is not finite at step {step}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
