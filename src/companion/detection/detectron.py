"""detectron2's Mask R-CNN, the authors' choice, behind the same interface; needs detectron2."""

from __future__ import annotations

import torch
from torch import Tensor

from companion.config.sections import Detection
from companion.detection.data import Batch, Detections
from companion.detection.model import ASPECT_RATIOS, sides_per_level
from companion.errors import CompanionError

_LOSSES = {"loss_rpn_cls": "loss_objectness", "loss_rpn_loc": "loss_rpn_box_reg", "loss_cls": "loss_classifier"}


class Detectron2Detector:
    """Mask R-CNN R50-FPN of detectron2 (Wu et al. 2019) on grey patches; trained whole unless it starts pretrained."""

    def __init__(self, settings: Detection, n_classes: int) -> None:
        try:
            from detectron2 import model_zoo
            from detectron2.modeling import build_model
        except ImportError:
            where = "it is not on PyPI; use the conda environment (environment.yml), or backend: torchvision"
            raise CompanionError(f"detection.backend: detectron2 is not installed: {where}") from None
        config = model_zoo.get_config("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x.yaml")
        config.MODEL.DEVICE, config.MODEL.WEIGHTS = "cpu", ""  # the caller moves and fills it
        if not settings.weights:
            config.MODEL.RESNETS.NORM, config.MODEL.BACKBONE.FREEZE_AT = "BN", 0
        config.MODEL.ANCHOR_GENERATOR.SIZES = [list(sides) for sides in sides_per_level(settings)]
        config.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [list(ASPECT_RATIOS)]
        config.MODEL.RPN.IOU_THRESHOLDS = list(settings.rpn_iou)
        config.MODEL.RPN.POST_NMS_TOPK_TRAIN = config.MODEL.RPN.POST_NMS_TOPK_TEST = settings.proposals
        config.MODEL.ROI_HEADS.IOU_THRESHOLDS = [settings.roi_iou]
        config.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = settings.rois_per_image
        config.MODEL.ROI_HEADS.NUM_CLASSES = n_classes
        config.MODEL.ROI_HEADS.SCORE_THRESH_TEST = settings.score_floor
        config.TEST.DETECTIONS_PER_IMAGE, config.INPUT.MASK_FORMAT = settings.max_detections, "bitmask"
        self.network, self.resize_px = build_model(config), settings.resize_px

    def _inputs(self, images: Tensor, size: int) -> list[dict]:
        device = next(self.network.parameters()).device
        colour = images.to(device)[:, None].expand(-1, 3, -1, -1).float()  # detectron2 takes 0...255
        return [{"image": image, "height": size, "width": size} for image in colour]

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        from detectron2.structures import BitMasks, Boxes, Instances
        from detectron2.utils.events import EventStorage

        self.network.train()
        inputs = self._inputs(batch.images, batch.images.shape[-1])
        for k, entry in enumerate(inputs):
            real = batch.labels[k] > 0
            truth = Instances(tuple(batch.images.shape[-2:]))
            truth.gt_boxes = Boxes(batch.boxes[k, real])
            truth.gt_classes = batch.labels[k, real] - 1  # detectron2 counts classes from 0
            truth.gt_masks = BitMasks(batch.instances[k] == batch.ids[k, real, None, None])  # (N, S, S)
            entry["instances"] = truth
        with EventStorage():
            found = self.network(inputs)
        return {_LOSSES.get(name, name): loss for name, loss in found.items()}  # as torchvision calls them

    @torch.no_grad()
    def detect(self, images: Tensor, size: int) -> list[Detections]:
        self.network.eval()
        found = (output["instances"].to("cpu") for output in self.network(self._inputs(images, size)))
        values = ((f.pred_boxes.tensor.float(), f.scores.float(), f.pred_classes + 1, f.pred_masks) for f in found)
        return [Detections(*(one.numpy() for one in of_patch)) for of_patch in values]
