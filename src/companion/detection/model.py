"""Mask R-CNN behind one interface, whichever library carries it.

torchvision's network is the default; detectron2, the authors' choice, is an optional adapter. Patches have one fixed
size, so nothing inside the model looks at the size of an image, and weights come from a path or from scratch: nothing
is downloaded.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork, FrozenBatchNorm2d, MultiScaleRoIAlign

from companion.config.sections import Detection
from companion.detection.batched import BatchedDetector
from companion.detection.data import Batch, Detections
from companion.errors import CompanionError

ASPECT_RATIOS = (0.5, 1.0, 2.0)  # height / width of anchors
STRIDES = {"tiny": (4, 8, 16), "r50-fpn": (4, 8, 16, 32, 64)}  # px per cell of each feature level


class Detector(Protocol):
    """One interface for both libraries; patches come at the side `resize_px` where it is not None."""

    network: nn.Module
    resize_px: int | None

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses of a training batch, by name; their sum is what is minimised."""

    def detect(self, images: Tensor, size: int) -> list[Detections]:
        """Detections in patches [B, S, S], one entry per patch, in px of patches of side `size`."""


def build(settings: Detection, n_classes: int) -> Detector:
    """The detector of the settings with random weights, for `n_classes` of defects (background not counted)."""
    if settings.backend == "detectron2":
        from companion.detection.detectron import Detectron2Detector  # is rarely installed

        return Detectron2Detector(settings, n_classes)
    return BatchedDetector((_tiny if settings.network == "tiny" else _r50)(settings, n_classes), settings.resize_px)


class SmallBackbone(nn.Module):
    """Stages of two 3x3 convolutions with BatchNorm at strides 4, 8, 16, under a feature pyramid."""

    def __init__(self, channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.stem = Conv2dNormActivation(1, channels[0], stride=2)
        self.stages = nn.ModuleList(
            nn.Sequential(Conv2dNormActivation(before, after, stride=2), Conv2dNormActivation(after, after))
            for before, after in itertools.pairwise([channels[0], *channels])
        )
        self.pyramid = FeaturePyramidNetwork(list(channels), out_channels)
        self.out_channels = out_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.stem(images)  # (B, 1, S, S) -> (B, C, S/2, S/2)
        levels = {}
        for number, stage in enumerate(self.stages):
            levels[str(number)] = x = stage(x)  # (B, C, S/4, S/4), then half of it each time
        return self.pyramid(levels)


def _tiny(settings: Detection, n_classes: int) -> MaskRCNN:
    return MaskRCNN(
        SmallBackbone((32, 64, 128), 64),
        rpn_head=RPNHead(64, anchor_generator(settings).num_anchors_per_location()[0]),
        rpn_pre_nms_top_n_train=3 * settings.proposals, rpn_pre_nms_top_n_test=3 * settings.proposals,
        rpn_batch_size_per_image=128,
        # Defects are small: every region is pooled from the finest level, as torchvision's rule would have it too.
        box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2), mask_roi_pool=MultiScaleRoIAlign(["0"], 14, 2),
        box_head=TwoMLPHead(64 * 7 * 7, 128), box_predictor=FastRCNNPredictor(128, n_classes + 1),
        mask_head=MaskRCNNHeads(64, (32, 32), 1), mask_predictor=MaskRCNNPredictor(32, 32, n_classes + 1),
        image_mean=[0.5], image_std=[0.25], **_common(settings),
    )  # fmt: skip


def _r50(settings: Detection, n_classes: int) -> MaskRCNN:
    # From scratch every layer and its normalisation is trained; pretrained, the normalisation, the stem and the
    # first stage stay as they are (FREEZE_AT 2 in the authors' configuration).
    backbone = resnet50(weights=None, norm_layer=FrozenBatchNorm2d if settings.weights else nn.BatchNorm2d)
    return MaskRCNN(
        _resnet_fpn_extractor(backbone, trainable_layers=3 if settings.weights else 5),
        n_classes + 1,
        **_common(settings),  # means and deviations of grey levels are torchvision's
    )


def _common(settings: Detection) -> dict[str, Any]:
    low, high = settings.rpn_iou
    return {
        "rpn_anchor_generator": anchor_generator(settings), "rpn_fg_iou_thresh": high, "rpn_bg_iou_thresh": low,
        "box_fg_iou_thresh": settings.roi_iou, "box_bg_iou_thresh": settings.roi_iou,
        "rpn_post_nms_top_n_train": settings.proposals, "rpn_post_nms_top_n_test": settings.proposals,
        "box_batch_size_per_image": settings.rois_per_image, "box_score_thresh": settings.score_floor,
        "box_detections_per_img": settings.max_detections,
    }  # fmt: skip


def sides_per_level(settings: Detection) -> tuple[tuple[int, ...], ...]:
    """Anchor sides of every feature level, px."""
    return tuple((size,) if isinstance(size, int) else tuple(size) for size in settings.anchor_sizes_px)


def anchor_generator(settings: Detection) -> AnchorGenerator:
    """torchvision's generator of the settings' anchors."""
    return AnchorGenerator(sides_per_level(settings), (ASPECT_RATIOS,) * len(settings.anchor_sizes_px))


def anchor_boxes(settings: Detection, size: int) -> Tensor:
    """Anchors of patches of side `size`, float32 [A, 4] px: boxes on a grid, from finest to coarsest level."""
    levels = [torch.empty((1, 1, -(-size // stride), -(-size // stride))) for stride in STRIDES[settings.network]]
    return anchor_generator(settings)(ImageList(torch.empty((1, 1, size, size)), [(size, size)]), levels)[0]


def load_weights(network: nn.Module, path: Path) -> list[str]:
    """Copy weights from a plain safetensors state_dict, and name the parameters that it did not fill.

    Heads made for another number of classes keep their fresh weights.
    """
    try:
        given, own = load_file(path), network.state_dict()
    except (OSError, SafetensorError) as error:
        raise CompanionError(f"{path} cannot be read as weights (safetensors): {error}") from None
    fits = {name: value for name, value in given.items() if name in own and value.shape == own[name].shape}
    if not any(name.startswith("backbone.") for name in fits):
        raise CompanionError(f"{path}: no tensor in it fits the backbone of this network; is it for another one?")
    network.load_state_dict(fits, strict=False)
    return sorted(own.keys() - fits.keys())
