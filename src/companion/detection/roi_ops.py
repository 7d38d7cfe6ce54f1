"""Boxes, regions and heads for a whole batch at once: what torchvision's Mask R-CNN computes, with fewer copies.

Every function works on padded tensors of fixed shape and needs neither a loop over images nor a look at a value on
the host. Features come channels last, so that what a head reads lies side by side in memory. Results are torchvision's
(see ``tests/test_detection_batched.py``).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection._utils import BalancedPositiveNegativeSampler, BoxCoder, Matcher
from torchvision.ops import MultiScaleRoIAlign, nms, roi_align
from torchvision.ops.poolers import LevelMapper

# On a GPU suppression follows chains, in which one box suppresses the next, up to this length. Proposals of untrained
# and trained networks have chains of up to 8.
ROUNDS = 32


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
    """Which truth each box stands for: index [B, N] of the one that overlaps it most; bool [B, N] positive, negative.

    `overlap` [B, M, N] is the IoU of truths and boxes, `real` [B, M] is False for padding. A box is background below
    the low threshold of torchvision's `matcher`, a defect from the high one, neither in between; with `every_truth`
    the boxes that overlap a truth most are defects, however little that is.
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
    """Choose R of the `positive` and `negative` [B, N] boxes per patch, at most a share of them positive.

    Those with the largest `keys`, float [B, N] in [0, 1), are chosen; R and the share are torchvision's `sampler`'s.

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


def encode(coder: BoxCoder, truths: Tensor, boxes: Tensor) -> Tensor:
    """Corrections [..., 4] that take `boxes` to `truths`; finite for padding, which the caller masks.

    `BoxCoder.encode_single` and `decode_single`, which copy constants to the device in every call.
    """
    (centre, side), (wanted, wanted_side) = _centre_and_side(boxes), _centre_and_side(truths)
    corrections = torch.cat([(wanted - centre) / side, (wanted_side / side).log()], dim=-1)
    weighted = [c * w for c, w in zip(corrections.unbind(-1), coder.weights, strict=True)]
    return torch.stack(weighted, dim=-1).nan_to_num(0.0, 0.0, 0.0)


def decode(coder: BoxCoder, corrections: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Boxes [..., K, 4] inside patches of side `size` px: `boxes` [..., 4] after corrections [..., K, 4]."""
    centre, side = _centre_and_side(boxes[..., None, :])
    shift = [c / w for c, w in zip(corrections.unbind(-1), coder.weights, strict=True)]
    centre = torch.stack(shift[:2], dim=-1) * side + centre
    half = torch.stack(shift[2:], dim=-1).clamp(max=coder.bbox_xform_clip).exp() * side * 0.5
    # Of a network that has diverged, until that is noticed: kernels may index memory by coordinates.
    return torch.cat([centre - half, centre + half], dim=-1).clamp(0, size).nan_to_num(nan=0.0)


def _centre_and_side(boxes: Tensor) -> tuple[Tensor, Tensor]:
    side = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * side, side


def suppress(boxes: Tensor, valid: Tensor, iou: float) -> Tensor:
    """Non-maximum suppression in each group: survivors, bool [G, N].

    Of `boxes` [G, N, 4], best first, those that are not `valid` [G, N] neither survive nor suppress.
    """
    if not fixed_shapes(boxes):
        kept, rank = torch.zeros_like(valid), torch.arange(boxes.shape[1], 0, -1).to(boxes)
        for group, good in enumerate(valid):
            places = good.nonzero()[:, 0]
            kept[group, places[nms(boxes[group, places], rank[places], iou)]] = True
        return kept
    above = (overlaps(boxes, boxes).triu(diagonal=1) > iou).to(torch.bfloat16)  # [i, j] with i better than j
    survivors = candidates = valid[:, None].to(above)  # (G, 1, N); only ever compared with 0, so half the bytes do
    for _ in range(ROUNDS):  # each settles one more link of every chain
        survivors = candidates * (torch.bmm(survivors, above) == 0)
    return survivors[:, 0] > 0


def wide(values: Tensor) -> Tensor:
    """Losses and boxes are computed in single precision at least, whatever the network's."""
    return values if values.dtype == torch.float64 else values.float()


