"""The block ``correct`` of `speed.py`: the GPU beside the CPU (which compares with itself), resume, hidden waits."""

import os
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import torch
import torchvision
from bench import LIBRARY, SEEDS, Bench, distance, real_step

from companion.config.sections import Detection
from companion.detection import batched, roi_ops
from companion.detection import train as detectors
from companion.detection.data import recipe_of
from companion.detection.predict import predict
from companion.device import Device
from companion.diffusion.sample import LatentDiffusion
from companion.diffusion.train import get_autoencoder
from companion.micrographs.patches import Patches


def correct(b: Bench) -> None:
    """Losses, gradients, detections and samples of the GPU beside those of the CPU; resume; waits."""
    # float32 without TF32: only the order of sums differs from the CPU's. This process does nothing else.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    if b.gpu:  # which its owner has all cores for
        torch.set_num_threads(os.cpu_count() or 1)
    half = 20 if b.gpu else 1
    settings = b.P.detection.model_copy(update={"steps": 2 * half, "checkpoint_every": half})
    for check in (_detector, _operators, _diffusion, _resume, _waits, _detections):
        with b.trying(check.__name__):
            check(b, settings, b.patches())


def _first(train: Callable[[], object], **how: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses and gradients of a training's first step."""
    step, parts = real_step(train, **how)
    optimizer = parts["optimizer"]
    with patch.object(type(optimizer), "step", lambda *_: None):  # not what Adam makes of the gradients
        losses = step(0)
    gradients = [p.grad.flatten().cpu() for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
    return torch.tensor([float(v) for v in losses.values()]), torch.cat(gradients)


def _compared(b: Bench, what: str, trainings: list[Callable[[], object]], limit: float, **more: float) -> None:
    (wanted, gradient), (found, other) = map(_first, trainings)
    errors = {"losses": distance(found, wanted), "gradients": distance(other, gradient)}
    b.say(what, ok=max(errors.values()) <= limit, limit=limit, **errors, **more)


def _detector(b: Bench, settings: Detection, patches: Patches) -> None:
    def keys(_: object, shape: tuple[int, ...], device: torch.device) -> torch.Tensor:
        return torch.linspace(1, 0, shape[1], device=device).expand(shape)

    rough = replace(b.device, dtype=torch.bfloat16)
    with patch.object(batched.BatchedDetector, "random_keys", keys):
        _compared(b, "detector, float32", [b.detector(settings, d, patches) for d in (b.cpu, b.device)], 1e-3)
        # How far bfloat16 is off depends on the network; twice what torchvision's own loops lose is too much.
        exact, theirs = (_first(b.detector(settings, d, patches), **LIBRARY)[1] for d in (b.device, rough))
        lost = distance(theirs, exact)
        trainings = [b.detector(settings, device, patches) for device in (b.cpu, rough)]
        _compared(b, "detector, bfloat16", trainings, 2 * lost, torchvision_gradients=lost)


def _operators(b: Bench, settings: Detection, patches: Patches) -> None:
    rng, at = torch.Generator().manual_seed(1), b.device.torch
    corner, side = torch.rand(16, 300, 2, generator=rng) * 100, torch.rand(16, 300, 2, generator=rng) * 28 + 0.5
    boxes, rank = torch.cat([corner, corner + side], dim=-1), torch.arange(300, 0, -1.0)
    kept = roi_ops.suppress(boxes.to(at), torch.ones(16, 300, dtype=torch.bool, device=at), 0.5).cpu()
    wanted = torch.zeros_like(kept)
    for k, group in enumerate(boxes):
        wanted[k, torchvision.ops.nms(group, rank, 0.5)] = True
    b.say("suppression", ok=bool((kept == wanted).all()), different=int((kept != wanted).sum()))
    masks, few = torch.rand(300, 28, 28, generator=rng), boxes[0]
    drawn = torchvision.models.detection.roi_heads.paste_masks_in_image(masks[:, None], few, (128, 128))[:, 0]
    error = distance(roi_ops.paste(masks.to(at), few.to(at), 128), drawn)
    b.say("pasted masks", ok=error < 1e-5, error=error)
    pooler = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2"], 7, 2)
    levels = {str(k): torch.randn(2, 8, 32 >> k, 32 >> k, generator=rng) for k in range(3)}
    wanted = pooler(levels, [boxes[0], boxes[1]], [(128, 128)] * 2)
    found = roi_ops.pool(pooler, {k: v.to(at) for k, v in levels.items()}, boxes[:2].to(at), 128)
    b.say("region pooling", ok=(error := distance(found, wanted)) < 1e-5, error=error)


def _autoencoder(b: Bench, device: Device, patches: Patches) -> Callable[[], object]:
    trained = b.P.diffusion.autoencoder.model_copy(update={"weights": None, "steps": 8})
    return lambda: get_autoencoder(patches, trained, b.fitting(device))


def _diffusion(b: Bench, settings: Detection, patches: Patches) -> None:
    patches = patches.only(np.arange(8))
    _compared(b, "denoiser, float32", [b.denoiser(b.P, d, patches) for d in (b.cpu, b.device)], 1e-3)
    autoencoders = []
    for device in (b.cpu, b.device):
        step, parts = real_step(_autoencoder(b, device, patches))
        for number in range(3):
            step(number)
        autoencoders.append(torch.cat([p.flatten().cpu() for p in parts["autoencoder"].parameters()]))
    b.say("autoencoder, three steps", ok=(error := distance(*reversed(autoencoders))) < 1e-2, error=error)
    drawn, sampling = [], b.P.sampling.model_copy(update={"batch_size": 4, "guidance": 1.5})
    for device in (b.cpu, b.device):
        _, parts = real_step(b.denoiser(b.P, b.cpu, patches))
        denoiser = parts["average"].to(device.torch)
        ldm = LatentDiffusion(b.autoencoder(b.P, device, patches), denoiser, sampling, device, SEEDS)
        drawn.append(ldm.sample(patches.label_maps()[:4], range(4)).astype(float))
    worst = float(np.abs(drawn[1] - drawn[0]).max())
    b.say("four samples", ok=worst <= 2, worst_grey_level=worst)


def _resume(b: Bench, settings: Detection, patches: Patches) -> None:
    recipe, ends = recipe_of("EXP", patches, None, settings, SEEDS), []
    stop = Mock(side_effect=[None, KeyboardInterrupt])  # before the second checkpoint, which is that of the last step
    for interrupted, recorded in ((False, True), (False, True), (True, True), (False, False)):
        folder, called = b.folder(), patch.object(detectors, "Recorded", lambda function, _: function)
        with nullcontext() if recorded else called:
            with suppress(KeyboardInterrupt):
                detectors.train_detector(recipe, settings, b.device, folder, stop if interrupted else None)
            detector, _ = detectors.train_detector(recipe, settings, b.device, folder)
        ends.append(torch.cat([p.flatten() for p in detector.network.parameters()]))
    # Sums on a GPU come in any order (atomics): two undisturbed trainings differ, on the CPU by nothing.
    apart = distance(ends[1], ends[0])
    for what, end in (("stopped and continued", ends[2]), ("recorded against called", ends[3])):
        b.say(what, ok=(error := distance(end, ends[0])) <= 2 * apart, error=error, two_undisturbed=apart)


def _waits(b: Bench, settings: Detection, patches: Patches) -> None:
    if not b.gpu:
        return b.say("waits", why="no GPU, nothing to wait for")
    detector, denoiser = b.detector(settings, b.device, patches), b.denoiser(b.P, b.device, patches)
    trainings = {"detector": detector, "denoiser": denoiser, "autoencoder": _autoencoder(b, b.device, patches)}
    for name, train in trainings.items():
        what, (step, _) = f"{name}: no wait in a step", real_step(train)
        for number in range(4):
            step(number)  # where things are allocated, recorded and copied once
        torch.cuda.set_sync_debug_mode("error")
        with b.trying(what):
            step(4), step(5)
            b.say(what, ok=True)
        torch.cuda.set_sync_debug_mode("default")


def _detections(b: Bench, settings: Detection, patches: Patches) -> None:
    changed = {"steps": 150} if b.gpu else {"steps": 2, "score_floor": 0.0}  # it has learnt nothing yet
    settings = settings.model_copy(update=changed | {"checkpoint_every": 150})
    detector, _ = b.detector(settings, b.device, patches)()
    tables = []
    for device in (b.cpu, b.device):
        detector.network.to(device.torch)
        tables.append(predict(detector, patches.images[: 32 if b.gpu else 2], device))
    wanted, found = (t[["x1", "y1", "x2", "y2", "score"]].to_numpy() for t in tables)
    error = float(np.abs(wanted - found).max()) if len(wanted) == len(found) > 0 else None
    b.say("detections", ok=error is not None and error < 0.1, cpu=len(wanted), gpu=len(found), worst_px=error)
