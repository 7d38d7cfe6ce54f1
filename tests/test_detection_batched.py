"""The fast path against torchvision: same weights and inputs, same detections, losses and gradients."""

import functools
import shutil
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from bench import Library
from conftest import ellipse_patches
from hypothesis import given, settings
from hypothesis import strategies as st
from test_detection import CASES, DEVICE, made
from torchvision.ops import batched_nms, nms

from companion.config.sections import Detection
from companion.detection import roi_ops
from companion.detection.batched import BatchedDetector
from companion.detection.model import build
from companion.device import Device


def boxes(n: int, seed: int, size: float = 64, smallest: float = 1.0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    corner = torch.rand((n, 2), generator=rng) * (size - smallest)
    return torch.cat([corner, corner + smallest + torch.rand((n, 2), generator=rng) * 20], 1).clamp(0, size)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 30), st.integers(0, 30), st.integers(1, 20))
def test_sampling_keeps_its_proportions(seed, n_positive, n_negative, count):
    n = n_positive + n_negative + 4
    kind = torch.tensor([1] * n_positive + [0] * n_negative + [-1] * 4)
    kind = torch.stack([kind[torch.randperm(n, generator=torch.Generator().manual_seed(seed))], torch.full((n,), -1)])
    keys = torch.rand(kind.shape, generator=torch.Generator().manual_seed(seed))
    sampler = SimpleNamespace(batch_size_per_image=count, positive_fraction=0.25)
    index, chosen, is_positive = roi_ops.sample(kind == 1, kind == 0, keys, sampler)
    taken = min(n_positive, int(count * 0.25))
    assert is_positive[0].sum() == taken and chosen[0].sum() == taken + min(n_negative, count - taken)
    assert (kind[0, index[0, :taken]] == 1).all() and is_positive[0, :taken].all()
    assert (kind[0, index[0, taken:][chosen[0, taken:]]] == 0).all()
    assert len(index[0][chosen[0]].unique()) == chosen[0].sum()
    assert not chosen[1].any() and not is_positive[1].any()
    assert index.shape[1] <= count


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.floats(0.1, 0.9))
def test_suppression_is_torchvisions(seed, n, iou):
    found = boxes(2 * n, seed, size=40).reshape(2, n, 4)
    valid = torch.rand((2, n), generator=torch.Generator().manual_seed(seed)) > 0.2
    group, rank = torch.arange(2).repeat_interleave(n), torch.arange(2 * n, 0, -1).float()
    keep = batched_nms(found.flatten(0, 1)[valid.flatten()], rank[valid.flatten()], group[valid.flatten()], iou)
    expected = torch.zeros(2 * n, dtype=torch.bool)
    expected[valid.flatten().nonzero()[:, 0][keep]] = True
    for on_gpu in (False, True):
        with mock.patch.object(roi_ops, "fixed_shapes", lambda values, on_gpu=on_gpu: on_gpu):
            assert torch.equal(roi_ops.suppress(found, valid, iou).flatten(), expected)


def test_suppression_on_a_gpu_follows_long_chains(monkeypatch):
    monkeypatch.setattr(roi_ops, "fixed_shapes", lambda values: True)
    # Best on the right: each box suppresses its neighbour on the left.
    corner = torch.arange(roi_ops.ROUNDS, 0, -1).float()[:, None] * torch.tensor([2.0, 0.0])
    found, valid = torch.cat([corner, corner + 12], 1), torch.ones((1, roi_ops.ROUNDS), dtype=torch.bool)
    expected = torch.zeros(roi_ops.ROUNDS, dtype=torch.bool)
    expected[nms(found, torch.arange(roi_ops.ROUNDS, 0, -1).float(), 0.7)] = True
    assert torch.equal(roi_ops.suppress(found[None], valid, 0.7)[0], expected) and not expected.all()


class BatchedFirst(BatchedDetector):
    """Samples the first boxes of each kind instead of random ones."""

    def random_keys(self, shape, device):
        return torch.linspace(1, 0, shape[1]).expand(shape)


def pair(n_classes: int, **changes) -> tuple[Library, BatchedFirst]:
    torch.manual_seed(3)
    detector = build(Detection(**{"rois_per_image": 32, "proposals": 40, **changes}), n_classes)
    return Library(detector), BatchedFirst(detector.network, None)


def batch_of(patches, step=0, size=4):
    return made(patches, batch_size=size)[0].batch(step, DEVICE)


def gradients(detector, batch):
    detector.network.zero_grad()
    found = detector.losses(batch)
    sum(found.values()).backward()
    values = {name: float(value.detach()) for name, value in found.items()}
    return values, {name: p.grad.clone() for name, p in detector.network.named_parameters() if p.grad is not None}


