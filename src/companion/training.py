"""What both networks share: device, precision, and a training loop that can be stopped and continued.

The loop keeps no random state: the draws of step i depend on i alone (`seeds`), so a run that was killed
and continued ends with the weights it would have had, to the bit on the CPU. Files hold tensors and JSON
(safetensors), never pickles.
"""

from __future__ import annotations

import json
import math
import os
import resource
import shutil
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from tqdm import tqdm

from companion import seeds
from companion.errors import CompanionError
from companion.params import Profile
from companion.provenance import code_hashes, hash_value, write_json
from companion.weights import is_finished, is_main, load_network, load_state, save_state

__all__ = [  # with what belongs to the files of weights, which whoever trains needs too
    "Compute", "Stateful", "compute", "drop_checkpoint", "enough_memory", "fingerprint", "fit", "is_finished",
    "load_network", "load_state", "one_cycle", "save_state", "set_learning_rate",
]  # fmt: skip
CHECKPOINT = "checkpoint"
SPEED = ".speed"  # not an artifact: two runs that end alike do not take the same time
CHECK_EVERY = 20  # steps between looks at the losses: reading one makes the host wait for the device


class Stateful(Protocol):
    """Anything with torch's state_dict interface: a module, an optimiser, a weight average."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


@dataclass(frozen=True)
class Compute:
    """Where and how a network runs.

    Attributes
    ----------
    device, dtype, root_seed : of the profile; dtype is that of matrix products and convolutions
    compile : networks given to `prepare` are compiled
    channels_last : networks given to `prepare` keep the channels of a pixel together in memory
    process, processes : which of how many processes that train together, each on its share of every batch
    """

    device: torch.device
    dtype: torch.dtype
    root_seed: int
    compile: bool = False
    channels_last: bool = False
    process: int = 0
    processes: int = 1

    def autocast(self) -> torch.autocast:
        """Mixed precision where the profile asks for it; a no-op in float32."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def prepare(self, *networks: torch.nn.Module) -> None:
        """Compile networks and lay their weights out as the profile asks; in place, and state dicts stay the same.

        Raises
        ------
        CompanionError
            When compiling is asked for and there is no C++ compiler.
        """
        if self.compile and self.device.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
            raise CompanionError("compile: true needs a C++ compiler, and there is none; install g++ or say false")
        for network in networks:
            if self.channels_last:
                network.to(memory_format=torch.channels_last)
            if self.compile and getattr(network, "_compiled_call_impl", None) is None:
                network.compile()

    def send(self, values: torch.Tensor) -> torch.Tensor:
        """`values` on the device, without waiting for what the device is doing."""
        if self.device.type == "cpu":
            return values
        return values.pin_memory().to(self.device, non_blocking=True)

    def adamw(self, network: torch.nn.Module, rate: float, **more: Any) -> torch.optim.AdamW:
        """AdamW, in one kernel on a GPU."""
        fused = True if self.device.type == "cuda" else None
        return torch.optim.AdamW(network.parameters(), lr=rate, fused=fused, **more)

    @property
    def precision(self) -> list[str | bool]:
        """What the last bits of a result depend on, beside the device."""
        return [str(self.dtype), self.compile, self.channels_last]

    def share(self, batch: torch.Tensor) -> torch.Tensor:
        """This process's part [B / processes, ...] of a batch [B, ...] that every process has drawn.

        Raises
        ------
        CompanionError
            When the batch cannot be shared equally.
        """
        if len(batch) % self.processes:
            raise CompanionError(f"a batch of {len(batch)} cannot be shared equally by {self.processes} processes")
        return batch.chunk(self.processes)[self.process]

    def mean(self, *values: torch.Tensor) -> None:
        """Replace each tensor by its mean over the processes, in place; nothing to do for one process."""
        if self.processes > 1:
            flat = torch.cat([value.detach().flatten() for value in values])
            torch.distributed.all_reduce(flat)
            parts = flat.div_(self.processes).split([value.numel() for value in values])
            for value, part in zip(values, parts, strict=True):
                value.data.copy_(part.view_as(value))

    def means(self, losses: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Losses of the whole batch from those of the processes' shares, without gradients."""
        found = {name: value.detach().clone() for name, value in losses.items()}
        self.mean(*found.values())
        return found

    def gather(self, share: torch.Tensor) -> torch.Tensor:
        """The whole batch [B, ...] of the processes' shares, in its order."""
        if self.processes == 1:
            return share
        parts = [torch.empty_like(share) for _ in range(self.processes)]
        torch.distributed.all_gather(parts, share.contiguous())
        return torch.cat(parts)

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
    device = torch.device("cuda" if use_gpu else "cpu")
    process, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if processes > 1:
        from accelerate import PartialState  # joins the processes that `accelerate launch` has started

        device = PartialState(cpu=not use_gpu).device
    return Compute(
        device, getattr(torch, profile.precision), profile.root_seed, profile.compile, profile.channels_last,
        process, processes,
    )  # fmt: skip


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


@contextmanager
def enough_memory(what: str):
    """Turn a device's lack of memory into a message that says what to lower.

    Raises
    ------
    CompanionError
        When the device's memory is too small for `what`.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        first = str(error).splitlines()[0]
        raise CompanionError(f"{what}: the device's memory is too small; lower its batch_size ({first})") from error


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
        When a loss is not finite, or memory or disk are too small; the last good checkpoint stays.
    """
    path = folder / CHECKPOINT / "state.safetensors"
    start, log = _restore(path, parts, identity)
    began = time.monotonic()
    recent: list[dict[str, Any]] = []
    for i in tqdm(range(start, steps), desc=title, initial=start, total=steps, mininterval=2, leave=False):
        with enough_memory(f"{title}, step {i}"):
            recent.append({"step": i, **step(i)})
        due = (i + 1) % every == 0 or i + 1 == steps
        if due or len(recent) == CHECK_EVERY:
            log += [_checked(row, title, every) for row in recent]
            recent = []
        if due:
            save_state({name: part.state_dict() for name, part in parts.items()}, path,
                       {"identity": identity, "step": i + 1, "log": log})  # fmt: skip
            if is_main():
                _report(path.parent, title, i + 1, steps, (time.monotonic() - began) / (i + 1 - start))
            if callback:
                callback(i + 1)
    return pd.DataFrame(log)


def _checked(row: dict[str, Any], title: str, every: int) -> dict[str, Any]:
    step, losses = row["step"], {name: float(value) for name, value in row.items() if name != "step"}
    if not all(math.isfinite(value) for value in losses.values()):
        kept = f"the checkpoint of step {step // every * every} is kept" if step >= every else "no checkpoint yet"
        raise CompanionError(f"{title}: loss is not finite at step {step}: {losses}; {kept}. Lower the learning rate.")
    return {"step": step, **losses}


def _report(checkpoint: Path, title: str, step: int, steps: int, step_s: float) -> None:
    left = {"title": title, "step": step, "steps": steps, "left_s": step_s * (steps - step)}
    write_json(checkpoint / "progress.json", left)
    gpu = torch.cuda.is_available()
    memory = torch.cuda.max_memory_allocated() if gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rows = [row for row in speed(checkpoint.parent, title).to_dict("records") if row["step"] < step]
    write_json(checkpoint.parent / SPEED / f"{title}.json", [
        *rows, {"step": step, "step_s": step_s, "memory_mib": memory / 2**20, "memory_of": "GPU" if gpu else "process"}
    ])  # fmt: skip


def speed(folder: Path, title: str) -> pd.DataFrame:
    """Throughput of the training `title` in `folder`, one row per checkpoint.

    Returns
    -------
    step; step_s: seconds per step since the process started; memory_mib: its peak so far, of memory_of "GPU" or
    "process"; empty where the training ran elsewhere
    """
    path = folder / SPEED / f"{title}.json"
    return pd.DataFrame(json.loads(path.read_text(encoding="utf-8")) if path.exists() else [])


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
        for parameter, moments in part.state.items() if isinstance(part, torch.optim.Optimizer) else ():
            for key, value in moments.items():  # laid out in memory as their parameters, as fused kernels want them
                if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                    moments[key] = torch.empty_like(parameter).copy_(value)
    return int(about["step"]), list(about["log"])


def drop_checkpoint(folder: Path) -> None:
    """Remove the checkpoint of a training whose final weights are written."""
    if not is_main():
        return
    for name in ("state.safetensors", "progress.json"):
        (folder / CHECKPOINT / name).unlink(missing_ok=True)
    if (folder / CHECKPOINT).is_dir() and not any((folder / CHECKPOINT).iterdir()):
        (folder / CHECKPOINT).rmdir()
