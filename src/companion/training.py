"""What all networks share: the device that they run on, and a training loop that can be stopped and continued.

The loop keeps no random state: what step i draws depends on i alone (`seeds`), so a training that was killed and
continued ends with the weights that it would have had, to the bit on the CPU.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
import torch
from tqdm import tqdm

from companion.config import sections
from companion.errors import CompanionError
from companion.provenance import code_hashes, hash_value, write_json
from companion.weights import load_state, save_state

CHECKPOINT = "checkpoint"  # folder beside the results; gone when the stage is done
CHECK_EVERY = 20  # steps between looks at the losses: reading one makes the host wait for the device


# --- device -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Device:
    """Where and how networks run.

    Attributes
    ----------
    torch : the device
    dtype : of matrix products and convolutions
    compile : networks given to `prepare` are compiled
    channels_last : networks given to `prepare` keep the channels of a pixel together in memory
    """

    torch: torch.device
    dtype: torch.dtype = torch.float32
    compile: bool = False
    channels_last: bool = False

    def autocast(self) -> torch.autocast:
        """Mixed precision where the profile asks for it; a no-op in float32."""
        return torch.autocast(self.torch.type, dtype=self.dtype, enabled=self.dtype != torch.float32)

    def prepare(self, *networks: torch.nn.Module) -> None:
        """Compile networks and lay their weights out as the profile asks; in place, and state dicts stay the same."""
        if self.compile and self.torch.type == "cpu" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
            raise CompanionError(
                "device.compile: true needs a C++ compiler, and there is none; install g++ or say false"
            )
        for network in networks:
            if self.channels_last:
                network.to(memory_format=torch.channels_last)
            if self.compile and getattr(network, "_compiled_call_impl", None) is None:
                network.compile(dynamic=False)

    def send(self, values: torch.Tensor) -> torch.Tensor:
        """`values` on the device; a copy to a GPU waits neither for what the GPU is doing nor for itself."""
        if self.torch.type == "cpu" or values.device.type == self.torch.type:
            return values.to(self.torch)
        return values.pin_memory().to(self.torch, non_blocking=True)

    def adamw(self, network: torch.nn.Module, rate: float, **more: Any) -> torch.optim.AdamW:
        """AdamW, in one kernel on a GPU."""
        fused = True if self.torch.type == "cuda" else None
        return torch.optim.AdamW(network.parameters(), lr=rate, fused=fused, **more)

    @contextmanager
    def global_seed(self, seed: int) -> Iterator[None]:
        """A context in which torch's global generator has a seed, for libraries that draw from it; restored after."""
        with torch.random.fork_rng(devices=[self.torch] if self.torch.type == "cuda" else []):
            torch.manual_seed(seed)
            yield


class Recorded:
    """A function of tensors of fixed shapes; on a GPU recorded once as a CUDA graph and then replayed.

    A small network's step is thousands of kernels of microseconds each, which the host cannot launch fast enough; a
    replay is one launch. Elsewhere the function is simply called.

    Parameters
    ----------
    function : returns a tensor and leaves gradients in `network`; may not wait for the device, and draws random
        numbers from torch's global generator alone
    network : whose gradients and buffers the function changes
    """

    def __init__(self, function: Callable[..., torch.Tensor], network: torch.nn.Module) -> None:
        self.function, self.network, self.graphs = function, network, {}

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        if inputs[0].device.type != "cuda":
            return self.function(*inputs)
        shapes = tuple((value.shape, value.dtype) for value in inputs)
        if shapes not in self.graphs:
            self.graphs[shapes] = self._record([value.clone() for value in inputs])
        graph, held, gradients, result = self.graphs[shapes]
        for kept, value in zip(held, inputs, strict=True):
            kept.copy_(value, non_blocking=True)
        graph.replay()
        for parameter, gradient in zip(self.network.parameters(), gradients, strict=True):
            parameter.grad = gradient
        return result.clone()

    def _record(self, held: list[torch.Tensor]) -> tuple[Any, ...]:
        drawn, buffers = torch.cuda.get_rng_state(), [value.clone() for value in self.network.buffers()]
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # libraries choose their kernels and compile before anything is recorded
            for _ in range(3):
                self.function(*held)
        torch.cuda.current_stream().wait_stream(stream)
        self.network.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            result = self.function(*held)
        with torch.no_grad():
            for value, before in zip(self.network.buffers(), buffers, strict=True):
                value.copy_(before)
        torch.cuda.set_rng_state(drawn)
        return graph, held, [parameter.grad for parameter in self.network.parameters()], result


def open_device(settings: sections.Device) -> Device:
    """The device of a profile; sets the number of CPU threads and deterministic kernels."""
    if settings.name == "cuda" and not torch.cuda.is_available():
        raise CompanionError("device.name: cuda, but torch sees no GPU; use auto or cpu")
    use_gpu = settings.name != "cpu" and torch.cuda.is_available()
    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(not use_gpu)  # on GPUs some of RoIAlign's gradients have no such kernel
    torch.utils.deterministic.fill_uninitialized_memory = False  # a debugging aid that costs a tenth of the time
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    place = torch.device("cuda" if use_gpu else "cpu")
    return Device(place, getattr(torch, settings.precision), settings.compile, settings.channels_last)


def uncompiled(*networks: torch.nn.Module) -> AbstractContextManager[object]:
    """A context in which compiled networks run uncompiled.

    For batches of a size or precision that is met once: each would be compiled anew, which takes minutes.
    """
    parts = (part for network in networks for part in network.modules())
    if any(getattr(part, "_compiled_call_impl", None) is not None for part in parts):
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


@contextmanager
def enough_memory(what: str) -> Iterator[None]:
    """Turn a device's lack of memory into a `CompanionError` that says what to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        first = str(error).splitlines()[0]
        raise CompanionError(f"{what}: the device's memory is too small; lower its batch_size ({first})") from error


# --- training -----------------------------------------------------------------------------------------------


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
