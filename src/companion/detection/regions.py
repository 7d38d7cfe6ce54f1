"""Boxes and regions for a whole batch at once: matching, sampling, suppression, pooling, pasting.

Every function works on padded tensors of fixed shape and needs neither a loop over images nor a look at a value on
the host. Their results are torchvision's (see ``tests/test_detection_batched.py``).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import MultiScaleRoIAlign, nms, roi_align
from torchvision.ops.poolers import _setup_scales

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
    return torch.cat([shift, ratio], dim=-1) * shift.new_tensor(weights)


def decode(corrections: Tensor, boxes: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Boxes [..., 4] after corrections [..., 4]: the inverse of `encode`."""
    size = boxes[..., 2:] - boxes[..., :2]
    centre = boxes[..., :2] + 0.5 * size
    corrections = corrections / corrections.new_tensor(weights)
    centre = corrections[..., :2] * size + centre
    half = 0.5 * torch.exp(corrections[..., 2:].clamp(max=_LARGEST_GROWTH)) * size
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
    above = overlaps(boxes, boxes).triu(diagonal=1) > iou  # (G, N, N): [i, j] with i better than j
    above = (above & valid[:, :, None] & valid[:, None, :]).to(torch.float32)
    kept = valid
    # A box survives if no survivor suppresses it. Each round settles one more link of every chain of overlaps;
    # chains of more than 16 boxes, each suppressing the next, do not occur among a patch's proposals.
    for _ in range(16):
        kept = valid & (torch.bmm(kept[:, None].to(torch.float32), above)[:, 0] == 0)
    return kept


def interpolation(start: Tensor, step: Tensor, n_out: int, n_in: int, samples: int) -> Tensor:
    """One axis of RoIAlign as a matrix: means of linear interpolations at evenly spaced places.

    Parameters
    ----------
    start, step : [R] where the first bin begins and how wide a bin is, in cells of the feature map
    n_out, n_in : bins and cells
    samples : places per bin

    Returns
    -------
    [R, n_out, n_in] weights
    """
    inside = (torch.arange(n_out * samples, device=start.device) + 0.5) / samples
    places = start[:, None] + step[:, None] * inside  # (R, n_out * samples)
    within = (places >= -1) & (places <= n_in)
    cells = torch.arange(n_in, device=start.device)
    hats = (1 - (places.clamp(0, n_in - 1)[..., None] - cells).abs_()).clamp_(min=0)
    hats = hats * within[..., None]
    return hats.reshape(len(start), n_out, samples, n_in).mean(dim=2)


def pool(features: Tensor, boxes: Tensor, scale: float, size: int, samples: int = 2) -> Tensor:
    """RoIAlign (He et al. 2017) of the same number of regions in every patch.

    On the CPU as two matrix products, because RoIAlign is linear and separable: its gradient is then two matrix
    products as well, where torchvision's kernel adds numbers one by one.

    Parameters
    ----------
    features : [B, C, H, W]
    boxes : [B, R, 4] px
    scale : cells per px
    size : bins along a side of the result

    Returns
    -------
    [B * R, C, size, size]
    """
    batch, channels, height, width = features.shape
    regions = boxes.shape[1]
    flat = boxes.reshape(-1, 4)
    if features.device.type != "cpu":
        owner = torch.arange(batch, device=boxes.device).repeat_interleave(regions)
        rois = torch.cat([owner[:, None].to(flat), flat], dim=1)
        return roi_align(features, rois.to(features.dtype), size, scale, samples)
    start = flat[:, :2] * scale
    step = (flat[:, 2:] * scale - start).clamp(min=1.0) / size
    along_x = interpolation(start[:, 0], step[:, 0], size, width, samples)  # (B * R, size, W)
    along_y = interpolation(start[:, 1], step[:, 1], size, height, samples).reshape(batch, regions * size, height)
    # Channels last throughout: (B, R * size, H) @ (B, H, W * C), then (size, W) @ (W, C) for every row of bins.
    rows = along_y @ features.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
    rows = rows.reshape(batch * regions * size, width, channels)
    along_x = along_x[:, None].expand(-1, size, -1, -1).reshape(-1, size, width)
    out = torch.bmm(along_x, rows)  # (B * R * size, size, C)
    return out.reshape(batch * regions, size, size, channels).permute(0, 3, 1, 2)


def pool_levels(pooler: MultiScaleRoIAlign, features: dict[str, Tensor], boxes: Tensor, size: int) -> Tensor:
    """Features of regions [B, R, 4] of patches of side `size`, each from its level of the pyramid: [B * R, C, s, s]."""
    named = [features[name] for name in pooler.featmap_names]
    side, samples = pooler.output_size[0], pooler.sampling_ratio
    if len(named) == 1:
        return pool(named[0], boxes, named[0].shape[-1] / size, side, samples)
    # All levels side by side in one map, each with its last row and column once more, which is what RoIAlign
    # sees beyond the edge: one call pools every region from its own level.
    atlas, offsets, x = named[0].new_zeros((*named[0].shape[:2], size // 4 + 1, 2 * size // 4 + len(named))), [], 0
    for level in named:
        padded = F.pad(level, (0, 1, 0, 1), mode="replicate")
        atlas[..., : padded.shape[-2], x : x + padded.shape[-1]] = padded
        offsets.append(x)
        x += padded.shape[-1]
    if pooler.map_levels is None:
        pooler.scales, pooler.map_levels = _setup_scales(
            named, [(size, size)], pooler.canonical_scale, pooler.canonical_level
        )
    flat = boxes.reshape(-1, 4)
    which = pooler.map_levels([flat])
    moved = flat * flat.new_tensor(pooler.scales)[which, None]
    shift = flat.new_tensor(offsets)[which]
    # RoIAlign widens regions below one cell; done here, since the shift must not change it.
    moved = torch.cat([moved[:, :2], torch.maximum(moved[:, 2:], moved[:, :2] + 1)], dim=1)
    moved = moved + torch.stack([shift, torch.zeros_like(shift)] * 2, dim=1)
    owner = torch.arange(len(boxes), device=boxes.device).repeat_interleave(boxes.shape[1])
    return roi_align(atlas, torch.cat([owner[:, None].to(moved), moved], 1).to(atlas.dtype), side, 1.0, samples)


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
