"""Training a detector on a recipe: equal steps in every arm, interrupted and continued to the same bits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from companion.detection.batched import BatchedDetector
from companion.detection.model import Detector, build, build_untrained
from companion.detection.recipes import Recipe
from companion.errors import CompanionError
from companion.config.profile import Detection, validate
from companion.provenance import write_table
from companion.training import (
    Compute,
    drop_checkpoint,
    fingerprint,
    fit,
    is_finished,
    load_state,
    one_cycle,
    save_state,
    set_learning_rate,
)

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
        return {
            "settings": self.settings.model_dump(mode="json"), "classes": self.classes, "patch_size": self.patch_size
        }  # fmt: skip


def train_detector(
    recipe: Recipe,
    settings: Detection,
    compute: Compute,
    folder: Path,
    *,
    inputs: Mapping[str, Any],
    callback: Callable[[int], None] | None = None,
    watch: Callable[[pd.DataFrame], None] | None = None,
) -> tuple[Detector, pd.DataFrame]:
    """Train a detector and write ``weights.safetensors`` and ``log.parquet`` into `folder`.

    A finished training with the same code, settings and inputs is read back; an interrupted one continues from
    its last checkpoint and ends with the weights it would have had. The first weights and the sampling of
    anchors and regions depend on the recipe's names, not on the arm: arms of one seed start alike.

    Parameters
    ----------
    recipe : where the batches come from
    settings : network, optimiser, number of steps
    compute : device and precision
    folder : the stage's folder
    inputs : hashes or values that identify the training patches
    callback : called with the number of steps done at the start and after each checkpoint
    watch : called with the log so far after each checkpoint

    Returns
    -------
    detector : trained
    log : one row per step: step, learning_rate, total and each loss

    Raises
    ------
    CompanionError
        Training diverges, or the settings cannot be used.
    """
    root_seed, names = recipe.names
    first = next(iter(recipe.pools.values()))
    card = Card(settings, first.classes, first.size)
    identity = fingerprint(
        __name__, card=card.to_json(), counts=dict(recipe.counts), names=[root_seed, *names], inputs=dict(inputs),
        compute=[str(compute.device), str(compute.dtype), torch.get_num_threads()],
    )  # fmt: skip
    path = folder / WEIGHTS
    if is_finished(path, identity) and (folder / LOG).exists():
        (folder / LOG).touch()
        detector = load_detector(path, compute)[0]
        _compile(detector, settings, compute)  # as after a training: its last bits are those of compiled code
        return detector, pd.read_parquet(folder / LOG)
    with compute.global_seed(*names, "weights"):
        detector = build(settings, len(card.classes))
    detector.network.to(compute.device)
    _compile(detector, settings, compute)
    optimizer = optimizer_of(detector, settings)

    def step(number: int) -> dict[str, float | torch.Tensor]:
        rate = learning_rate(settings, number)
        set_learning_rate(optimizer, rate)
        batch = recipe.batch(number, compute.device)
        # The library samples anchors and regions with the global generator.
        with compute.global_seed(*names, "sampling", number), compute.autocast():
            losses = detector.losses(batch)
        total = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        optimizer.step()
        # Tensors: to look at one here would make the host wait for the device in every step.
        return {"learning_rate": rate, "total": total.detach(), **{name: v.detach() for name, v in losses.items()}}

    log = fit(
        step, {"network": detector.network, "optimizer": optimizer}, steps=settings.steps, folder=folder,
        identity=identity, every=settings.checkpoint_every, title="detector", callback=callback, watch=watch,
        explain=lambda number: _explain(recipe, settings, number),
    )  # fmt: skip
    write_table(folder / LOG, log)
    save_state(detector.network.state_dict(), path, {"identity": identity, **card.to_json()})
    drop_checkpoint(folder)
    return detector, log


def _compile(detector: Detector, settings: Detection, compute: Compute) -> None:
    if settings.compile and isinstance(detector, BatchedDetector):
        replace(compute, compile=True).prepare()  # refuses where there is no compiler
        detector.compile()


def _explain(recipe: Recipe, settings: Detection, step: int) -> str:
    batch = "; ".join(
        f"{d.pool} patches {d.patches.tolist()} in symmetries {d.symmetries.tolist()}" for d in recipe.draw(step)
    )
    return f"Its batch: {batch}. Lower the learning rate (detection.learning_rate = {settings.learning_rate:g})."


def load_detector(path: Path, compute: Compute) -> tuple[Detector, Card]:
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
        settings = validate(Detection, about["settings"], source=str(path))
        card = Card(settings, tuple(about["classes"]), int(about["patch_size"]))
        detector = build_untrained(settings, len(card.classes))
        detector.network.load_state_dict(state)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CompanionError(f"{path} does not hold the weights of a detector: {error}") from None
    detector.network.to(compute.device)
    return detector, card


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
