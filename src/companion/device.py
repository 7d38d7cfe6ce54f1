"""The device that networks run on, and how: precision, compiling, CUDA graphs, memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from companion.config import sections
from companion.errors import CompanionError


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