def pool(pooler: MultiScaleRoIAlign, features: dict[str, Tensor], boxes: Tensor, size: int) -> Tensor:
    """RoIAlign (He et al. 2017) of equally many regions in every patch, each of its level: [B * R, C, s, s].

    `features` are levels [B, C, H, W] by name, finest first, of patches of side `size` px. `boxes` [B, R, 4] are in
    px, in single precision at least: half of it would round them to whole pixels.
    """
    levels = [features[name] for name in pooler.featmap_names]
    side, samples = pooler.output_size[0], pooler.sampling_ratio
    if len(levels) == 1:
        return _pool_level(levels[0], boxes, levels[0].shape[-1] / size, side, samples)
    # Every level pools all regions, and each is taken from its own: torchvision looks for the regions of each level,
    # and a GPU would be waited for every time.
    flat, scales = wide(boxes.reshape(-1, 4)), [level.shape[-1] / size for level in levels]
    owner = torch.arange(len(boxes), device=flat.device).repeat_interleave(boxes.shape[1])
    rois = torch.cat([owner[:, None].to(flat), flat], dim=1)
    finest, coarsest = (round(-math.log2(scale)) for scale in (scales[0], scales[-1]))
    which = LevelMapper(finest, coarsest, pooler.canonical_scale, pooler.canonical_level)([flat])
    pooled = flat.new_zeros((len(flat), levels[0].shape[1], side, side))
    for number, (level, scale) in enumerate(zip(levels, scales, strict=True)):
        here = roi_align(wide(level), rois, side, scale, samples)
        pooled = torch.where((which == number)[:, None, None, None], here, pooled)
    return pooled.to(levels[0].dtype)


def _pool_level(features: Tensor, boxes: Tensor, scale: float, side: int, samples: int) -> Tensor:
    """Regions of one level as two matrix products, because RoIAlign is linear and separable.

    Its gradient is then two matrix products as well, where the library's kernel adds numbers one by one; on a GPU in
    no fixed order.
    """
    (batch, channels, height, width), count = features.shape, boxes.shape[1]
    start, end = (boxes.reshape(-1, 2, 2) * scale).unbind(1)
    step = (end - start).clamp(min=1.0) / side
    along_x = _interpolation(start[:, 0], step[:, 0], side, width, samples)  # (B * R, s, W)
    along_y = _interpolation(start[:, 1], step[:, 1], side, height, samples).reshape(batch, count * side, height)
    # Channels last throughout: (B, R * s, H) @ (B, H, W * C), then (s, W) @ (W, C) for every row of bins.
    rows = along_y @ features.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
    rows = rows.reshape(batch * count * side, width, channels)
    along_x = along_x[:, None].expand(-1, side, -1, -1).reshape(-1, side, width)
    out = torch.bmm(along_x, rows)  # (B * R * s, s, C)
    return out.reshape(batch * count, side, side, channels).permute(0, 3, 1, 2)


def _interpolation(start: Tensor, step: Tensor, n_out: int, n_in: int, samples: int) -> Tensor:
    """One axis of RoIAlign as weights [R, n_out, n_in]: means of linear interpolations at evenly spaced places.

    Bins begin at `start` [R] and are `step` [R] wide, in cells of the feature map, with `samples` places in each.
    """
    inside = (torch.arange(n_out * samples, device=start.device) + 0.5) / samples
    places = start[:, None] + step[:, None] * inside  # (R, n_out * samples)
    within = (places >= -1) & (places <= n_in)
    return (_hats(places, n_in) * within[..., None]).reshape(len(start), n_out, samples, n_in).mean(dim=2)


def _hats(places: Tensor, n_in: int) -> Tensor:
    """Weights [R, n, n_in] of linear interpolation between `n_in` cells at `places` [R, n], cells' centres 0, 1, ..."""
    cells = torch.arange(n_in, device=places.device)
    return (1 - (places.clamp(0, n_in - 1)[..., None] - cells).abs_()).clamp_(min=0)


def paste(masks: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Mask probabilities [N, m, m] of `boxes` [N, 4] px drawn at their places, float [N, S, S], 0 outside.

    What torchvision's `paste_masks_in_image` draws one by one (boxes widened by a pixel of the mask, rounded towards
    zero), as two matrix products for all. In single precision: half of it would move the outline.
    """
    masks, n_in = F.pad(wide(masks), (1, 1, 1, 1)), masks.shape[-1] + 2
    centre, half = (boxes[:, 2:] + boxes[:, :2]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * 0.5 * (n_in / (n_in - 2))
    start, end = (centre - half).trunc(), (centre + half).trunc()  # [N, 2] px, both inside
    pixels = torch.arange(size, device=boxes.device)[:, None]
    places = ((pixels - start[:, None] + 0.5) * (n_in / (end - start + 1).clamp(min=1))[:, None]) - 0.5  # (N, S, 2)
    inside = (pixels >= start[:, None]) & (pixels <= end[:, None])
    along_x, along_y = (_hats(places[..., axis], n_in) * inside[..., axis, None] for axis in (0, 1))  # (N, S, m + 2)
    return along_y @ masks @ along_x.transpose(1, 2)
