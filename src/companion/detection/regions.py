"""Boxes and regions for a whole batch at once: matching, sampling, suppression, pasting.

Every function works on padded tensors of fixed shape and needs neither a loop over images nor a look at a value on
the host. Their results are torchvision's (see ``tests/test_detection_batched.py``).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import nms

# Suppression goes through blocks of this many boxes, best first, exactly, and through chains of suppression inside a
# block up to this length. Proposals of untrained and trained networks have chains of up to 8 in whole patches, 2,000
# boxes whose scores rise along an axis of up to 12 in a block (68 in all).
BLOCK, ROUNDS = 256, 16
_LARGEST_GROWTH = math.log(1000 / 16)  # torchvision's cap on log(width ratio), so that exp stays finite


def fixed_shapes(values: Tensor) -> bool:
    """Whether shapes must not depend on values: on devices, which would be waited for, and in compiled code."""
    return values.device.type != "cpu" or torch.compiler.is_compiling()


def overlaps(truths: Tensor, boxes: Tensor) -> Tensor:
    """IoU of truths [B, M, 4] and boxes [B, N, 4] (or [1, N, 4], shared by all patches) -> [B, M, N]."""
    t, b = truths[:, :, None], boxes[:, None]  # (B, M, 1, 4), (B, 1, N, 4)
    width = (torch.minimum(t[..., 2], b[..., 2]) - torch.maximum(t[..., 0], b[..., 0])).clamp_(min=0)
    height = (torch.minimum(t[..., 3], b[..., 3]) - torch.maximum(t[..., 1], b[..., 1])).clamp_(min=0)
    inter = width.mul_(height)
    return inter / (_area(t) + _area(b) - inter)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def match(
    overlap: Tensor, real: Tensor, low: float, high: float, every_truth: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Which truth each box stands for.

    Parameters
    ----------
    overlap : [B, M, N] IoU of truths and boxes
    real : bool [B, M], False for padding
    low, high : background below `low`, defect from `high` on, neither in between
    every_truth : also give every truth the boxes that overlap it most, however little

    Returns
    -------
    index : int64 [B, N], the truth with the largest overlap
    positive, negative : bool [B, N]
    """
    overlap = torch.where(real[:, :, None], overlap, -1.0)
    value, index = overlap.max(dim=1)
    positive, negative = value >= high, value < low
    if every_truth:
        best = overlap.amax(dim=2, keepdim=True)
        closest = ((overlap == best) & real[:, :, None]).any(dim=1)
        positive, negative = positive | closest, negative & ~closest
    return index, positive, negative


