"""What both networks share: device, precision, and a training loop that can be stopped and continued.

The loop keeps no random state: the draws of step i depend on i alone (`seeds`), so a run that was killed
and continued ends with the weights it would have had, to the bit on the CPU. Files hold tensors and JSON
(safetensors), never pickles.
"""

from __future__ import annotations

import json
import math
import time
import zlib
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

from companion import seeds
from companion.errors import CompanionError
from companion.params import Profile
from companion.provenance import atomic, code_hashes, hash_value, write_json

CHECKPOINT = "checkpoint"


class Stateful(Protocol):
    """Anything with torch's state_dict interface: a module, an optimiser, a weight average."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


@dataclass(frozen=True)
class Compute:
    """Where and how a network runs."""

    device: torch.device
    dtype: torch.dtype
    root_seed: int

    def autocast(self) -> torch.autocast:
        """Mixed precision where the profile asks for it; a no-op in float32."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def generator(self, *names: str | int) -> torch.Generator:
        """CPU generator for a path of names: the same draws whatever the device."""
        return seeds.torch_generator(self.root_seed, *names)

    @contextmanager
    def global_seed(self, *names: str | int):
        """Torch's global generator seeded for a path of names, for libraries that draw from it; restored after."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(seeds.integer(self.root_seed, *names))
            yield


def compute(profile: Profile) -> Compute:
    """Device and precision of a profile; sets the number of CPU threads and deterministic kernels.

    Raises
    ------
    CompanionError
        When the profile asks for a GPU and there is none.
    """
    if profile.device == "cuda" and not torch.cuda.is_available():
        raise CompanionError("device: cuda, but torch sees no GPU; use device: auto or cpu")
    use_gpu = profile.device != "cpu" and torch.cuda.is_available()
    torch.set_num_threads(profile.threads)
    torch.use_deterministic_algorithms(not use_gpu)  # on GPUs some of RoIAlign's gradients have no such kernel
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs a tenth of the time
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    return Compute(torch.device("cuda" if use_gpu else "cpu"), getattr(torch, profile.precision), profile.root_seed)


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
    """Identity of a training: the code of `module` and what it imports, its parameters and input hashes."""
    return hash_value({"code": code_hashes(module), "inputs": inputs, "torch": torch.__version__})


def fit(
    step: Callable[[int], dict[str, float]],
    parts: dict[str, Stateful],
    *,
    steps: int,
    folder: Path,
    identity: str,
    every: int,
    title: str = "training",
    callback: Callable[[int], None] | None = None,
) -> pd.DataFrame:
    """Run ``step(i)`` for i = 0 ... steps-1, from the last checkpoint if there is one of the same identity.

    Parameters
    ----------
    step : does optimiser step i and returns its losses; must draw random numbers by i only
    parts : everything that changes during training, saved and restored together
    steps : total number of optimiser steps
    folder : where ``checkpoint/state.safetensors`` and ``checkpoint/progress.json`` are kept
    identity : `fingerprint` of this training; a checkpoint of another identity is not used
    every : steps between checkpoints
    title : what the progress bar says
    callback : called after each checkpoint with the number of steps done

    Returns
    -------
    One row per step: step, and each loss.

    Raises
    ------
    CompanionError
        When a loss is not finite; the last good checkpoint stays.
    """
    path = folder / CHECKPOINT / "state.safetensors"
    start, log = _restore(path, parts, identity)
    began = time.monotonic()
    for i in tqdm(range(start, steps), desc=title, initial=start, total=steps, mininterval=2, leave=False):
        losses = step(i)
        if not all(math.isfinite(value) for value in losses.values()):
            kept = f"the checkpoint of step {i // every * every} is kept" if i >= every else "no checkpoint yet"
            raise CompanionError(f"{title}: loss is not finite at step {i}: {losses}; {kept}. Lower the learning rate.")
        log.append({"step": i, **losses})
        if (i + 1) % every == 0 or i + 1 == steps:
            save_state({name: part.state_dict() for name, part in parts.items()}, path,
                       {"identity": identity, "step": i + 1, "log": log})  # fmt: skip
            left = (time.monotonic() - began) / (i + 1 - start) * (steps - i - 1)
            write_json(path.parent / "progress.json", {"title": title, "step": i + 1, "steps": steps, "left_s": left})
            if callback:
                callback(i + 1)
    return pd.DataFrame(log)


def _restore(path: Path, parts: dict[str, Stateful], identity: str) -> tuple[int, list[dict[str, float]]]:
    if not path.exists():
        return 0, []
    try:
        state, about = load_state(path)
    except CompanionError:
        return 0, []  # a broken checkpoint is worth nothing: start again
    if about.get("identity") != identity:
        return 0, []
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return int(about["step"]), list(about["log"])


def save_state(state: Any, path: Path, about: dict[str, Any]) -> None:
    """Write nested dicts and lists with tensors as safetensors, atomically; `about` and structure as JSON metadata."""
    tensors: dict[str, torch.Tensor] = {}

    def strip(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            key = f"t{len(tensors)}"
            tensors[key] = value.detach().to("cpu").contiguous().clone()
            return {"tensor": key}
        if isinstance(value, dict):
            return {"dict": [[key, strip(item)] for key, item in value.items()]}
        if isinstance(value, (list, tuple)):
            return {"list": [strip(item) for item in value]}
        return {"plain": value}

    structure = strip(state)
    content = {"structure": structure, "about": about, "checksum": _checksum(tensors, structure, about)}
    with atomic(path) as temporary:
        # One entry only: safetensors keeps its metadata in no particular order, and equal states give equal bytes.
        save_file(tensors, temporary, metadata={"state": json.dumps(content)})


def _checksum(tensors: dict[str, torch.Tensor], *texts: Any) -> int:
    """CRC-32 over the bytes of all tensors and the JSON of `texts`: safetensors itself checks nothing."""
    value = zlib.crc32(json.dumps(texts).encode())
    for tensor in tensors.values():
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).cpu().numpy(), value)
    return value


def load_state(path: Path, device: str = "cpu") -> tuple[Any, dict[str, Any]]:
    """Read what `save_state` wrote: (state, about).

    Raises
    ------
    CompanionError
        When the file is missing, broken or foreign.
    """
    try:
        with safe_open(path, framework="pt", device=device) as file:
            found = json.loads((file.metadata() or {})["state"])
            structure, about = found["structure"], found["about"]
            tensors = {key: file.get_tensor(key) for key in _keys(structure)}
        if found.get("checksum") not in (None, _checksum(tensors, structure, about)):  # older files have none
            raise ValueError("its content is not as it was written")
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CompanionError(f"{path} is not a weights file of this package: {error}") from None

    def fill(value: dict[str, Any]) -> Any:
        kind, content = next(iter(value.items()))
        if kind == "tensor":
            return tensors[content]
        if kind == "dict":
            return {key: fill(item) for key, item in content}
        return [fill(item) for item in content] if kind == "list" else content

    return fill(structure), about


def _keys(structure: dict[str, Any]) -> list[str]:
    """Names of the tensors, in the order in which they were counted."""
    kind, content = next(iter(structure.items()))
    if kind == "tensor":
        return [content]
    items = [item for _, item in content] if kind == "dict" else content if kind == "list" else []
    return [key for item in items for key in _keys(item)]


def is_finished(path: Path, identity: str) -> bool:
    """Whether `path` holds the final weights of the training with this identity; they are then this run's, too."""
    if not path.exists():
        return False
    try:
        finished = load_state(path)[1].get("identity") == identity
    except CompanionError:
        return False
    if finished:
        path.touch()
    return finished


def drop_checkpoint(folder: Path) -> None:
    """Remove the checkpoint of a training whose final weights are written."""
    for name in ("state.safetensors", "progress.json"):
        (folder / CHECKPOINT / name).unlink(missing_ok=True)
    if (folder / CHECKPOINT).is_dir() and not any((folder / CHECKPOINT).iterdir()):
        (folder / CHECKPOINT).rmdir()