def assert_equal_losses_and_gradients(theirs, ours, batch):
    # In double precision rounding leaves no room for a small mistake to hide in.
    theirs.network.double()
    batch = batch._replace(boxes=batch.boxes.double())
    with mock.patch.object(torch, "randperm", lambda n, **_: torch.arange(n)):  # as torchvision samples
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
    images, total = torch.from_numpy(np.array(images)), 0
    both = (detector.detect(images, images.shape[-1]) for detector in (theirs, ours))
    for expected, found in zip(*both, strict=True):
        assert len(expected.boxes) == len(found.boxes)
        assert np.allclose(expected.boxes, found.boxes, atol=1e-3)
        assert np.allclose(expected.scores, found.scores, atol=1e-4)
        assert (expected.labels == found.labels).all()
        assert found.masks.dtype == bool and found.masks.shape == expected.masks.shape
        # A probability of 0.5 within rounding may fall on either side.
        assert (expected.masks != found.masks).sum() <= 1e-3 * expected.masks.size
        total += len(expected.boxes)
    return total


@pytest.fixture(params=[False, True], ids=["CPU", "shapes as on a GPU"])
def fixed(request, monkeypatch):
    if request.param:  # what a GPU computes, computed here: no shape depends on a value
        monkeypatch.setattr(roi_ops, "fixed_shapes", lambda values: True)


@pytest.mark.parametrize("patches", CASES.values(), ids=CASES.keys())
def test_an_untrained_network_is_torchvisions_on_every_kind_of_patch(patches, fixed):
    theirs, ours = pair(len(patches.classes))
    assert_equal_losses_and_gradients(theirs, ours, batch_of(patches, size=2))
    assert_equal_detections(theirs, ours, patches.images[:2])


def test_a_trained_network_is_torchvisions(fixed):
    patches = ellipse_patches(12)
    theirs, ours = pair(3)
    optimizer = torch.optim.AdamW(ours.network.parameters(), lr=2e-3)
    for step in range(40):
        optimizer.zero_grad()
        sum(ours.losses(batch_of(patches, step)).values()).backward()
        optimizer.step()
    assert assert_equal_detections(theirs, ours, patches.images) > 20
    assert_equal_losses_and_gradients(theirs, ours, batch_of(patches))


def test_enlarged_patches_give_boxes_and_masks_at_their_own_size():
    patches = ellipse_patches(6)
    _, ours = pair(3, score_floor=0.0)
    images = torch.from_numpy(np.array(patches.images[:2]))
    for small, large in zip(ours.detect(images, 64), ours.detect(images, 96), strict=True):
        assert np.allclose(large.boxes, small.boxes * 1.5, atol=1e-4) and len(small.boxes)
        assert small.masks.shape[1:] == (64, 64) and large.masks.shape[1:] == (96, 96)
    batch, large = batch_of(patches), batch_of(patches).enlarged(96)
    assert large.images.shape == (4, 96, 96) and torch.allclose(large.boxes, batch.boxes * 1.5)
    near = (torch.arange(96) / 1.5).long()
    assert torch.equal(large.instances, batch.instances[:, near][:, :, near])


def test_the_papers_network_with_five_levels_is_torchvisions():
    patches = ellipse_patches(3, size=64)
    theirs, ours = pair(3, network="r50-fpn", anchor_sizes_px=[8, 16, 32, 64, 128], score_floor=0.0, max_detections=30)
    for head in (theirs.network.roi_heads.box_roi_pool, theirs.network.roi_heads.mask_roi_pool):
        head.canonical_scale = 32  # so that patches of 64 px use all levels
    assert_equal_losses_and_gradients(theirs, ours, batch_of(patches, size=2))
    assert assert_equal_detections(theirs, ours, patches.images[:2]) > 10


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_compiled_it_is_one_graph_and_the_same(precision, monkeypatch):
    # Traced and differentiated ahead of time, without the minutes of the C++ compiler.
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager", fullgraph=True))
    monkeypatch.setattr(shutil, "which", lambda name: "c++")
    _, eager = pair(3, rois_per_image=16, proposals=20)
    compiled = BatchedFirst(eager.network, None)
    Device(torch.device("cpu"), precision, compile=True).prepare(compiled)
    patches = ellipse_patches(4)
    with torch.autocast("cpu", dtype=precision, enabled=precision != torch.float32):
        # A second batch has other numbers of truths, but as many places for them: nothing is compiled again.
        for batch in (batch_of(patches, size=2), batch_of(patches, step=1, size=2)):
            (expected, _), (found, found_gradients) = gradients(eager, batch), gradients(compiled, batch)
            tolerance = 1e-4 if precision == torch.float32 else 0.05
            assert sum(found.values()) == pytest.approx(sum(expected.values()), rel=tolerance)
            assert all(gradient.isfinite().all() for gradient in found_gradients.values())
        images = torch.from_numpy(np.array(patches.images[:2]))
        for one, other in zip(eager.detect(images, 64), compiled.detect(images, 64), strict=True):
            if precision == torch.float32:
                assert np.allclose(one.boxes, other.boxes, atol=1e-3)
                assert np.allclose(one.scores, other.scores, atol=1e-4)
