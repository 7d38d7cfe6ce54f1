"""Where and how a network runs: device, precision, compiling, and processes that train together."""

from __future__ import annotations

import os
import shutil
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from companion import seeds
from companion.errors import CompanionError
from companion.config.profile import Profile


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
                network.compile(dynamic=False)

    def send(self, values: torch.Tensor) -> torch.Tensor:
        """`values` on the device, without waiting for what the device is doing."""
        return send(values, self.device)

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

    def wait(self) -> None:
        """Until every process has come here."""
        if self.processes > 1:
            torch.distributed.barrier()

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


def send(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """`values` on `device`; a copy to a GPU waits neither for what the GPU is doing nor for itself."""
    if values.device == device or device.type == "cpu":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def uncompiled(*networks: torch.nn.Module) -> AbstractContextManager[object]:
    """A context in which compiled networks run uncompiled.

    For batches of a size or precision that is met once: each would be compiled anew, which takes minutes.
    """
    parts = (part for network in networks for part in network.modules())
    if any(getattr(part, "_compiled_call_impl", None) is not None for part in parts):
        return torch.compiler.set_stance("force_eager")
    return nullcontext()


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
