"""The fast path against torchvision: same weights and inputs, same detections, losses and gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ellipse_patches
from hypothesis import given, settings
from hypothesis import strategies as st
from test_detection import CASES, COMPUTE
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.ops import MultiScaleRoIAlign, batched_nms, box_iou, nms, roi_align

from companion.detection import pooling, regions
from companion.detection.batched import BatchedDetector
from companion.detection.model import TorchvisionDetector, build
from companion.detection.presets import PRESETS
from companion.detection.recipes import recipe
from companion.config.profile import Detection

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def boxes(n: int, seed: int, size: float = 64, smallest: float = 1.0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    corner = torch.rand((n, 2), generator=rng) * (size - smallest)
    return torch.cat([corner, corner + smallest + torch.rand((n, 2), generator=rng) * 20], 1).clamp(0, size)


# --- regions ------------------------------------------------------------------------------------------------


def test_overlaps_are_torchvisions():
    a, b = boxes(7, 0), boxes(11, 1)
    assert torch.allclose(regions.overlaps(a[None], b[None])[0], box_iou(a, b), atol=1e-6)


def test_codes_are_torchvisions_and_invert():
    a, b = boxes(9, 2), boxes(9, 3)
    coder = BoxCoder(WEIGHTS)
    code = regions.encode(a, b, WEIGHTS)
    assert torch.allclose(code, coder.encode_single(a, b), atol=1e-5)
    assert torch.allclose(regions.decode(code, b, WEIGHTS), coder.decode_single(code, b), atol=1e-4)
    assert torch.allclose(regions.decode(code, b, WEIGHTS), a, atol=1e-3)


def test_codes_of_padding_are_finite():
    nothing = torch.zeros((2, 4))
    assert regions.encode(nothing, boxes(2, 0), WEIGHTS).isfinite().all()
    assert regions.encode(boxes(2, 0), nothing, WEIGHTS).isfinite().all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 6), st.integers(1, 40), st.booleans())
def test_matching_is_torchvisions(seed, n_truth, n_boxes, every_truth):
    truth, found = boxes(n_truth, seed), boxes(n_boxes, seed + 1)
    padded = torch.cat([truth, torch.zeros((3, 4))])[None]
    real = torch.arange(n_truth + 3)[None] < n_truth
    index, positive, negative = regions.match(regions.overlaps(padded, found[None]), real, 0.2, 0.5, every_truth)
    if n_truth == 0:
        assert negative.all() and not positive.any()
        return
    expected = Matcher(0.5, 0.2, allow_low_quality_matches=every_truth)(box_iou(truth, found))
    assert torch.equal(positive[0], expected >= 0)
    assert torch.equal(negative[0], expected == -1)
    assert torch.equal(index[0][expected >= 0], expected[expected >= 0])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 30), st.integers(0, 30), st.integers(1, 20))
def test_sampling_keeps_its_proportions(seed, n_positive, n_negative, count):
    n = n_positive + n_negative + 4
    kind = torch.tensor([1] * n_positive + [0] * n_negative + [-1] * 4)
    kind = torch.stack([kind[torch.randperm(n, generator=torch.Generator().manual_seed(seed))], torch.full((n,), -1)])
    keys = torch.rand(kind.shape, generator=torch.Generator().manual_seed(seed))
    index, chosen, is_positive = regions.sample(kind == 1, kind == 0, keys, count, 0.25)
    taken = min(n_positive, int(count * 0.25))
    assert is_positive[0].sum() == taken
    assert chosen[0].sum() == taken + min(n_negative, count - taken)
    assert (kind[0, index[0][is_positive[0]]] == 1).all()
    assert (kind[0, index[0][chosen[0] & ~is_positive[0]]] == 0).all()
    assert len(index[0][chosen[0]].unique()) == chosen[0].sum()
    assert not chosen[1].any() and not is_positive[1].any()
    assert index.shape[1] <= count


def test_sampling_is_even():
    positive = torch.zeros((400, 10), dtype=torch.bool)
    keys = torch.rand(positive.shape, generator=torch.Generator().manual_seed(0))
    index, chosen, _ = regions.sample(positive, ~positive, keys, 2, 0.25)
    times = np.bincount(index[chosen].numpy(), minlength=10)
    assert times.sum() == 800 and times.min() > 50 and times.max() < 115


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.floats(0.1, 0.9))
def test_suppression_is_torchvisions(seed, n, iou):
    found = boxes(2 * n, seed, size=40).reshape(2, n, 4)
    valid = torch.rand((2, n), generator=torch.Generator().manual_seed(seed)) > 0.2
    group = torch.arange(2).repeat_interleave(n)
    rank = torch.arange(2 * n, 0, -1).float()
    keep = batched_nms(found.flatten(0, 1)[valid.flatten()], rank[valid.flatten()], group[valid.flatten()], iou)
    expected = torch.zeros(2 * n, dtype=torch.bool)
    expected[valid.flatten().nonzero()[:, 0][keep]] = True
    assert torch.equal(regions.suppress(found, valid, iou).flatten(), expected)
    assert torch.equal(regions._suppress_together(found, valid, iou).flatten(), expected)


def longest_chain(found, iou):
    """Rounds after which nothing changes when all boxes suppress each other at once."""
    above = regions.overlaps(found[None], found[None])[0].triu(1) > iou
    kept, rounds = torch.ones(len(found), dtype=torch.bool), 0
    while not torch.equal(new := ~(above & kept[:, None]).any(0), kept):
        kept, rounds = new, rounds + 1
    return rounds


@pytest.mark.parametrize(("side", "size", "iou"), [(12, 128, 0.3), (24, 256, 0.3), (24, 128, 0.5), (48, 128, 0.7)])
def test_suppression_along_an_axis_is_torchvisions(side, size, iou):
    # As many boxes as the paper's network proposes, best on the right: each suppresses its neighbour on the left.
    rng = torch.Generator().manual_seed(0)
    corner = torch.rand((2000, 2), generator=rng) * (size - side)
    corner = corner[corner[:, 0].argsort(descending=True)]
    found = torch.cat([corner, corner + side * (0.8 + 0.4 * torch.rand((2000, 2), generator=rng))], 1)
    assert longest_chain(found, iou) > 2 * regions.ROUNDS
    valid = torch.ones((1, 2000), dtype=torch.bool)
    expected = torch.zeros(2000, dtype=torch.bool)
    expected[nms(found, torch.arange(2000, 0, -1).float(), iou)] = True
    assert torch.equal(regions._suppress_together(found[None], valid, iou)[0], expected)


@pytest.mark.parametrize(("preset", "steps"), [("compact", 8), pytest.param("native", 0, marks=pytest.mark.slow)])
def test_suppression_of_proposals_is_torchvisions(preset, steps, monkeypatch):
    patches, groups = ellipse_patches(8, size=128), []
    torch.manual_seed(1)
    detector = build(PRESETS[preset].model_copy(update={"batch_size": 2}), 3)
    in_turn = regions._suppress_in_turn

    def compare(found, valid, iou):
        expected = in_turn(found, valid, iou)
        assert torch.equal(regions._suppress_together(found, valid, iou), expected)
        groups.append((found.shape[1], int((valid & ~expected).sum())))
        return expected

    monkeypatch.setattr(regions, "_suppress_in_turn", compare)
    with torch.no_grad():
        detector.losses(batch_of(patches, size=2))
    if steps:
        warm_up(detector, patches, steps)
    detector.detect(torch.from_numpy(patches.images[:2]))
    assert max(n for n, _ in groups) == (2000 if preset == "native" else 600)
    assert max(suppressed for _, suppressed in groups) > 50


@pytest.mark.parametrize("size", [7, 14])
def test_pooling_and_its_gradient_are_roi_align(size):
    features = torch.randn((2, 5, 16, 16), generator=torch.Generator().manual_seed(0)).requires_grad_()
    special = torch.tensor([[0, 0, 64, 64], [0, 0, 0.5, 0.5], [63.5, 63.5, 64, 64], [10, 10, 10, 10.0]])
    found = torch.cat([boxes(12, 4), special, boxes(16, 5)]).reshape(2, 16, 4)
    rois = torch.cat([torch.arange(2.0).repeat_interleave(16)[:, None], found.flatten(0, 1)], 1)
    ours, theirs = pooling.pool(features, found, 0.25, size), roi_align(features, rois, size, 0.25, 2)
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, atol=1e-4)
    weights = torch.randn(ours.shape, generator=torch.Generator().manual_seed(1))
    a, b = (torch.autograd.grad((out * weights).sum(), features)[0] for out in (ours, theirs))
    assert torch.allclose(a, b, atol=1e-3)


@pytest.mark.parametrize("way", ["kernel", "pyramid", "products"])
def test_coordinates_are_not_rounded_in_bfloat16(way):
    # In bfloat16 a coordinate above 512 is a multiple of 4: boxes would move by half a cell of waves 8 cells long.
    size, cells = 800, torch.arange(200.0)
    waves = torch.sin(cells * (2 * torch.pi / 8))[None, None] + torch.sin(cells * (2 * torch.pi / 8))[None, :, None]
    features = torch.stack([waves, -waves]).bfloat16()  # (2, 1, 200, 200)
    corner = 500 + 250 * torch.rand((2, 20, 2), generator=torch.Generator().manual_seed(0))
    found = torch.cat([corner, corner + 37.3], dim=2)
    pyramid = {str(k): features[..., :: 2**k, :: 2**k] for k in range(2)}

    def pooled(features, pyramid):
        if way == "pyramid":
            pooler = MultiScaleRoIAlign(["0", "1"], 7, 2)
            return pooling.pool_levels(pooler, pyramid, found, size)
        if way == "products":
            return pooling.pool_by_products(features, found, 0.25, 7)
        return pooling.pool_by_kernel(features, found, 0.25, 7)

    expected = pooled(features.float(), {k: v.float() for k, v in pyramid.items()})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = pooled(features, pyramid)
    assert ours.dtype == torch.bfloat16
    assert (ours.float() - expected).abs().max() < 0.03
    rounded = found.bfloat16().float()
    rois = torch.cat([torch.arange(2.0).repeat_interleave(20)[:, None], rounded.flatten(0, 1)], 1)
    if way != "pyramid":
        assert (roi_align(features.float(), rois, 7, 0.25, 2) - expected).abs().max() > 0.3  # what must not be


def test_pasting_is_torchvisions():
    masks = torch.rand((20, 28, 28), generator=torch.Generator().manual_seed(0))
    found = torch.cat(
        [boxes(16, 6), torch.tensor([[0, 0, 64, 64], [0, 0, 1, 1], [5.2, 5.7, 5.9, 6.1], [60, 0, 64, 64]])]
    )
    expected = paste_masks_in_image(masks[:, None], found, (64, 64))[:, 0]
    assert torch.allclose(regions.paste(masks, found, 64), expected, atol=1e-5)


# --- the whole detector -------------------------------------------------------------------------------------


class First:
    """Samples the first boxes of each kind instead of random ones, for torchvision."""

    def __init__(self, sampler):
        self.batch_size_per_image, self.positive_fraction = sampler.batch_size_per_image, sampler.positive_fraction

    def __call__(self, labels):
        chosen = ([], [])
        for of_patch in labels:
            positive, negative = torch.where(of_patch >= 1)[0], torch.where(of_patch == 0)[0]
            positive = positive[: int(self.batch_size_per_image * self.positive_fraction)]
            negative = negative[: self.batch_size_per_image - len(positive)]
            for kind, places in zip(chosen, (positive, negative), strict=True):
                mask = torch.zeros_like(of_patch, dtype=torch.uint8)
                mask[places] = 1
                kind.append(mask)
        return chosen


class BatchedFirst(BatchedDetector):
    """The same for the fast path."""

    def random_keys(self, shape, device):
        return torch.linspace(1, 0, shape[1]).expand(shape)


def pair(n_classes: int, **changes) -> tuple[TorchvisionDetector, BatchedFirst]:
    torch.manual_seed(3)
    detector = build(Detection(**{"rois_per_image": 32, "proposals": 40, **changes}), n_classes)
    theirs = TorchvisionDetector(detector.network, detector.channels)
    return theirs, BatchedFirst(detector.network, detector.channels, changes.get("resize_px"))


def batch_of(patches, step=0, size=4):
    made = recipe("EXP", {"real": patches}, batch_size=size, generated_share=0, root_seed=1, names=("x",))
    return made.batch(step)


def warm_up(detector, patches, steps=25):
    """Train a little, so that proposals and detections are not those of a random network."""
    optimizer = torch.optim.AdamW(detector.network.parameters(), lr=2e-3)
    for step in range(steps):
        optimizer.zero_grad()
        sum(detector.losses(batch_of(patches, step)).values()).backward()
        optimizer.step()


def gradients(detector, batch):
    detector.network.zero_grad()
    found = detector.losses(batch)
    sum(found.values()).backward()
    values = {name: float(value.detach()) for name, value in found.items()}
    return values, {name: p.grad.clone() for name, p in detector.network.named_parameters() if p.grad is not None}


def assert_equal_losses_and_gradients(theirs, ours, batch):
    # In double precision rounding leaves no room for a small mistake to hide in.
    theirs.network.double()
    batch = replace(batch, boxes=batch.boxes.double())
    theirs.network.rpn.fg_bg_sampler = First(theirs.network.rpn.fg_bg_sampler)
    theirs.network.roi_heads.fg_bg_sampler = First(theirs.network.roi_heads.fg_bg_sampler)
    expected, expected_gradients = gradients(theirs, batch)
    found, found_gradients = gradients(ours, batch)
    assert found.keys() == expected.keys()
    for name in expected:
        # torchvision computes part of loss_objectness in single precision whatever the network's.
        assert found[name] == pytest.approx(expected[name], rel=1e-5, abs=1e-9), name
    for name, gradient in expected_gradients.items():
        off = (found_gradients[name] - gradient).norm()
        assert off <= 1e-5 * gradient.norm() + 1e-9, (name, off, gradient.norm())
    theirs.network.float()


def assert_equal_detections(theirs, ours, images):
    images = torch.from_numpy(np.array(images))
    total = 0
    for expected, found in zip(theirs.detect(images), ours.detect(images), strict=True):
        assert len(expected.boxes) == len(found.boxes)
        assert np.allclose(expected.boxes, found.boxes, atol=1e-3)
        assert np.allclose(expected.scores, found.scores, atol=1e-4)
        assert (expected.labels == found.labels).all()
        assert found.masks.dtype == bool and found.masks.shape == expected.masks.shape
        # A probability of 0.5 within rounding may fall on either side.
        assert (expected.masks != found.masks).sum() <= 1e-3 * expected.masks.size
        total += len(expected.boxes)
    return total


@pytest.mark.parametrize("trained", [False, True])
def test_losses_and_gradients_are_torchvisions(trained):
    patches = ellipse_patches(12)
    theirs, ours = pair(3)
    if trained:
        warm_up(ours, patches)
    assert_equal_losses_and_gradients(theirs, ours, batch_of(patches))


@pytest.mark.parametrize("patches", CASES.values(), ids=CASES.keys())
def test_losses_and_detections_are_torchvisions_on_every_kind_of_patch(patches):
    theirs, ours = pair(len(patches.classes))
    assert_equal_losses_and_gradients(theirs, ours, batch_of(patches, size=2))
    assert_equal_detections(theirs, ours, patches.images[:2])


def test_detections_are_torchvisions():
    patches = ellipse_patches(12)
    theirs, ours = pair(3)
    warm_up(ours, patches, 40)
    assert assert_equal_detections(theirs, ours, patches.images) > 20


def test_detections_in_bfloat16_are_close(monkeypatch):
    patches = ellipse_patches(12)
    _, ours = pair(3)
    warm_up(ours, patches, 40)
    images = torch.from_numpy(np.array(patches.images))
    for fixed in (False, True):
        monkeypatch.setattr(regions, "fixed_shapes", lambda values, fixed=fixed: fixed)
        exact = ours.detect(images)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            close = ours.detect(images)
        sure = found = 0
        for one, other in zip(exact, close, strict=True):
            best = torch.from_numpy(one.scores > 0.1)
            if best.any():
                labels, scores = (torch.from_numpy(values) for values in (other.labels, other.scores))
                overlap = box_iou(torch.from_numpy(one.boxes)[best], torch.from_numpy(other.boxes))
                overlap, place = (overlap * (torch.from_numpy(one.labels)[best][:, None] == labels)).max(dim=1)
                off = (scores[place] - torch.from_numpy(one.scores)[best]).abs()
                sure, found = sure + len(place), found + int(((overlap > 0.95) & (off < 0.02)).sum())
        # Of two boxes of one defect and almost one score, either may suppress the other.
        assert sure >= 10 and found >= 0.85 * sure


def test_detections_of_an_untrained_network_are_torchvisions():
    theirs, ours = pair(2, score_floor=0.0)
    assert assert_equal_detections(theirs, ours, ellipse_patches(3).images) > 20
    theirs, ours = pair(2, score_floor=1.0)
    assert assert_equal_detections(theirs, ours, ellipse_patches(3).images) == 0


def test_resized_patches_are_equal_too():
    patches = ellipse_patches(6)
    theirs, ours = pair(3, resize_px=96, score_floor=0.0)
    assert assert_equal_detections(theirs, ours, patches.images[:3]) > 20
    assert ours.detect(torch.from_numpy(patches.images[:1]))[0].masks.shape[1:] == (64, 64)
    assert_equal_losses_and_gradients(theirs, ours, batch_of(patches, size=2))


def test_the_papers_network_with_five_levels_is_equal_too():
    patches = ellipse_patches(3, size=64)
    # Anchors far larger than the patch put regions on every level of the pyramid.
    theirs, ours = pair(3, network="r50-fpn", anchor_sizes_px=[8, 16, 32, 64, 128], score_floor=0.0, max_detections=30)
    for head in (theirs.network.roi_heads.box_roi_pool, theirs.network.roi_heads.mask_roi_pool):
        head.canonical_scale = 32  # so that patches of 64 px use all levels
    assert_equal_losses_and_gradients(theirs, ours, batch_of(patches, size=2))
    assert assert_equal_detections(theirs, ours, patches.images[:2]) > 10


def test_weights_move_freely_between_the_two(tmp_path):
    a, b = build(Detection(backend="torchvision"), 3), build(Detection(backend="batched"), 3)
    assert isinstance(a, TorchvisionDetector) and isinstance(b, BatchedDetector)
    assert a.network.state_dict().keys() == b.network.state_dict().keys()
    b.network.load_state_dict(a.network.state_dict())


def test_sampling_draws_from_the_global_generator():
    patches = ellipse_patches(4)
    _, ours = pair(3)
    detector = BatchedDetector(ours.network, 1)
    totals = []
    for seed in (1, 1, 2):
        with COMPUTE.global_seed("x", seed):
            totals.append(float(sum(detector.losses(replace(batch_of(patches))).values()).detach()))
    assert totals[0] == totals[1] != totals[2]
