"""The heads of torchvision's Mask R-CNN as matrix products: the same weights and results, fewer copies.

Features come channels last, so that what a head reads lies side by side in memory. Compared with torchvision's own
modules in ``tests/test_detection_batched.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead


def wide(values: Tensor) -> Tensor:
    """Losses and boxes are computed in single precision at least, whatever the network's."""
    return values if values.dtype == torch.float64 else values.float()


def score_anchors(head: RPNHead, levels: list[Tensor]) -> tuple[list[int], Tensor, Tensor]:
    """Anchors per level, their logits [B, A] and corrections [B, A, 4].

    The two 1x1 convolutions are one matrix product, whose result lies in the order of the anchors already.
    """
    per_place = head.cls_logits.out_channels
    weight = torch.cat([head.cls_logits.weight, head.bbox_pred.weight]).flatten(1)
    bias = torch.cat([head.cls_logits.bias, head.bbox_pred.bias])
    found = [wide(F.linear(head.conv(x).permute(0, 2, 3, 1).flatten(1, 2), weight, bias)) for x in levels]
    logits = torch.cat([part[..., :per_place].flatten(1) for part in found], dim=1)
    deltas = torch.cat([part[..., per_place:].reshape(len(part), -1, 4) for part in found], dim=1)
    return [part.shape[1] * per_place for part in found], logits, deltas


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
