"""What goes into a detector and what comes out; the recipe of an arm says which patches make training batch number i.

Every arm takes equally many optimiser steps of the same batch size; arms differ in where the patches of a batch come
from (`companion.config.arms.ARMS`). What a step draws depends on the step and the seed alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from companion.config.arms import ARMS
from companion.config.sections import Detection
from companion.device import Device
from companion.errors import CompanionError
from companion.geometry import box_of, symmetry, symmetry_boxes
from companion.micrographs.patches import Patches
from companion.provenance import hash_arrays
from companion.seeds import Seeds

TRUTH = ["x1", "y1", "x2", "y2", "class", "instance"]


class Batch(NamedTuple):
    """Training patches with their truth, padded to equally many instances."""

    images: Tensor  # uint8 [B, S, S] grey levels (floating where they have been enlarged)
    instances: Tensor  # int32 [B, S, S] instance ids, 0 for none
    boxes: Tensor  # float32 [B, M, 4] x1, y1, x2, y2 in px, half-open; padding is zero
    labels: Tensor  # int64 [B, M] class codes 1..., 0 marks padding
    ids: Tensor  # int64 [B, M] which id of `instances` each box belongs to

    def enlarged(self, size: int) -> Batch:
        """The same batch at another size: instance ids by their nearest pixel, boxes scaled."""
        ids = F.interpolate(self.instances[:, None].double(), size=(size, size))[:, 0].to(self.instances.dtype)
        boxes = self.boxes * (size / self.images.shape[-1])
        return self._replace(images=enlarge(self.images, size), instances=ids, boxes=boxes)


class Detections(NamedTuple):
    """What was found in one patch, best first."""

    boxes: NDArray[np.float32]  # [N, 4] px
    scores: NDArray[np.float32]  # [N] in [0, 1]
    labels: NDArray[np.int64]  # [N] class codes 1...
    masks: NDArray[np.bool_]  # [N, S, S]


def enlarge(images: Tensor, size: int) -> Tensor:
    """Patches [B, S, S] at another size, float32 [B, size, size], interpolated linearly."""
    return F.interpolate(images[:, None].float(), size=(size, size), mode="bilinear", align_corners=False)[:, 0]


class Draw(NamedTuple):
    """Patches of one batch from one source: int64 [n] patch numbers, int64 [n] symmetry codes."""

    patches: NDArray[np.int64]
    symmetries: NDArray[np.int64]


class Example(NamedTuple):
    """A patch with its truth: uint8 [S, S] grey levels, int [S, S] instance ids, float64 [N, 6] columns `TRUTH`."""

    image: NDArray[np.uint8]
    instances: NDArray[np.integer]
    truth: NDArray[np.float64]


@dataclass(frozen=True)
class Recipe:
    """Which patches make each training batch, by source: labelled, generated, kept, fresh or pasted.

    "pasted" are the labelled patches again, onto which the defects of others are pasted.
    """

    sources: Mapping[str, Patches]  # in their order in a batch
    counts: Mapping[str, int]  # patches per batch from each
    seeds: Seeds  # of the draws; arms of one seed share them

    def draw(self, step: int) -> dict[str, Draw]:
        """Which patches make batch number `step`, in which symmetry, by source.

        Every source is gone through in a new random order each time round, so that all its patches are seen equally
        often; a patch comes in a random one of the symmetries that its source allows.
        """
        draws = {}
        for source, count in self.counts.items():
            patches = self.sources[source]
            rounds, places = np.divmod(np.arange(step * count, (step + 1) * count), len(patches))
            orders = {r: self.seeds.rng("order", source, int(r)).permutation(len(patches)) for r in np.unique(rounds)}
            numbers = [orders[r][place] for r, place in zip(rounds, places, strict=True)]
            codes = self.seeds.rng("symmetries", source, step).choice(patches.symmetries, size=count)
            draws[source] = Draw(np.array(numbers), codes)
        return draws

    def batch(self, step: int, device: Device) -> Batch:
        """Batch number `step`, sent to the device, which the host does not wait for."""
        examples = []
        for source, draw in self.draw(step).items():
            made = self._examples(source, draw)
            if source == "pasted":
                rng, count = self.seeds.rng("paste", step), len(made)
                codes = rng.choice(self.sources[source].symmetries, size=count)
                others = self._examples(source, Draw(rng.integers(len(self.sources[source]), size=count), codes))
                made = [copy_paste(target, other, rng) for target, other in zip(made, others, strict=True)]
            examples += made
        truths = np.zeros((len(examples), self.places, len(TRUTH)))
        for row, example in zip(truths, examples, strict=True):
            row[: len(example.truth)] = example.truth
        arrays = (
            np.stack([example.image for example in examples]),
            np.stack([example.instances for example in examples]).astype(np.int32),
            truths[..., :4].astype(np.float32), truths[..., 4].astype(np.int64), truths[..., 5].astype(np.int64),
        )  # fmt: skip
        return Batch(*(device.send(torch.from_numpy(array)) for array in arrays))

    def identity(self) -> dict[str, Any]:
        """What tells this recipe from others, for the identity of a training."""
        arrays = {s: (p.images, p.instances, p.table[["patch", *TRUTH]]) for s, p in self.sources.items()}
        hashes = {s: [hash_arrays(*map(np.asarray, a)), self.sources[s].symmetries] for s, a in arrays.items()}
        return {"sources": hashes, "counts": dict(self.counts), "seeds": [self.seeds.root, *self.seeds.names]}

    def _examples(self, source: str, draw: Draw) -> list[Example]:
        patches, examples = self.sources[source], []
        for number, code in zip(*draw, strict=True):
            truth = self._truths[source].get(number, np.zeros((0, len(TRUTH)))).copy()
            truth[:, :4] = symmetry_boxes(truth[:, :4], code, patches.size)
            image, instances = (symmetry(array[number], code) for array in (patches.images, patches.instances))
            examples.append(Example(image, instances, truth))
        return examples

    @cached_property
    def places(self) -> int:
        """Room for the truths of a patch, the same in every batch: one shape, which is compiled or recorded once."""
        most = {source: max(map(len, truths.values()), default=0) for source, truths in self._truths.items()}
        return max(1, *(most[source] * (2 if source == "pasted" else 1) for source in self.counts))

    @cached_property
    def _truths(self) -> dict[str, dict[int, NDArray[np.float64]]]:
        """Truth [N, 6] by source and patch; a box without an area (nothing visible) cannot be learnt from."""
        visible = {source: p.table.query("x2 > x1 and y2 > y1").groupby("patch") for source, p in self.sources.items()}
        return {s: {number: rows[TRUTH].to_numpy(float) for number, rows in v} for s, v in visible.items()}


def recipe_of(arm: str, labelled: Patches | None, other: Patches | None, settings: Detection, seeds: Seeds) -> Recipe:
    """The recipe of an arm of `ARMS`.

    `labelled` are patches of the N training micrographs, `other` is what the arm adds to them; either may be None where
    the arm does not need it. The arm is no part of the `seeds`' names: arms of one seed draw alike.

    Raises
    ------
    CompanionError
        No such arm, or there are no patches of a source that it needs.
    """
    second = ARMS[arm].other
    added = round(settings.batch_size * settings.generated_share) if second else 0
    added = added if ARMS[arm].labelled else settings.batch_size
    counts = {"labelled": settings.batch_size - added, str(second): added}
    counts = {source: count for source, count in counts.items() if count}
    given = {"labelled": labelled, str(second): labelled if second == "pasted" else other}
    for source in counts:
        if given[source] is None or len(given[source]) == 0 or given[source].images is None:
            why = "; lower faithfulness.least_confirmed, or train the judging detector longer" * (source == "kept")
            raise CompanionError(f"arm {arm} needs {source} patches with images, and there are none{why}")
    return Recipe({source: given[source] for source in counts}, counts, seeds)


def settings_of(arm: str, settings: Detection) -> Detection:
    """The settings that an arm is trained with: equal optimiser steps, but for arms of equal labelled passes."""
    share = settings.generated_share if ARMS[arm].equal_passes else 0.0
    if share == 1:
        raise CompanionError(f"{arm} sees as many labelled patches as EXP, and detection.generated_share 1 leaves none")
    return settings.model_copy(update={"steps": round(settings.steps / (1 - share))})


def copy_paste(target: Example, source: Example, rng: np.random.Generator) -> Example:
    """A random half of one patch's defects drawn over another (Ghiasi et al. 2021), without any image model.

    A defect brings its contrast, not its brightness: its pixels are shifted by the difference of the two patches'
    backgrounds (medians outside the defects). Boxes are those of what stays visible; a hidden defect has no truth.

    `rng` decides for each defect of the source, with even odds, whether it is pasted. Pasted ones have ids above those
    of the target.
    """
    image, instances = target.image.copy(), target.instances.astype(np.int32)
    shift = _background(target) - _background(source)
    pasted = source.truth[rng.random(len(source.truth)) < 0.5]
    pasted[:, 5] += instances.max(initial=0)
    for row in pasted:
        mask = source.instances == row[5] - target.instances.max(initial=0)
        image[mask] = np.clip(source.image[mask] + shift, 0, 255).round()
        instances[mask] = row[5]
    truth = np.concatenate([target.truth, pasted])
    truth[:, :4] = np.reshape([box_of(instances == number) for number in truth[:, 5]], (-1, 4))
    return Example(image, instances, truth[truth[:, 2] > truth[:, 0]])


def _background(example: Example) -> float:
    outside = example.image[example.instances == 0]
    return float(np.median(outside if outside.size else example.image))
