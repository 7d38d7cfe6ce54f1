"""What all trainings share: a loop that can be stopped and continued.

The loop keeps no random state: what step i draws depends on i alone (`seeds`), so a training that was killed and
continued ends with the weights that it would have had, to the bit on the CPU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from tqdm import tqdm

from companion.device import enough_memory
from companion.errors import CompanionError
from companion.provenance import code_hashes, hash_value, write_json
from companion.weights import load_state, save_state

CHECKPOINT = "checkpoint"  # folder beside the results; gone when the stage is done
CHECK_EVERY = 20  # steps between looks at the losses: reading one makes the host wait for the device


class Stateful(Protocol):
    """Anything with torch's state_dict interface: a module, an optimiser, a weight average."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


def one_cycle(step: int, steps: int, peak: float, warmup_share: float = 0.25) -> float:
    """Learning rate at `step` of `steps`: cosine up to `peak`, cosine down to nearly 0 (Smith and Topin 2019)."""
    rise = max(1.0, warmup_share * steps)
    if step < rise:
        return peak * (0.04 + 0.96 * (1 - math.cos(math.pi * (step + 1) / (rise + 1))) / 2)
    return peak * (1 + math.cos(math.pi * (step - rise) / max(1.0, steps - rise))) / 2 + 1e-9


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def fingerprint(module: str, **inputs: Any) -> str:
    """Identity of a training: the code of `module` and what it imports, and its settings and hashes of data."""
    code = code_hashes(f"import {module}", without=["plots.py"])
    return hash_value({"code": code, "inputs": inputs, "torch": torch.__version__})


def fit(
    step: Callable[[int], dict[str, float | torch.Tensor]],
    parts: dict[str, Stateful],
    *,
    steps: int,
    folder: Path,
    identity: str,
    every: int,
    title: str = "training",
    callback: Callable[[int], None] | None = None,
    explain: Callable[[int], str] | None = None,
    watch: Callable[[pd.DataFrame], None] | None = None,
) -> pd.DataFrame:
    """Run ``step(i)`` for i = 0 ... steps-1, from the last checkpoint if there is one of the same identity.

    Parameters
    ----------
    step : does optimiser step i and returns its losses; must draw random numbers by i only
    parts : everything that changes during training, saved and restored together
    steps : total number of optimiser steps
    folder : where ``checkpoint/<title>.safetensors`` and ``checkpoint/progress.json`` are kept
    identity : `fingerprint` of this training; a checkpoint of another identity is not used
    every : steps between checkpoints
    title : what the progress bar says
    callback : called with the number of steps done before each checkpoint is written, so that what it changes in
        `parts` is in it
    explain : what to say of step i when training diverges there: of its batch, of the setting to change
    watch : called after each checkpoint with the log so far, for those who look on

    Returns
    -------
    One row per step: step, and each loss.

    Raises
    ------
    CompanionError
        When a loss, a weight or the optimiser's memory is not finite, or memory or disk are too small; the last
        good checkpoint stays.
    """
    path = folder / CHECKPOINT / f"{title}.safetensors"
    start, log = _restore(path, parts, identity)
    began, recent = time.monotonic(), []
    for i in tqdm(range(start, steps), desc=title, initial=start, total=steps, mininterval=2, leave=False):
        with enough_memory(f"{title}, step {i}"):
            recent.append({"step": i, **step(i)})
        due = (i + 1) % every == 0 or i + 1 == steps
        if due or len(recent) == CHECK_EVERY:
            log += [_checked(row, title, path, every, explain) for row in _read(recent)]
            recent = []
        if due:
            if callback:
                callback(i + 1)
            state = {name: part.state_dict() for name, part in parts.items()}
            # The loss of a step is computed before its update, which may have spoilt the weights.
            if spoilt := [name for name, value in _tensors(state) if not value.isfinite().all()]:
                raise _diverged(f"after step {i} {_few(spoilt)} not finite", title, path, i, every, explain)
            save_state(state, path, {"identity": identity, "step": i + 1, "log": log})
            left_s = (time.monotonic() - began) / (i + 1 - start) * (steps - i - 1)
            progress = {"title": title, "step": i + 1, "steps": steps, "left_s": left_s}
            write_json(path.parent / "progress.json", progress)
            if watch:
                watch(pd.DataFrame(log))
    return pd.DataFrame(log)


def drop_checkpoint(folder: Path, title: str = "training") -> None:
    """Remove the checkpoint of a training whose final weights are written, and what a killed one was writing."""
    for path in [folder / CHECKPOINT / f"{title}.safetensors", *(folder / CHECKPOINT).glob(".tmp-*")]:
        path.unlink(missing_ok=True)
    (folder / CHECKPOINT / "progress.json").unlink(missing_ok=True)
    if (folder / CHECKPOINT).is_dir() and not any((folder / CHECKPOINT).iterdir()):
        (folder / CHECKPOINT).rmdir()


Explain = Callable[[int], str] | None


def _read(rows: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Rows with numbers instead of tensors, for which the host waits for the device once."""
    tensors = [value for row in rows for value in row.values() if isinstance(value, torch.Tensor)]
    numbers = iter(torch.stack([value.float() for value in tensors]).tolist() if tensors else [])
    return [{k: next(numbers) if isinstance(v, torch.Tensor) else v for k, v in row.items()} for row in rows]


def _checked(row: dict[str, Any], title: str, path: Path, every: int, explain: Explain) -> dict[str, Any]:
    step, losses = row["step"], {name: float(value) for name, value in row.items() if name != "step"}
    if not all(math.isfinite(value) for value in losses.values()):
        raise _diverged(f"loss is not finite at step {step}: {losses}", title, path, step, every, explain)
    return {"step": step, **losses}


def _diverged(what: str, title: str, path: Path, step: int, every: int, explain: Explain) -> CompanionError:
    good = step // every * every
    kept = f"last good checkpoint: step {good}, {path.parent}" if good else "there was no checkpoint yet"
    return CompanionError(f"{title}: {what}; {kept}. {explain(step) if explain else 'Lower the learning rate.'}")


def _tensors(state: Any, name: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Floating tensors of nested dicts and lists, with their paths."""
    if isinstance(state, torch.Tensor):
        if state.is_floating_point():
            yield name, state
    elif isinstance(state, dict | list | tuple):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from _tensors(value, f"{name}.{key}" if name else str(key))


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} {'are' if len(names) > 1 else 'is'}"


def _restore(path: Path, parts: dict[str, Stateful], identity: str) -> tuple[int, list[dict[str, float]]]:
    try:
        state, about = load_state(path)
    except CompanionError:
        return 0, []  # none, or a broken one, which is worth nothing: start again
    if about.get("identity") != identity:
        return 0, []
    for name, part in parts.items():
        part.load_state_dict(state[name])
        for parameter, moments in part.state.items() if isinstance(part, torch.optim.Optimizer) else ():
            for key, value in moments.items():  # laid out in memory as their parameters, as fused kernels want them
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    moments[key] = torch.empty_like(parameter).copy_(value)
    return int(about["step"]), list(about["log"])