def sample(positive: Tensor, negative: Tensor, keys: Tensor, count: int, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Choose `count` boxes per patch at random, at most `share` of them positive.

    Parameters
    ----------
    positive, negative : bool [B, N]
    keys : float [B, N] in [0, 1), random; the largest are chosen

    Returns
    -------
    index : int64 [B, n] with n <= `count`, positives first, places that are left over last
    chosen : bool [B, n], False for places that are left over
    is_positive : bool [B, n]
    """
    size = keys.shape[1]
    p_key, p_index = torch.where(positive, keys, -1.0).topk(min(int(count * share), size), dim=1)
    q_key, q_index = torch.where(negative, keys, -1.0).topk(min(count, size), dim=1)
    p_chosen = p_key >= 0
    n_positive = p_chosen.sum(dim=1, keepdim=True)
    rank = torch.arange(q_key.shape[1], device=keys.device)
    chosen = torch.cat([p_chosen, (q_key >= 0) & (rank < count - n_positive)], dim=1)
    chosen, order = chosen.to(torch.uint8).sort(dim=1, descending=True, stable=True)
    chosen, order = chosen[:, :count].bool(), order[:, :count]
    index = torch.cat([p_index, q_index], dim=1).gather(1, order)
    return index, chosen, torch.arange(order.shape[1], device=keys.device) < n_positive


def pick(values: Tensor, index: Tensor) -> Tensor:
    """``values[b, index[b, n]]``: [B, N, ...] and int64 [B, n] -> [B, n, ...]."""
    return values[torch.arange(len(values), device=values.device)[:, None], index]


def encode(truths: Tensor, boxes: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Corrections [..., 4] that take `boxes` to `truths` (Girshick 2015): shifts by size, logarithms of ratios."""
    size, wanted = boxes[..., 2:] - boxes[..., :2], truths[..., 2:] - truths[..., :2]
    shift = (truths[..., :2] + 0.5 * wanted - boxes[..., :2] - 0.5 * size) / size
    # Padding has no size; what it gives is masked by the caller, but must be finite.
    ratio = torch.log(torch.where(wanted > 0, wanted, 1.0) / torch.where(size > 0, size, 1.0))
    shift = torch.where(size > 0, shift, 0.0)
    return torch.cat([_scaled(shift, weights[:2]), _scaled(ratio, weights[2:])], dim=-1)


def decode(corrections: Tensor, boxes: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Boxes [..., 4] after corrections [..., 4]: the inverse of `encode`."""
    size = boxes[..., 2:] - boxes[..., :2]
    centre = boxes[..., :2] + 0.5 * size
    centre = _scaled(corrections[..., :2], weights[:2], operator.truediv) * size + centre
    growth = _scaled(corrections[..., 2:], weights[2:], operator.truediv)
    half = 0.5 * torch.exp(growth.clamp(max=_LARGEST_GROWTH)) * size
    return torch.cat([centre - half, centre + half], dim=-1)


def _scaled(pairs: Tensor, factors: Sequence[float], apply: Callable[..., Tensor] = operator.mul) -> Tensor:
    # Factors as Python numbers: a tensor of them, made in every step, would make the host wait for the device.
    if factors[0] == factors[1]:
        return apply(pairs, factors[0])
    return torch.stack([apply(pairs[..., axis], factors[axis]) for axis in (0, 1)], dim=-1)


def suppress(boxes: Tensor, valid: Tensor, iou: float) -> Tensor:
    """Non-maximum suppression in each group.

    Parameters
    ----------
    boxes : [G, N, 4], best first in every group
    valid : bool [G, N]; others neither survive nor suppress

    Returns
    -------
    bool [G, N]: survivors
    """
    # torchvision's kernel skips what is already suppressed, which a table of all pairs cannot.
    return (_suppress_together if fixed_shapes(boxes) else _suppress_in_turn)(boxes, valid, iou)


def _suppress_in_turn(boxes: Tensor, valid: Tensor, iou: float) -> Tensor:
    rank = torch.arange(boxes.shape[1], 0, -1).to(boxes)
    kept = torch.zeros_like(valid)
    for group, (candidates, good) in enumerate(zip(boxes, valid, strict=True)):
        places = good.nonzero()[:, 0]
        kept[group, places[nms(candidates[places], rank[places], iou)]] = True
    return kept


def _suppress_together(boxes: Tensor, valid: Tensor, iou: float) -> Tensor:
    # Marks are only multiplied and compared with 0, so half the bytes do, where the bytes are what takes the time.
    kind = torch.float32 if boxes.device.type == "cpu" else torch.bfloat16
    chosen = valid[:, None].to(kind)  # (G, 1, N)
    kept = chosen[..., :0]
    for start in range(0, boxes.shape[1], BLOCK):
        block, candidates = boxes[:, start : start + BLOCK], chosen[..., start : start + BLOCK]
        if start:
            above = (overlaps(boxes[:, :start], block) > iou).to(kind)  # (G, start, n): [i, j] with i better than j
            candidates = candidates * (torch.bmm(kept, above) == 0)
        above = (overlaps(block, block).triu(diagonal=1) > iou).to(kind)
        # A box survives if no survivor suppresses it. Each round settles one more link of every chain of boxes in
        # which one suppresses the next.
        survivors = candidates
        for _ in range(min(ROUNDS, block.shape[1] - 1)):
            survivors = candidates * (torch.bmm(survivors, above) == 0)
        kept = torch.cat([kept, survivors], dim=2)
    return kept[:, 0] > 0


def paste(masks: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Mask probabilities of regions, drawn into their patches.

    Parameters
    ----------
    masks : [N, m, m] probabilities
    boxes : [N, 4] px
    size : side of a patch, px

    Returns
    -------
    [N, S, S] probabilities, 0 outside the boxes
    """
    padded = F.pad(masks, (1, 1, 1, 1))  # a border of zeros, so that outlines end inside the box
    cells = padded.shape[-1]
    centre, half = (boxes[:, :2] + boxes[:, 2:]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * 0.5
    half = half * (cells / masks.shape[-1])
    low, high = (centre - half).to(torch.int64), (centre + half).to(torch.int64)
    pixels = torch.arange(size, device=boxes.device)
    weights = []
    for axis in (1, 0):
        first, last = low[:, axis, None], high[:, axis, None]
        places = ((pixels - first + 0.5) * (cells / (last - first + 1).clamp(min=1)) - 0.5).clamp(0, cells - 1)
        hats = (1 - (places[..., None] - torch.arange(cells, device=boxes.device)).abs()).clamp(min=0)
        weights.append(hats * ((pixels >= first) & (pixels <= last))[..., None])  # (N, S, cells)
    return weights[0] @ padded @ weights[1].transpose(1, 2)
