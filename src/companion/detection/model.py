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
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d, MultiScaleRoIAlign

from companion import layout
from companion.config.sections import Detection
from companion.detection.data import Batch, Detections
from companion.errors import CompanionError
from companion.weights import load_state

ASPECT_RATIOS = (0.5, 1.0, 2.0)  # height / width of anchors
STRIDES = {"tiny": (4, 8, 16), "r50-fpn": (4, 8, 16, 32, 64)}  # px per cell of each feature level


class Detector(Protocol):
    """One interface for every backend; patches come at the side `resize_px` where it is not None."""

    network: nn.Module
    resize_px: int | None

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses of a training batch, by name; their sum is what is minimised."""
        ...

    def detect(self, images: Tensor, size: int) -> list[Detections]:
        """Detections in patches [B, S, S], one entry per patch, in px of patches of side `size`."""
        ...


class SmallBackbone(nn.Module):
    """Stages of two 3x3 convolutions with BatchNorm at strides 4, 8, 16, under a feature pyramid.

    Parameters
    ----------
    channels : of the stages, finest first
    out_channels : of every level of the pyramid
    """

    def __init__(self, channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.stem = _convolution(1, channels[0], stride=2)
        self.stages = nn.ModuleList(
            nn.Sequential(_convolution(before, after, stride=2), _convolution(after, after, stride=1))
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


def _convolution(before: int, after: int, stride: int) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True))


class _FixedSize(GeneralizedRCNNTransform):
    """torchvision's normalisation without its resizing: a patch stays as large as it is."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, Any]:
        return image, target


def build(settings: Detection, n_classes: int) -> Detector:
    """The detector that the settings name, with fresh or pretrained weights.

    Parameters
    ----------
    settings : the profile's section
    n_classes : defect classes, background not counted

    Raises
    ------
    CompanionError
        The backend is not installed, or the weights file does not fit the network.
    """
    detector = build_untrained(settings, n_classes)
    if settings.weights:
        load_weights(detector.network, layout.given(settings.weights))
    return detector


def build_untrained(settings: Detection, n_classes: int) -> Detector:
    """The detector that the settings name with random weights; pretrained ones decide only what is trainable."""
    if settings.backend == "detectron2":
        from companion.detection.detectron import Detectron2Detector

        return Detectron2Detector(settings, n_classes)
    from companion.detection.batched import BatchedDetector

    return BatchedDetector((_tiny if settings.network == "tiny" else _r50)(settings, n_classes), settings)


def _tiny(settings: Detection, n_classes: int) -> MaskRCNN:
    network = MaskRCNN(
        SmallBackbone((32, 64, 128), 64),
        rpn_head=RPNHead(64, anchor_generator(settings).num_anchors_per_location()[0]),
        rpn_pre_nms_top_n_train=3 * settings.proposals, rpn_pre_nms_top_n_test=3 * settings.proposals,
        rpn_batch_size_per_image=128,
        # Defects are small: every region is pooled from the finest level, as torchvision's rule would have it too.
        box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2), mask_roi_pool=MultiScaleRoIAlign(["0"], 14, 2),
        box_head=TwoMLPHead(64 * 7 * 7, 128), box_predictor=FastRCNNPredictor(128, n_classes + 1),
        mask_head=MaskRCNNHeads(64, (32, 32), 1), mask_predictor=MaskRCNNPredictor(32, 32, n_classes + 1),
        **_common(settings),
    )  # fmt: skip
    network.transform = _FixedSize(0, 0, [0.5], [0.25])
    return network


def _r50(settings: Detection, n_classes: int) -> MaskRCNN:
    # From scratch every layer and its normalisation is trained; pretrained, the normalisation, the stem and the
    # first stage stay as they are (FREEZE_AT 2 in the authors' configuration).
    backbone = resnet50(weights=None, norm_layer=FrozenBatchNorm2d if settings.weights else nn.BatchNorm2d)
    network = MaskRCNN(
        _resnet_fpn_extractor(backbone, trainable_layers=3 if settings.weights else 5), n_classes + 1,
        rpn_pre_nms_top_n_train=2000, rpn_pre_nms_top_n_test=1000, **_common(settings),
    )  # fmt: skip
    network.transform = _FixedSize(0, 0, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return network


def _common(settings: Detection) -> dict[str, Any]:
    low, high = settings.rpn_iou
    return {
        "rpn_anchor_generator": anchor_generator(settings), "rpn_fg_iou_thresh": high, "rpn_bg_iou_thresh": low,
        "box_fg_iou_thresh": settings.roi_iou, "box_bg_iou_thresh": settings.roi_iou,
        "rpn_post_nms_top_n_train": settings.proposals, "rpn_post_nms_top_n_test": settings.proposals,
        "box_batch_size_per_image": settings.rois_per_image, "box_score_thresh": settings.score_floor,
        "box_detections_per_img": settings.max_detections,
    }  # fmt: skip


def sides_per_level(settings: Detection) -> list[list[int]]:
    """Anchor sides of every feature level, px.

    Raises
    ------
    CompanionError
        The settings have more or fewer than the network has feature levels.
    """
    sizes, levels = settings.anchor_sizes_px, len(STRIDES[settings.network])
    if len(sizes) != levels:
        raise CompanionError(
            f"detection.anchor_sizes_px {sizes}: network '{settings.network}' has {levels} feature levels "
            "and needs one anchor size for each"
        )
    return [[size] if isinstance(size, int) else size for size in sizes]


def anchor_generator(settings: Detection) -> AnchorGenerator:
    """torchvision's generator of the settings' anchors."""
    sides = tuple(map(tuple, sides_per_level(settings)))
    return AnchorGenerator(sides, (ASPECT_RATIOS,) * len(sides))


def anchor_boxes(settings: Detection, size: int) -> Tensor:
    """Anchors of patches of side `size`, float32 [A, 4] px: boxes on a grid, from finest to coarsest level."""
    levels = [torch.empty((1, 1, -(-size // stride), -(-size // stride))) for stride in STRIDES[settings.network]]
    return anchor_generator(settings)(ImageList(torch.empty((1, 1, size, size)), [(size, size)]), levels)[0]


def load_weights(network: nn.Module, path: Path) -> list[str]:
    """Copy weights from a file of this package or a plain safetensors state_dict.

    Heads made for another number of classes keep their fresh weights.

    Returns
    -------
    Names of the parameters that the file did not fill.

    Raises
    ------
    CompanionError
        The file is missing or broken, or holds no tensor that fits the backbone.
    """
    given, own = _read_weights(path), network.state_dict()
    fits = {name: value for name, value in given.items() if name in own and value.shape == own[name].shape}
    if not any(name.startswith("backbone.") for name in fits):
        raise CompanionError(f"{path}: no tensor in it fits the backbone of this network; is it for another one?")
    network.load_state_dict(fits, strict=False)
    return sorted(own.keys() - fits.keys())


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_state(path)[0]
    except CompanionError:
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (OSError, SafetensorError) as error:
            raise CompanionError(f"{path} cannot be read as weights (safetensors): {error}") from None
