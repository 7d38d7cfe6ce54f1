"""Mask R-CNN behind one interface, whichever library carries it.

torchvision's model is the default. detectron2, the authors' choice, is an optional adapter. Patches have one
fixed size, so nothing inside the model looks at the size of an image, and weights come from a path or from
scratch: nothing is downloaded.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d, MultiScaleRoIAlign

from companion import paths
from companion.detection.anchors import generator
from companion.detection.batch import Batch, Detections, library_targets
from companion.errors import CompanionError
from companion.config.profile import Detection
from companion.training import load_state


@dataclass(frozen=True)
class Widths:
    """Channels of a small Mask R-CNN: of the backbone's stages, the pyramid, the box head and the mask head."""

    stages: tuple[int, int, int]
    pyramid: int
    box: int
    mask: int


SMALL = {"tiny": Widths((32, 64, 128), 64, 128, 32), "compact": Widths((64, 128, 256), 128, 256, 64)}


class Detector(Protocol):
    """One interface for every backend."""

    network: nn.Module

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """Scalar losses of a training batch, by name; their sum is what is minimised."""
        ...

    def detect(self, images: Tensor) -> list[Detections]:
        """Detections in patches, uint8 [B, S, S], one entry per patch."""
        ...


class TorchvisionDetector:
    """torchvision's Mask R-CNN (He et al. 2017) on fixed-size grey patches."""

    def __init__(self, network: MaskRCNN, channels: int) -> None:
        self.network = network
        self.channels = channels  # 1 for our own backbones, 3 for those made for colour images

    def _images(self, images: Tensor) -> list[Tensor]:
        grey = images.to(next(self.network.parameters())) / 255
        return list(grey[:, None].expand(-1, self.channels, -1, -1))  # each [C, S, S]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        self.network.train()
        return self.network(self._images(batch.images), library_targets(batch))

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[Detections]:
        self.network.eval()
        found = self.network(self._images(images))
        return [
            Detections(
                f["boxes"].float().cpu().numpy(),
                f["scores"].float().cpu().numpy(),
                f["labels"].cpu().numpy(),
                (f["masks"][:, 0] > 0.5).cpu().numpy(),
            )
            for f in found
        ]


class _FixedSize(GeneralizedRCNNTransform):
    """torchvision's normalisation without its resizing: a patch stays as large as it is."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, Any]:
        return image, target


def _transform(settings: Detection, mean: list[float], std: list[float]) -> GeneralizedRCNNTransform:
    if settings.resize_px is None:
        return _FixedSize(0, 0, mean, std)
    return GeneralizedRCNNTransform(settings.resize_px, settings.resize_px, mean, std)


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
        widths = [channels[0], *channels]
        self.stages = nn.ModuleList(
            nn.Sequential(_convolution(before, after, stride=2), _convolution(after, after, stride=1))
            for before, after in itertools.pairwise(widths)
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
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
    )


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
        load_weights(detector.network, paths.given(settings.weights))
    return detector


def build_untrained(settings: Detection, n_classes: int) -> Detector:
    """The detector that the settings name with random weights; pretrained ones decide only what is trainable."""
    if settings.backend == "detectron2":
        from companion.detection.detectron import Detectron2Detector

        return Detectron2Detector(settings, n_classes)
    network, channels = (_small if settings.network in SMALL else _r50)(settings, n_classes)
    if settings.backend == "torchvision":
        return TorchvisionDetector(network, channels)
    from companion.detection.batched import BatchedDetector

    return BatchedDetector(network, channels, settings.resize_px)


def _common(settings: Detection) -> dict[str, Any]:
    low, high = settings.rpn_iou
    return {
        "rpn_fg_iou_thresh": high, "rpn_bg_iou_thresh": low,
        "box_fg_iou_thresh": settings.roi_iou, "box_bg_iou_thresh": settings.roi_iou,
        "rpn_post_nms_top_n_train": settings.proposals, "rpn_post_nms_top_n_test": settings.proposals,
        "box_batch_size_per_image": settings.rois_per_image, "box_score_thresh": settings.score_floor,
        "box_detections_per_img": settings.max_detections,
    }  # fmt: skip


def _small(settings: Detection, n_classes: int) -> tuple[MaskRCNN, int]:
    widths = SMALL[settings.network]
    anchors = generator(settings)
    network = MaskRCNN(
        SmallBackbone(widths.stages, widths.pyramid),
        rpn_anchor_generator=anchors, rpn_head=RPNHead(widths.pyramid, anchors.num_anchors_per_location()[0]),
        rpn_pre_nms_top_n_train=3 * settings.proposals, rpn_pre_nms_top_n_test=3 * settings.proposals,
        rpn_batch_size_per_image=128,
        # Defects are small: every region is pooled from the finest level, as torchvision's rule would have it too.
        box_roi_pool=MultiScaleRoIAlign(["0"], 7, 2), mask_roi_pool=MultiScaleRoIAlign(["0"], 14, 2),
        box_head=TwoMLPHead(widths.pyramid * 7 * 7, widths.box),
        box_predictor=FastRCNNPredictor(widths.box, n_classes + 1),
        mask_head=MaskRCNNHeads(widths.pyramid, (widths.mask, widths.mask), 1),
        mask_predictor=MaskRCNNPredictor(widths.mask, widths.mask, n_classes + 1),
        **_common(settings),
    )  # fmt: skip
    network.transform = _transform(settings, [0.5], [0.25])
    return network, 1


def _r50(settings: Detection, n_classes: int) -> tuple[MaskRCNN, int]:
    # From scratch every layer and its normalisation is trained; pretrained, the normalisation, the stem and the
    # first stage stay as they are (FREEZE_AT 2 in the authors' configuration).
    backbone = resnet50(weights=None, norm_layer=FrozenBatchNorm2d if settings.weights else nn.BatchNorm2d)
    network = MaskRCNN(
        _resnet_fpn_extractor(backbone, trainable_layers=3 if settings.weights else 5),
        n_classes + 1,
        rpn_anchor_generator=generator(settings),
        rpn_pre_nms_top_n_train=2000, rpn_pre_nms_top_n_test=1000,
        **_common(settings),
    )  # fmt: skip
    network.transform = _transform(settings, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    return network, 3


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
    given = _read_weights(path)
    own = network.state_dict()
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
