"""Training a detector on a recipe: equal steps in every arm, interrupted and continued to the same bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn

from companion import layout
from companion.config.sections import Detection
from companion.detection.data import Recipe
from companion.detection.model import Detector, build, build_untrained
from companion.errors import CompanionError
from companion.provenance import hash_file, write_table
from companion.training import Device, drop_checkpoint, fingerprint, fit, one_cycle, set_learning_rate
from companion.weights import is_finished, load_state, save_state

WEIGHTS, LOG = "weights.safetensors", "log.parquet"


@dataclass(frozen=True)
class Card:
    """What a weights file says of its detector, enough to run it anywhere.

    Attributes
    ----------
    settings : the profile's section Detection
    classes : names of the class codes 1, 2, ...
    patch_size : side of the patches that it was trained on, px
    """

    settings: Detection
    classes: tuple[str, ...]
    patch_size: int

    def to_json(self) -> dict[str, Any]:
        """As `load_detector` reads it."""
        settings = self.settings.model_dump(mode="json")
        return {"settings": settings, "classes": self.classes, "patch_size": self.patch_size}


def train_detector(
    recipe: Recipe,
    settings: Detection,
    device: Device,
    folder: Path,
    *,
    callback: Callable[[int], None] | None = None,
) -> tuple[Detector, pd.DataFrame]:
    """Train a detector and write ``weights.safetensors`` and ``log.parquet`` into `folder`.

    A finished training with the same code, settings and patches is read back; an interrupted one continues from its
    last checkpoint and ends with the weights it would have had. The first weights and the sampling of anchors and
    regions depend on the recipe's seeds, which the arm is no part of: arms of one seed start alike.

    Parameters
    ----------
    recipe : where the batches come from
    settings : network, optimiser, number of steps
    folder : where weights, log and checkpoints are written
    callback : called with the number of steps done after each stretch between checkpoints

    Returns
    -------
    detector : trained
    log : one row per step: step, learning_rate, total and each loss

    Raises
    ------
    CompanionError
        Training diverges, or the settings cannot be used.
    """
    patches, seeds = next(iter(recipe.sources.values())), recipe.seeds
    card = Card(settings, patches.classes, patches.size)
    pretrained = layout.given(settings.weights or "")
    pretrained = hash_file(pretrained) if pretrained.is_file() else None  # a missing one `build` refuses in words
    identity = fingerprint(
        __name__, card=card.to_json(), recipe=recipe.identity(), pretrained=pretrained,
        device=[str(device.torch), str(device.dtype), device.compile, torch.get_num_threads()],
    )  # fmt: skip
    path = folder / WEIGHTS
    if is_finished(path, identity):
        log = pd.DataFrame(load_state(path)[1]["log"])
        write_table(folder / LOG, log)
        return load_detector(path, device)[0], log
    with device.global_seed(seeds.integer("weights")):
        detector = build(settings, len(card.classes))
    optimizer = optimizer_of(_placed(detector, device), settings)

    def step(number: int) -> dict[str, float | torch.Tensor]:
        rate = learning_rate(settings, number)
        set_learning_rate(optimizer, rate)
        batch = recipe.batch(number, device)
        batch = batch.enlarged(settings.resize_px) if settings.resize_px else batch
        # The library samples anchors and regions with the global generator.
        with device.global_seed(seeds.integer("sampling", number)), device.autocast():
            losses = detector.losses(batch)
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        # Tensors: to look at one here would make the host wait for the device in every step.
        return {"learning_rate": rate, "total": total.detach(), **{name: v.detach() for name, v in losses.items()}}

    log = fit(
        step, {"network": detector.network, "optimizer": optimizer}, steps=settings.steps, folder=folder,
        identity=identity, every=settings.checkpoint_every, title="detector", callback=callback,
        explain=lambda number: _explain(recipe, settings, number),
    )  # fmt: skip
    save_state(
        detector.network.state_dict(), path, {"identity": identity, **card.to_json(), "log": log.to_dict("list")}
    )
    write_table(folder / LOG, log)
    drop_checkpoint(folder, "detector")
    return detector, log


def _placed(detector: Detector, device: Device) -> Detector:
    detector.network.to(device.torch)
    if isinstance(detector, nn.Module):  # the libraries' own loops over images cannot be compiled as a whole
        device.prepare(detector)
    return detector


def _explain(recipe: Recipe, settings: Detection, step: int) -> str:
    batch = "; ".join(
        f"{source} patches {draw.patches.tolist()} in symmetries {draw.symmetries.tolist()}"
        for source, draw in recipe.draw(step).items()
    )
    return f"Its batch: {batch}. Lower the learning rate (detection.learning_rate = {settings.learning_rate:g})."


def load_detector(path: Path, device: Device) -> tuple[Detector, Card]:
    """A trained detector from its weights file.

    Raises
    ------
    CompanionError
        The file is missing, broken, or not the weights of a detector.
    """
    if path.is_dir():
        raise CompanionError(f"{path} is a folder, not a weights file; a detector's is called {WEIGHTS}")
    state, about = load_state(path)
    if not {"settings", "classes", "patch_size"} <= about.keys():
        raise CompanionError(f"{path} does not hold the weights of a detector; is it the file of another network?")
    try:
        settings = Detection.model_validate(about["settings"])
        card = Card(settings, tuple(about["classes"]), int(about["patch_size"]))
        detector = build_untrained(settings, len(card.classes))
        detector.network.load_state_dict(state)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CompanionError(f"{path} does not hold the weights of a detector: {error}") from None
    return _placed(detector, device), card


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
