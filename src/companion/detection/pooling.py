"""RoIAlign (He et al. 2017) of equally many regions in every patch, from one feature map or a pyramid of them.

Fixed shapes and no look at a value on the host, as in ``regions.py``; the results are torchvision's (see
``tests/test_detection_batched.py``). Coordinates stay in single precision at least, whatever the features'.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import _setup_scales


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
    if features.device.type == "cpu":
        return pool_by_products(features, boxes, scale, size, samples)
    return pool_by_kernel(features, boxes, scale, size, samples)


def pool_by_kernel(features: Tensor, boxes: Tensor, scale: float, size: int, samples: int = 2) -> Tensor:
    """`pool` by torchvision's kernel."""
    return _align(features, _with_owner(boxes.reshape(-1, 4), len(boxes)), scale, size, samples)


def pool_by_products(features: Tensor, boxes: Tensor, scale: float, size: int, samples: int = 2) -> Tensor:
    """`pool` as two matrix products."""
    batch, channels, height, width = features.shape
    count = boxes.shape[1]
    flat = boxes.reshape(-1, 4)
    start = flat[:, :2] * scale
    step = (flat[:, 2:] * scale - start).clamp(min=1.0) / size
    along_x = interpolation(start[:, 0], step[:, 0], size, width, samples)  # (B * R, size, W)
    along_y = interpolation(start[:, 1], step[:, 1], size, height, samples).reshape(batch, count * size, height)
    # Channels last throughout: (B, R * size, H) @ (B, H, W * C), then (size, W) @ (W, C) for every row of bins.
    rows = along_y @ features.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
    rows = rows.reshape(batch * count * size, width, channels)
    along_x = along_x[:, None].expand(-1, size, -1, -1).reshape(-1, size, width)
    out = torch.bmm(along_x, rows)  # (B * R * size, size, C)
    return out.reshape(batch * count, size, size, channels).permute(0, 3, 1, 2)


def _align(features: Tensor, rois: Tensor, scale: float, size: int, samples: int) -> Tensor:
    # The kernel wants one type for features and coordinates. Those in half precision would be rounded to whole pixels.
    kind = torch.promote_types(features.dtype, torch.float32)
    return roi_align(features.to(kind), rois.to(kind), size, scale, samples).to(features.dtype)


def _with_owner(flat: Tensor, batch: int) -> Tensor:
    """Boxes [B * R, 4] with the number of their patch before them: [B * R, 5]."""
    owner = torch.arange(batch, device=flat.device).repeat_interleave(len(flat) // batch)
    return torch.cat([owner[:, None].to(flat), flat], dim=1)


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
    scale, shift = (_of_level(which, values, flat) for values in (pooler.scales, offsets))
    moved = flat * scale[:, None]
    # RoIAlign widens regions below one cell; done here, since the shift must not change it.
    moved = torch.cat([moved[:, :2], torch.maximum(moved[:, 2:], moved[:, :2] + 1)], dim=1)
    moved = moved + torch.stack([shift, torch.zeros_like(shift)] * 2, dim=1)
    return _align(atlas, _with_owner(moved, len(boxes)), 1.0, side, samples)


def _of_level(which: Tensor, values: Sequence[float], like: Tensor) -> Tensor:
    """The value of each region's level, given as `which` [R]; a tensor of the values would wait for the device."""
    found = torch.full_like(which, values[0], dtype=like.dtype)
    for level, value in enumerate(values[1:], start=1):
        found = torch.where(which == level, value, found)
    return found
