"""Training a detector on a recipe: equal steps in every arm, interrupted and continued to the same bits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from companion import layout
from companion.config.sections import Detection
from companion.detection.data import Batch, Recipe
from companion.detection.model import Detector, build, load_weights
from companion.device import Device, Recorded
from companion.errors import CompanionError
from companion.provenance import hash_file, write_table
from companion.training import drop_checkpoint, fingerprint, fit, one_cycle, set_learning_rate
from companion.weights import is_finished, load_state, save_state

WEIGHTS, LOG = "weights.safetensors", "log.parquet"


def train_detector(
    recipe: Recipe, settings: Detection, device: Device, folder: Path, callback: Callable[[int], None] | None = None
) -> tuple[Detector, pd.DataFrame]:
    """Train a detector and write ``weights.safetensors`` and ``log.parquet`` into `folder`.

    A finished training with the same code, settings and patches is read back; an interrupted one continues from its
    last checkpoint and ends with the weights it would have had. The first weights and the sampling of anchors and
    regions depend on the recipe's seeds, which the arm is no part of: arms of one seed start alike. `callback` gets the
    number of steps done before each checkpoint. The log has a row per step: step, learning_rate, total and each loss.
    """
    patches, seeds = next(iter(recipe.sources.values())), recipe.seeds
    card = {"settings": settings.model_dump(mode="json"), "classes": patches.classes, "patch_size": patches.size}
    pretrained = layout.given(settings.weights) if settings.weights else None
    identity = fingerprint(
        __name__, card=card, recipe=recipe.identity(), pretrained=pretrained and hash_file(pretrained),
        device=[str(device.torch), str(device.dtype), device.compile, torch.get_num_threads()],
    )  # fmt: skip
    path = folder / WEIGHTS
    if is_finished(path, identity):
        detector, about = load_detector(path, device)
        log = pd.DataFrame(about["log"])
        write_table(folder / LOG, log)
        return detector, log
    with device.global_seed(seeds.integer("weights")):
        detector = build(settings, len(patches.classes))
    if pretrained:
        load_weights(detector.network, pretrained)
    optimizer, names = optimizer_of(_placed(detector, device), settings), []

    def gradients(*tensors: torch.Tensor) -> torch.Tensor:
        """The losses of a batch [L], their sum last; leaves its gradients."""
        optimizer.zero_grad(set_to_none=True)
        with device.autocast():
            losses = detector.losses(Batch(*tensors))
        names[:] = [*losses, "total"]
        values = torch.stack([loss.float() for loss in losses.values()])
        values.sum().backward()
        return torch.cat([values, values.sum(dim=0, keepdim=True)]).detach()

    # detectron2 looks at values on the host, so that its steps cannot be recorded.
    recorded = Recorded(gradients, detector.network) if isinstance(detector, nn.Module) else gradients

    def step(number: int) -> dict[str, float | torch.Tensor]:
        rate = learning_rate(settings, number)
        set_learning_rate(optimizer, rate)
        batch = recipe.batch(number, device)
        batch = batch.enlarged(settings.resize_px) if settings.resize_px else batch
        # The library samples anchors and regions with the global generator.
        with device.global_seed(seeds.integer("sampling", number)):
            losses = recorded(*batch)
        optimizer.step()
        # Tensors: to look at one here would make the host wait for the device in every step.
        return {"learning_rate": rate, **dict(zip(names, losses.unbind(), strict=True))}

    def explain(number: int) -> str:
        drawn = [f"{source} patches {d.patches.tolist()} in symmetries {d.symmetries.tolist()}"
                 for source, d in recipe.draw(number).items()]  # fmt: skip
        lower = f"Lower the learning rate (detection.learning_rate = {settings.learning_rate:g})."
        return f"Its batch: {'; '.join(drawn)}. {lower}"

    log = fit(
        step, {"network": detector.network, "optimizer": optimizer}, steps=settings.steps, folder=folder,
        identity=identity, every=settings.checkpoint_every, title="detector", callback=callback, explain=explain,
    )  # fmt: skip
    save_state(detector.network.state_dict(), path, {"identity": identity, **card, "log": log.to_dict("list")})
    write_table(folder / LOG, log)
    drop_checkpoint(folder, "detector")
    return detector, log


def _placed(detector: Detector, device: Device) -> Detector:
    detector.network.to(device.torch)
    if isinstance(detector, nn.Module):  # detectron2's loops over images cannot be compiled as a whole
        device.prepare(detector)
    return detector


def load_detector(path: Path, device: Device) -> tuple[Detector, dict[str, Any]]:
    """A trained detector from its weights file, and what the file says of it.

    That is: settings (the profile's section), classes (names of the class codes 1, 2, ...), patch_size (side of the
    patches that it was trained on, px), log (losses by step). A file that is no detector's is a `CompanionError`.
    """
    state, about = load_state(path)
    try:
        detector = build(Detection.model_validate(about["settings"]), len(about["classes"]))
        detector.network.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CompanionError(f"{path} does not hold the weights of a detector: {error}") from None
    return _placed(detector, device), about


def learning_rate(settings: Detection, step: int) -> float:
    """Learning rate of a step: one cycle for AdamW; for SGD a linear warm-up, constant, a tenth in the last fifth."""
    if settings.optimizer == "adamw-one-cycle":
        return one_cycle(step, settings.steps, settings.learning_rate)
    warm = min(1.0, (step + 1) / (settings.warmup_steps + 1))
    return settings.learning_rate * warm * (0.1 if step >= 0.8 * settings.steps else 1.0)


def optimizer_of(detector: Detector, settings: Detection) -> torch.optim.Optimizer:
    """The optimiser that the settings name, of the parameters that are trained."""
    parameters = [p for p in detector.network.parameters() if p.requires_grad]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=settings.learning_rate, momentum=0.9, weight_decay=1e-4, fused=True)
    return torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=1e-2, fused=True)
