"""Boxes and regions for a whole batch at once: matching, sampling, suppression.

Every function works on padded tensors of fixed shape and needs neither a loop over images nor a look at a value on
the host. Their results are torchvision's (see ``tests/test_detection_batched.py``).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, Matcher
from torchvision.ops import nms

# On a GPU suppression follows chains, in which one box suppresses the next, up to this length. Proposals of untrained
# and trained networks have chains of up to 8.
ROUNDS = 32
_LARGEST_GROWTH = math.log(1000 / 16)  # torchvision's cap on log(width ratio), so that exp stays finite


def fixed_shapes(values: Tensor) -> bool:
    """Whether shapes must not depend on values: on devices, which would be waited for, and in compiled code."""
    return values.device.type != "cpu" or torch.compiler.is_compiling()


def overlaps(truths: Tensor, boxes: Tensor) -> Tensor:
    """IoU of truths [B, M, 4] and boxes [B, N, 4] (or [1, N, 4], shared by all patches) -> [B, M, N].

    Twice as fast as torchvision's `box_iou` on the CPU, where it takes a twentieth of a training step.
    """
    t, b = truths[:, :, None], boxes[:, None]  # (B, M, 1, 4), (B, 1, N, 4)
    width = (torch.minimum(t[..., 2], b[..., 2]) - torch.maximum(t[..., 0], b[..., 0])).clamp_(min=0)
    height = (torch.minimum(t[..., 3], b[..., 3]) - torch.maximum(t[..., 1], b[..., 1])).clamp_(min=0)
    inter = width.mul_(height)
    areas = [(x[..., 2] - x[..., 0]) * (x[..., 3] - x[..., 1]) for x in (t, b)]
    return inter / (areas[0] + areas[1] - inter)


def match(overlap: Tensor, real: Tensor, matcher: Matcher, every_truth: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Which truth each box stands for.

    Parameters
    ----------
    overlap : [B, M, N] IoU of truths and boxes
    real : bool [B, M], False for padding
    matcher : torchvision's, for its thresholds: background below the low, defect from the high, neither in between
    every_truth : also give every truth the boxes that overlap it most, however little

    Returns
    -------
    index : int64 [B, N], the truth with the largest overlap
    positive, negative : bool [B, N]
    """
    overlap = torch.where(real[:, :, None], overlap, -1.0)
    value, index = overlap.max(dim=1)
    positive, negative = value >= matcher.high_threshold, value < matcher.low_threshold
    if every_truth:
        best = overlap.amax(dim=2, keepdim=True)
        closest = ((overlap == best) & real[:, :, None]).any(dim=1)
        positive, negative = positive | closest, negative & ~closest
    return index, positive, negative


def sample(
    positive: Tensor, negative: Tensor, keys: Tensor, sampler: BalancedPositiveNegativeSampler
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose R boxes per patch at random, at most a share of them positive.

    Parameters
    ----------
    positive, negative : bool [B, N]
    keys : float [B, N] in [0, 1), random; the largest are chosen
    sampler : torchvision's, for number and share

    Returns
    -------
    index : int64 [B, n] with n <= R, positives first, places that are left over last
    chosen : bool [B, n], False for places that are left over
    is_positive : bool [B, p], of the first p places, which are all that can be positive
    """
    count, size = sampler.batch_size_per_image, keys.shape[1]
    p_key, p_index = torch.where(positive, keys, -1.0).topk(min(int(count * sampler.positive_fraction), size), dim=1)
    q_key, q_index = torch.where(negative, keys, -1.0).topk(min(count, size), dim=1)
    n_positive = (p_key >= 0).sum(dim=1, keepdim=True)
    rank = torch.arange(q_key.shape[1], device=keys.device)
    chosen = torch.cat([p_key >= 0, (q_key >= 0) & (rank < count - n_positive)], dim=1)
    chosen, order = chosen.to(torch.uint8).sort(dim=1, descending=True, stable=True)
    index = torch.cat([p_index, q_index], dim=1).gather(1, order[:, :count])
    return index, chosen[:, :count].bool(), rank[: p_key.shape[1]] < n_positive


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
    # torchvision has one factor for x and y and one for sizes; a tensor of them would have to be sent to the device.
    return torch.cat([shift * weights[0], ratio * weights[2]], dim=-1)


def decode(corrections: Tensor, boxes: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Boxes [..., 4] after corrections [..., 4]: the inverse of `encode`."""
    size = boxes[..., 2:] - boxes[..., :2]
    centre = corrections[..., :2] / weights[0] * size + (boxes[..., :2] + 0.5 * size)
    half = 0.5 * torch.exp((corrections[..., 2:] / weights[2]).clamp(max=_LARGEST_GROWTH)) * size
    return torch.cat([centre - half, centre + half], dim=-1)


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
    if fixed_shapes(boxes):
        return _suppress_together(boxes, valid, iou)
    kept, rank = torch.zeros_like(valid), torch.arange(boxes.shape[1], 0, -1).to(boxes)
    for group, good in enumerate(valid):
        places = good.nonzero()[:, 0]
        kept[group, places[nms(boxes[group, places], rank[places], iou)]] = True
    return kept


def _suppress_together(boxes: Tensor, valid: Tensor, iou: float) -> Tensor:
    """`suppress` for a GPU, which would wait for the number of survivors of every group in turn."""
    above = (overlaps(boxes, boxes).triu(diagonal=1) > iou).to(torch.bfloat16)  # [i, j] with i better than j
    survivors = candidates = valid[:, None].to(above)  # (G, 1, N); only ever compared with 0, so half the bytes do
    for _ in range(ROUNDS):  # each settles one more link of every chain
        survivors = candidates * (torch.bmm(survivors, above) == 0)
    return survivors[:, 0] > 0
