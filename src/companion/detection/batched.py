"""torchvision's Mask R-CNN without its loops over images: the same network, losses and detections, faster.

Patches have one size, so anchors are the same for all, truths are padded to a rectangle, and every patch gives the
same number of proposals and regions with a mark for those that are left over. Parameters and their names are
torchvision's: weights move between the two freely. Where the host would wait for a GPU, a comment says so.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import roi_align

from companion.detection import roi_ops
from companion.detection.data import Batch, Detections

_BETA = 1 / 9  # of the smooth L1 losses, as in torchvision


class BatchedDetector(nn.Module):
    """Mask R-CNN for batches of equal patches; a module, so that `Device.prepare` compiles all that it computes.

    The modules and thresholds of torchvision's `network` are used as they are; patches come at the side `resize_px`.
    """

    def __init__(self, network: MaskRCNN, resize_px: int | None) -> None:
        super().__init__()
        self.network = network.to(memory_format=torch.channels_last)  # what convolutions read fastest
        self.resize_px = resize_px

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        """The five losses of Mask R-CNN, under torchvision's names."""
        self.train()
        return self(self._normalised(batch.images), batch)

    @torch.no_grad()
    def detect(self, images: Tensor, size: int) -> list[Detections]:
        """Detections in patches [B, S, S], one entry per patch, in px of patches of side `size`."""
        self.eval()
        features, boxes, scores, labels, valid = self(self._normalised(images))
        # The host waits for the device here.
        masks = self._masks(features, boxes, labels, valid, images.shape[-1])
        boxes = boxes * (size / images.shape[-1])
        with torch.autocast(masks.device.type, enabled=False):
            masks = (roi_ops.paste(masks, boxes[valid], size) > 0.5).cpu()
        boxes, scores, labels = (found[valid].cpu() for found in (boxes, scores, labels))
        per_patch = valid.sum(dim=1).tolist()
        patches = zip(*(found.split(per_patch) for found in (boxes, scores, labels, masks)), strict=True)
        return [Detections(*(found.numpy() for found in patch)) for patch in patches]

    def random_keys(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Numbers in [0, 1) that decide which anchors and regions are sampled, from the global generator."""
        return torch.rand(shape, device=device)

    def _normalised(self, images: Tensor) -> Tensor:
        """Images [B, C, S, S] of grey levels [B, S, S]."""
        transform, like = self.network.transform, next(self.parameters())
        grey = images.to(like.device, like.dtype, non_blocking=True) / 255
        scaled = [(grey - mean) / std for mean, std in zip(transform.image_mean, transform.image_std, strict=True)]
        return torch.stack(scaled, dim=1)

    def forward(self, images: Tensor, batch: Batch | None = None):
        """Losses by name of a batch with its truth; without: features, and what `_classify` returns."""
        features, size = self.network.backbone(images), images.shape[-1]
        levels = list(features.values())
        with torch.no_grad():  # anchors are the same for all patches, and as exact as the images
            like = [level[:1, :1].to(images) for level in levels]
            anchors = self.network.rpn.anchor_generator(ImageList(images, [(size, size)]), like)[0]
        logits, deltas = (
            [roi_ops.wide(x.permute(0, 2, 3, 1).flatten(1)) for x in found] for found in self.network.rpn.head(levels)
        )  # in the order of the anchors
        counts, logits, deltas = [level.shape[1] for level in logits], torch.cat(logits, 1), torch.cat(deltas, 1)
        deltas = deltas.unflatten(1, (-1, 4))  # (B, A), (B, A, 4)
        with torch.no_grad():
            proposals, valid = self._propose(counts, logits, deltas, anchors, size)
        if batch is None:
            return features, *self._classify(features, proposals, valid, size)
        losses = self._rpn_losses(batch, logits, deltas, anchors)
        return losses | self._region_losses(batch, features, proposals, valid, size)

    def _propose(
        self, counts: list[int], logits: Tensor, deltas: Tensor, anchors: Tensor, size: int
    ) -> tuple[Tensor, Tensor]:
        """Best boxes of each patch: [B, P, 4] and which of them are real, bool [B, P]."""
        rpn, start, scores, places = self.network.rpn, 0, [], []
        most = min(rpn.pre_nms_top_n(), max(counts))
        for count in counts:  # the best anchors of each level, padded to equally many
            score, place = logits[:, start : start + count].topk(min(most, count), dim=1)
            pad = (0, most - score.shape[1])
            scores.append(F.pad(score, pad, value=-torch.inf)), places.append(F.pad(place + start, pad))
            start += count
        scores, places = torch.cat(scores, 1), torch.cat(places, 1)  # (B, L * most)
        boxes = roi_ops.decode(rpn.box_coder, roi_ops.pick(deltas, places)[..., None, :], anchors[places], size)[
            ..., 0, :
        ]
        good = (scores > -torch.inf) & ((boxes[..., 2:] - boxes[..., :2]) >= rpn.min_size).all(dim=-1)
        # Levels do not suppress each other: every level of every patch is a group of its own.
        good = roi_ops.suppress(boxes.reshape(-1, most, 4), good.reshape(-1, most), rpn.nms_thresh)
        scores = torch.where(good.reshape(scores.shape), scores.sigmoid(), -1.0)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        order = order[:, : rpn.post_nms_top_n()]
        return roi_ops.pick(boxes, order), scores[:, : order.shape[1]] >= 0

    # --- training -------------------------------------------------------------------------------------------

    def _rpn_losses(self, batch: Batch, logits: Tensor, deltas: Tensor, anchors: Tensor) -> dict[str, Tensor]:
        rpn = self.network.rpn
        with torch.no_grad():
            overlap = roi_ops.overlaps(batch.boxes, anchors[None])
            truth, positive, negative = roi_ops.match(overlap, batch.labels > 0, rpn.proposal_matcher, every_truth=True)
            keys = self.random_keys(logits.shape, logits.device)
            index, chosen, is_positive = roi_ops.sample(positive, negative, keys, rpn.fg_bg_sampler)
            near, is_near = index[:, : is_positive.shape[1]], is_positive[..., None]
            wanted = roi_ops.pick(batch.boxes, roi_ops.pick(truth, near))
            wanted = roi_ops.encode(rpn.box_coder, wanted, anchors[near])
        count = chosen.sum().clamp(min=1)
        labels = F.pad(is_positive, (0, index.shape[1] - near.shape[1])).to(logits)
        loss = F.binary_cross_entropy_with_logits(roi_ops.pick(logits, index), labels, reduction="none")
        box = F.smooth_l1_loss(roi_ops.pick(deltas, near), wanted, beta=_BETA, reduction="none")
        return {
            "loss_objectness": _sum_where(loss, chosen) / count, "loss_rpn_box_reg": _sum_where(box, is_near) / count
        }  # fmt: skip

    def _region_losses(
        self, batch: Batch, features: dict[str, Tensor], proposals: Tensor, valid: Tensor, size: int
    ) -> dict[str, Tensor]:
        roi = self.network.roi_heads
        with torch.no_grad():
            # Truths are proposals too, so that the heads see defects before the proposals are any good.
            boxes, valid = torch.cat([proposals, batch.boxes], dim=1), torch.cat([valid, batch.labels > 0], dim=1)
            overlap = roi_ops.overlaps(batch.boxes, boxes)
            truth, positive, negative = roi_ops.match(overlap, batch.labels > 0, roi.proposal_matcher)
            keys = self.random_keys(valid.shape, valid.device)
            index, chosen, is_near = roi_ops.sample(positive & valid, negative & valid, keys, roi.fg_bg_sampler)
            boxes, places = roi_ops.pick(boxes, index), is_near.shape[1]  # (B, R, 4), positive ones first
            near, truth = boxes[:, :places], roi_ops.pick(truth, index[:, :places])
            near_labels = torch.where(is_near, roi_ops.pick(batch.labels, truth), 0)  # (B, P)
            labels = F.pad(near_labels, (0, index.shape[1] - places)).flatten()
            wanted = roi_ops.encode(roi.box_coder, roi_ops.pick(batch.boxes, truth), near)
        pooled = roi_ops.pool(roi.box_roi_pool, features, boxes, size)
        scores, corrections = roi.box_predictor(roi.box_head(pooled))
        corrections = roi_ops.wide(corrections).reshape(*index.shape, -1, 4)[:, :places]  # (B, P, K + 1, 4)
        of_class = near_labels[..., None, None].expand(-1, -1, 1, 4)
        box = F.smooth_l1_loss(corrections.gather(2, of_class)[:, :, 0], wanted, beta=_BETA, reduction="none")
        classifier = F.cross_entropy(roi_ops.wide(scores), labels, reduction="none")
        count = chosen.sum().clamp(min=1)
        return {
            "loss_classifier": _sum_where(classifier, chosen.flatten()) / count,
            "loss_box_reg": _sum_where(box, is_near[..., None]) / count,
            "loss_mask": self._mask_loss(batch, features, near, truth, near_labels, size),
        }

    def _mask_loss(
        self, batch: Batch, features: dict[str, Tensor], boxes: Tensor, truth: Tensor, labels: Tensor, size: int
    ) -> Tensor:
        """Of regions [B, P, 4] with label 0 where a place is left over."""
        roi, valid = self.network.roi_heads, (labels > 0).flatten()
        # Places that are left over cost nothing where shapes may depend on values.
        keep = slice(None) if roi_ops.fixed_shapes(boxes) else valid.nonzero()[:, 0]
        pooled = _rows(roi_ops.pool(roi.mask_roi_pool, features, boxes, size), keep)
        logits = _of_class(roi.mask_predictor(roi.mask_head(pooled)), labels.flatten()[keep])
        with torch.no_grad():
            owner = torch.arange(len(boxes), device=boxes.device)[:, None].expand(labels.shape).flatten()[keep]
            number = roi_ops.pick(batch.ids, truth).flatten()[keep]
            masks = (batch.instances[owner] == number[:, None, None]).to(boxes)  # (N, S, S)
            own = torch.arange(len(masks), device=boxes.device)[:, None]
            rois = torch.cat([own.to(boxes), boxes.reshape(-1, 4)[keep]], dim=1)
            wanted = roi_align(masks[:, None], rois, logits.shape[-1], 1.0)[:, 0]
        loss = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=(1, 2))
        return _sum_where(loss, valid[keep]) / valid.sum().clamp(min=1)

    # --- detection ------------------------------------------------------------------------------------------

    def _classify(self, features: dict[str, Tensor], proposals: Tensor, valid: Tensor, size: int) -> tuple[Tensor, ...]:
        """Boxes [B, D, 4], scores, labels and marks [B, D] of the detections, best first."""
        roi = self.network.roi_heads
        pooled = roi_ops.pool(roi.box_roi_pool, features, proposals, size)
        scores, corrections = roi.box_predictor(roi.box_head(pooled))
        scores = roi_ops.wide(scores).softmax(-1).reshape(*valid.shape, -1)[..., 1:]  # (B, P, K)
        corrections = roi_ops.wide(corrections).reshape(*valid.shape, -1, 4)[:, :, 1:]
        boxes = roi_ops.decode(roi.box_coder, corrections, proposals, size)
        good = valid[..., None] & (scores > roi.score_thresh)
        good &= ((boxes[..., 2:] - boxes[..., :2]) >= 1e-2).all(dim=-1)  # torchvision's smallest detection
        # Classes do not suppress each other: every class of every patch is a group of its own.
        scores = torch.where(good, scores, -1.0).transpose(1, 2)  # (B, K, P)
        scores, order = scores.sort(dim=2, descending=True, stable=True)
        boxes = boxes.transpose(1, 2).gather(2, order[..., None].expand(-1, -1, -1, 4))
        kept = roi_ops.suppress(boxes.flatten(0, 1), (scores >= 0).flatten(0, 1), roi.nms_thresh)
        labels = torch.arange(1, scores.shape[1] + 1, device=scores.device)[None, :, None].expand(scores.shape)
        scores = torch.where(kept.reshape(scores.shape), scores, -1.0).flatten(1)
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        order, scores = order[:, : roi.detections_per_img], scores[:, : roi.detections_per_img]
        return roi_ops.pick(boxes.flatten(1, 2), order), scores, labels.flatten(1).gather(1, order), scores >= 0

    def _masks(self, features: dict[str, Tensor], boxes: Tensor, labels: Tensor, valid: Tensor, size: int) -> Tensor:
        """Mask probabilities [N, 2m, 2m] of the valid detections, patch by patch."""
        roi, most = self.network.roi_heads, int(valid.sum(dim=1).max())  # the valid come first
        valid = valid[:, :most]
        pooled = _rows(roi_ops.pool(roi.mask_roi_pool, features, boxes[:, :most], size), valid.flatten())
        return _of_class(roi.mask_predictor(roi.mask_head(pooled)), labels[:, :most][valid]).sigmoid()


def _rows(images: Tensor, keep: Tensor | slice) -> Tensor:
    """``images[keep]`` for [N, C, H, W], channels last before and after."""
    return images.permute(0, 2, 3, 1)[keep].permute(0, 3, 1, 2)


def _of_class(logits: Tensor, labels: Tensor) -> Tensor:
    """Mask logits [N, 2m, 2m] of the classes [N], of those of all classes [N, K + 1, 2m, 2m]."""
    return roi_ops.wide(logits[torch.arange(len(labels), device=labels.device), labels])


def _sum_where(values: Tensor, where: Tensor) -> Tensor:
    """Sum of `values` [..., k] where marked; what is not marked cannot spoil it, not even an infinity."""
    return torch.where(where, values, 0.0).sum()
