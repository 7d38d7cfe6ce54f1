"""torchvision's Mask R-CNN without its loops over images: the same network, losses and detections, faster.

Patches have one size, so anchors are the same for all, truths are padded to a rectangle, and every patch gives the
same number of proposals and regions with a mark for those that are left over. Parameters and their names are
torchvision's: weights move between the two freely.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import roi_align

from companion.detection import heads, pooling, regions
from companion.detection.batch import Batch, Detections, enlarge, enlarge_batch, pad_truths

_BETA = 1 / 9  # of the smooth L1 losses, as in torchvision


class BatchedDetector:
    """Mask R-CNN for batches of equal patches.

    Parameters
    ----------
    network : torchvision's network; its modules and thresholds are used as they are
    channels : of the images that it takes
    resize_px : side at which patches are seen; None: as large as they are
    """

    def __init__(self, network: MaskRCNN, channels: int, resize_px: int | None = None) -> None:
        self.network = network.to(memory_format=torch.channels_last)  # what convolutions read fastest
        self.channels = channels
        self.resize_px = resize_px
        self._least_truths = 0
        self._anchors: dict[tuple, Tensor] = {}
        self._normalisation: dict[tuple, tuple[Tensor, ...]] = {}

    def compile(self) -> None:
        """Have ``torch.compile`` translate training and detection at their first call; shapes are then fixed."""
        self._least_truths = 16
        self._losses = torch.compile(self._losses, dynamic=False)
        self._find = torch.compile(self._find, dynamic=False)

    def random_keys(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Numbers in [0, 1) that decide which anchors and regions are sampled, from the global generator."""
        return torch.rand(shape, device=device)

    # --- shared by training and detection -------------------------------------------------------------------

    def _images(self, images: Tensor) -> Tensor:
        transform, like = self.network.transform, next(self.network.parameters())
        grey = images.to(like.device, like.dtype, non_blocking=True)[:, None].expand(-1, self.channels, -1, -1) / 255
        key = (grey.device, grey.dtype)
        if key not in self._normalisation:  # made once: making a tensor of numbers waits for the device
            self._normalisation[key] = tuple(
                grey.new_tensor(v)[:, None, None] for v in (transform.image_mean, transform.image_std)
            )
        mean, std = self._normalisation[key]
        return (grey - mean) / std  # (B, channels, S, S)

    @torch.no_grad()
    def _anchors_of(self, images: Tensor) -> Tensor:
        """Anchors [A, 4] of normalised images, from finest to coarsest level; made once for every size."""
        key = (images.shape[-2:], images.device, images.dtype)
        if key not in self._anchors:
            training = self.network.training
            levels = list(self.network.eval().backbone(images[:1]).values())
            listed = ImageList(images[:1], [tuple(images.shape[-2:])])
            self._anchors[key] = self.network.rpn.anchor_generator(listed, [heads.wide(level) for level in levels])[0]
            self.network.train(training)
        return self._anchors[key]

    def _propose(
        self, counts: list[int], logits: Tensor, deltas: Tensor, anchors: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        """Best boxes of each patch: [B, P, 4] and which of them are real, bool [B, P]."""
        rpn = self.network.rpn
        coder = rpn.box_coder
        boxes, scores, valid, start = [], [], [], 0
        for n in counts:
            top = min(rpn.pre_nms_top_n(), n)
            value, index = logits[:, start : start + n].topk(top, dim=1)
            index = index + start
            box = regions.decode(regions.pick(deltas, index), anchors[index], coder.weights).clamp(0, size)
            # Of a network that has diverged, until that is noticed: kernels may index memory by coordinates.
            box = box.nan_to_num(nan=0.0)
            good = ((box[..., 2:] - box[..., :2]) >= rpn.min_size).all(dim=-1)
            value = torch.sigmoid(value)
            good = regions.suppress(box, good & (value >= rpn.score_thresh), rpn.nms_thresh)
            boxes.append(box), scores.append(value), valid.append(good)
            start += n
        scores = torch.where(torch.cat(valid, 1), torch.cat(scores, 1), -1.0)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        order = order[:, : rpn.post_nms_top_n()]
        return regions.pick(torch.cat(boxes, 1), order), scores[:, : order.shape[1]] >= 0

    # --- training -------------------------------------------------------------------------------------------

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The five losses of Mask R-CNN, under torchvision's names."""
        self.network.train()
        if self.resize_px:
            batch = enlarge_batch(batch, self.resize_px, next(self.network.parameters()).dtype)
        if self._least_truths:
            batch = pad_truths(batch, self._least_truths)
        images = self._images(batch.images)
        return self._losses(images, batch, self._anchors_of(images))

    def _losses(self, images: Tensor, batch: Batch, anchors: Tensor) -> dict[str, Tensor]:
        features = self.network.backbone(images)
        counts, logits, deltas = heads.score_anchors(self.network.rpn.head, list(features.values()))
        with torch.no_grad():
            proposals, valid = self._propose(counts, logits, deltas, anchors, images.shape[-1])
        return {
            **self._rpn_losses(batch, logits, deltas, anchors), **self._region_losses(batch, features, proposals, valid)
        }  # fmt: skip

    def _rpn_losses(self, batch: Batch, logits: Tensor, deltas: Tensor, anchors: Tensor) -> dict[str, Tensor]:
        rpn, real = self.network.rpn, batch.labels > 0
        with torch.no_grad():
            overlap = regions.overlaps(batch.boxes, anchors[None])
            matcher, sampler = rpn.proposal_matcher, rpn.fg_bg_sampler
            truth, positive, negative = regions.match(
                overlap, real, matcher.low_threshold, matcher.high_threshold, every_truth=True
            )
            keys = self.random_keys(logits.shape, logits.device)
            index, chosen, is_positive = regions.sample(
                positive, negative, keys, sampler.batch_size_per_image, sampler.positive_fraction
            )
            places = _positive_places(sampler, index)
            near = index[:, :places]
            wanted = regions.pick(batch.boxes, regions.pick(truth, near))
            wanted = regions.encode(wanted, anchors[near], rpn.box_coder.weights)
        count = chosen.sum().clamp(min=1)
        loss = F.binary_cross_entropy_with_logits(regions.pick(logits, index), is_positive.to(logits), reduction="none")
        box = F.smooth_l1_loss(regions.pick(deltas, near), wanted, beta=_BETA, reduction="none")
        return {
            "loss_objectness": _sum_where(loss, chosen) / count,
            "loss_rpn_box_reg": _sum_where(box, is_positive[:, :places, None]) / count,
        }

    def _region_losses(
        self, batch: Batch, features: dict[str, Tensor], proposals: Tensor, valid: Tensor
    ) -> dict[str, Tensor]:
        roi, real, size = self.network.roi_heads, batch.labels > 0, batch.images.shape[-1]
        with torch.no_grad():
            # Truths are proposals too, so that the heads see defects before the proposals are any good.
            boxes = torch.cat([proposals, batch.boxes], dim=1)
            valid = torch.cat([valid, real], dim=1)
            matcher, sampler = roi.proposal_matcher, roi.fg_bg_sampler
            truth, positive, negative = regions.match(
                regions.overlaps(batch.boxes, boxes), real, matcher.low_threshold, matcher.high_threshold
            )
            keys = self.random_keys(valid.shape, valid.device)
            index, chosen, is_positive = regions.sample(
                positive & valid, negative & valid, keys, sampler.batch_size_per_image, sampler.positive_fraction
            )
            boxes, truth = regions.pick(boxes, index), regions.pick(truth, index)  # (B, R, 4), (B, R)
            labels = torch.where(is_positive, regions.pick(batch.labels, truth), 0)
            places = _positive_places(sampler, index)
            wanted = regions.pick(batch.boxes, truth[:, :places])
            wanted = regions.encode(wanted, boxes[:, :places], roi.box_coder.weights)
        pooled = pooling.pool_levels(roi.box_roi_pool, features, boxes, size)
        scores, corrections = roi.box_predictor(heads.box_features(roi.box_head, pooled))
        corrections = heads.wide(corrections).reshape(*index.shape, -1, 4)[:, :places]  # (B, P, K + 1, 4)
        of_class = labels[:, :places, None, None].expand(-1, -1, 1, 4)
        box = F.smooth_l1_loss(corrections.gather(2, of_class)[:, :, 0], wanted, beta=_BETA, reduction="none")
        classifier = F.cross_entropy(heads.wide(scores), labels.flatten(), reduction="none")
        count = chosen.sum().clamp(min=1)
        return {
            "loss_classifier": _sum_where(classifier, chosen.flatten()) / count,
            "loss_box_reg": _sum_where(box, is_positive[:, :places, None]) / count,
            "loss_mask": self._mask_loss(
                batch, features, boxes[:, :places], truth[:, :places], labels[:, :places], is_positive[:, :places]
            ),
        }

    def _mask_loss(
        self, batch: Batch, features: dict[str, Tensor], boxes: Tensor, truth: Tensor, labels: Tensor, valid: Tensor
    ) -> Tensor:
        roi, size = self.network.roi_heads, batch.images.shape[-1]
        # Places that are left over cost nothing where shapes may depend on values.
        keep = slice(None) if regions.fixed_shapes(boxes) else valid.flatten().nonzero()[:, 0]
        pooled = _rows(pooling.pool_levels(roi.mask_roi_pool, features, boxes, size), keep)
        logits = heads.mask_logits(roi.mask_predictor, roi.mask_head(pooled), labels.flatten()[keep])
        with torch.no_grad():
            masks = (batch.instances[:, None] == batch.ids[:, :, None, None]).to(boxes)  # (B, M, S, S)
            owner = torch.arange(len(masks), device=truth.device)[:, None] * masks.shape[1] + truth
            rois = torch.cat([owner.reshape(-1, 1).to(boxes), boxes.reshape(-1, 4)], dim=1)[keep]
            wanted = roi_align(masks.flatten(0, 1)[:, None], rois, logits.shape[-1], 1.0)[:, 0]
        loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=(1, 2))
        return _sum_where(loss, valid.flatten()[keep]) / valid.sum().clamp(min=1)

    # --- detection ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def detect(self, images: Tensor) -> list[Detections]:
        """Detections in patches, uint8 [B, S, S], one entry per patch."""
        self.network.eval()
        original = images.shape[-1]
        images = self._images(enlarge(images, self.resize_px) if self.resize_px else images)
        features, boxes, scores, labels, valid = self._find(images, self._anchors_of(images))
        masks = self._masks(features, boxes, labels, valid, images.shape[-1], original)
        boxes = boxes * (original / images.shape[-1])
        per_patch = valid.sum(dim=1).tolist()
        parts = [part[valid].cpu().split(per_patch) for part in (boxes, scores, labels)]
        return [
            Detections(b.numpy(), s.numpy(), c.numpy(), m.numpy())
            for b, s, c, m in zip(*parts, masks.cpu().split(per_patch), strict=True)
        ]

    def _find(self, images: Tensor, anchors: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, Tensor]:
        features, size = self.network.backbone(images), images.shape[-1]
        counts, logits, deltas = heads.score_anchors(self.network.rpn.head, list(features.values()))
        proposals, valid = self._propose(counts, logits, deltas, anchors, size)
        return features, *self._classify(features, proposals, valid, size)

    def _classify(self, features: dict[str, Tensor], proposals: Tensor, valid: Tensor, size: int) -> tuple[Tensor, ...]:
        """Boxes [B, D, 4], scores, labels and marks [B, D] of the detections, best first."""
        roi = self.network.roi_heads
        batch, count = valid.shape
        pooled = pooling.pool_levels(roi.box_roi_pool, features, proposals, size)
        scores, corrections = roi.box_predictor(heads.box_features(roi.box_head, pooled))
        scores = heads.wide(scores).softmax(-1).reshape(batch, count, -1)[..., 1:]  # (B, P, K)
        corrections = heads.wide(corrections).reshape(batch, count, -1, 4)[:, :, 1:]
        boxes = regions.decode(corrections, proposals[:, :, None], roi.box_coder.weights).clamp(0, size)
        good = valid[..., None] & (scores > roi.score_thresh)
        good &= ((boxes[..., 2:] - boxes[..., :2]) >= 1e-2).all(dim=-1)  # torchvision's smallest detection
        # Classes do not suppress each other: every class of every patch is a group of its own.
        scores = torch.where(good, scores, -1.0).transpose(1, 2)  # (B, K, P)
        scores, order = scores.sort(dim=2, descending=True, stable=True)
        boxes = boxes.transpose(1, 2).gather(2, order[..., None].expand(-1, -1, -1, 4))
        kept = regions.suppress(boxes.flatten(0, 1), (scores >= 0).flatten(0, 1), roi.nms_thresh)
        labels = torch.arange(1, scores.shape[1] + 1, device=scores.device)[None, :, None].expand(scores.shape)
        scores = torch.where(kept.reshape(scores.shape), scores, -1.0).flatten(1)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        order = order[:, : roi.detections_per_img]
        scores = scores[:, : order.shape[1]]
        return regions.pick(boxes.flatten(1, 2), order), scores, labels.flatten(1).gather(1, order), scores >= 0

    def _masks(
        self, features: dict[str, Tensor], boxes: Tensor, labels: Tensor, valid: Tensor, size: int, original: int
    ) -> Tensor:
        """Masks of the valid detections, patch by patch, bool [N, S, S] at the original size."""
        roi = self.network.roi_heads
        most = int(valid.sum(dim=1).max()) if len(valid) else 0  # the valid come first
        if most == 0:
            return torch.zeros((0, original, original), dtype=torch.bool)
        valid, boxes, labels = valid[:, :most], boxes[:, :most], labels[:, :most]
        pooled = _rows(pooling.pool_levels(roi.mask_roi_pool, features, boxes, size), valid.flatten())
        logits = heads.mask_logits(roi.mask_predictor, roi.mask_head(pooled), labels[valid])
        return regions.paste(logits.sigmoid(), boxes[valid] * (original / size), original) > 0.5


def _rows(images: Tensor, keep: Tensor | slice) -> Tensor:
    """``images[keep]`` for [N, C, H, W], channels last before and after."""
    return images.permute(0, 2, 3, 1)[keep].permute(0, 3, 1, 2)


def _positive_places(sampler, index: Tensor) -> int:
    return min(int(sampler.batch_size_per_image * sampler.positive_fraction), index.shape[1])


def _sum_where(values: Tensor, where: Tensor) -> Tensor:
    """Sum of `values` [..., k] where marked; what is not marked cannot spoil it, not even an infinity."""
    return torch.where(where, values, 0.0).sum()
