"""What the heads of torchvision's Mask R-CNN read and compute, as matrix products: the same results, fewer copies.

Features come channels last, so that what a head reads lies side by side in memory. Compared with torchvision's own
modules in ``tests/test_detection_batched.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import _setup_scales


def wide(values: Tensor) -> Tensor:
    """Losses and boxes are computed in single precision at least, whatever the network's."""
    return values if values.dtype == torch.float64 else values.float()


def score_anchors(head: RPNHead, levels: list[Tensor]) -> tuple[list[int], Tensor, Tensor]:
    """Anchors per level, their logits [B, A] and corrections [B, A, 4], in the order of the anchors."""
    logits, deltas = ([wide(x.permute(0, 2, 3, 1).flatten(1)) for x in found] for found in head(levels))
    deltas = torch.cat(deltas, dim=1)
    return [level.shape[1] for level in logits], torch.cat(logits, dim=1), deltas.reshape(len(deltas), -1, 4)


def box_features(head: TwoMLPHead, pooled: Tensor) -> Tensor:
    """Vectors [N, F] of regions [N, C, s, s], which are read as they lie; the weights' columns are reordered."""
    if not pooled.is_contiguous(memory_format=torch.channels_last):
        return head(pooled)
    weight = head.fc6.weight.reshape(-1, *pooled.shape[1:]).permute(0, 2, 3, 1).flatten(1)
    return F.relu(head.fc7(F.relu(F.linear(pooled.permute(0, 2, 3, 1).flatten(1), weight, head.fc6.bias))))


def mask_logits(predictor: MaskRCNNPredictor, features: Tensor, labels: Tensor) -> Tensor:
    """Mask logits [N, 2m, 2m] of regions with features [N, C, m, m], for their class [N] alone.

    torchvision's predictor (a 2x2 up-convolution, ReLU, a 1x1 convolution to all classes) as two matrix products: no
    window of an up-convolution with stride 2 overlaps another.
    """
    up, classes = predictor.conv5_mask, predictor.mask_fcn_logits
    x = features.permute(0, 2, 3, 1)  # (N, m, m, C)
    n, side = len(x), x.shape[1]
    x = F.relu(x @ up.weight.permute(0, 2, 3, 1).flatten(1) + up.bias.repeat(4))  # (N, m, m, 2 * 2 * C')
    x = x.reshape(n, 4 * side * side, up.out_channels) @ classes.weight[labels, :, 0]  # (N, m * m * 2 * 2, 1)
    x = x.reshape(n, side, side, 2, 2) + classes.bias[labels][:, None, None, None, None]
    return wide(x.permute(0, 1, 3, 2, 4).reshape(n, 2 * side, 2 * side))


def pool(pooler: MultiScaleRoIAlign, features: dict[str, Tensor], boxes: Tensor, size: int) -> Tensor:
    """RoIAlign (He et al. 2017) of the same number of regions in every patch, each from its level of the pyramid.

    Parameters
    ----------
    pooler : torchvision's, whose names of levels, bins and samples are used
    features : levels [B, C, H, W] by name
    boxes : [B, R, 4] px, in single precision at least: half of it would round them to whole pixels
    size : side of the patches, px

    Returns
    -------
    [B * R, C, s, s]
    """
    levels = [features[name] for name in pooler.featmap_names]
    side, samples = pooler.output_size[0], pooler.sampling_ratio
    if len(levels) == 1:
        return _pool_level(levels[0], boxes, levels[0].shape[-1] / size, side, samples)
    return _pool_pyramid(pooler, levels, boxes, size, side, samples)


def _pool_level(features: Tensor, boxes: Tensor, scale: float, side: int, samples: int) -> Tensor:
    """Regions of one level as two matrix products, because RoIAlign is linear and separable.

    Its gradient is then two matrix products as well, where the library's kernel adds numbers one by one; on a GPU in
    no fixed order.
    """
    batch, channels, height, width = features.shape
    count = boxes.shape[1]
    flat = boxes.reshape(-1, 4)
    start = flat[:, :2] * scale
    step = (flat[:, 2:] * scale - start).clamp(min=1.0) / side
    along_x = _interpolation(start[:, 0], step[:, 0], side, width, samples)  # (B * R, s, W)
    along_y = _interpolation(start[:, 1], step[:, 1], side, height, samples).reshape(batch, count * side, height)
    # Channels last throughout: (B, R * s, H) @ (B, H, W * C), then (s, W) @ (W, C) for every row of bins.
    rows = along_y @ features.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
    rows = rows.reshape(batch * count * side, width, channels)
    along_x = along_x[:, None].expand(-1, side, -1, -1).reshape(-1, side, width)
    out = torch.bmm(along_x, rows)  # (B * R * s, s, C)
    return out.reshape(batch * count, side, side, channels).permute(0, 3, 1, 2)


def _interpolation(start: Tensor, step: Tensor, n_out: int, n_in: int, samples: int) -> Tensor:
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


def _pool_pyramid(
    pooler: MultiScaleRoIAlign, levels: Sequence[Tensor], boxes: Tensor, size: int, side: int, samples: int
) -> Tensor:
    """Regions of several levels by the library's kernel.

    Every level pools all regions, and each is taken from its own: torchvision looks for the regions of each level, and
    a GPU would be waited for every time.
    """
    if pooler.map_levels is None:
        shape = [(size, size)]
        pooler.scales, pooler.map_levels = _setup_scales(levels, shape, pooler.canonical_scale, pooler.canonical_level)
    flat = wide(boxes.reshape(-1, 4))
    owner = torch.arange(len(boxes), device=flat.device).repeat_interleave(boxes.shape[1])
    rois, which = torch.cat([owner[:, None].to(flat), flat], dim=1), pooler.map_levels([flat])
    pooled = flat.new_zeros((len(flat), levels[0].shape[1], side, side))
    for number, (level, scale) in enumerate(zip(levels, pooler.scales, strict=True)):
        here = roi_align(wide(level), rois, side, scale, samples)
        pooled = torch.where((which == number)[:, None, None, None], here, pooled)
    return pooled.to(levels[0].dtype)
