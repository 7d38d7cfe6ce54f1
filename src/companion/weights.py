"""Weights and checkpoints as files: safetensors with JSON, never pickles."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from companion.errors import CompanionError
from companion.provenance import atomic


def save_state(state: Any, path: Path, about: dict[str, Any]) -> None:
    """Write nested dicts and lists with tensors as safetensors, atomically; `about` and structure as JSON metadata."""
    tensors: dict[str, torch.Tensor] = {}
    storages: set[int] = set()

    def strip(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            key = f"t{len(tensors)}"
            tensor = value.detach().to("cpu").contiguous()
            memory = tensor.untyped_storage()
            if memory.data_ptr() in storages or memory.nbytes() != tensor.nbytes:  # safetensors refuses shared memory
                tensor = tensor.clone()
            storages.add(memory.data_ptr())
            tensors[key] = tensor
            return {"tensor": key}
        if isinstance(value, dict):
            return {"dict": [[key, strip(item)] for key, item in value.items()]}
        if isinstance(value, (list, tuple)):
            return {"list": [strip(item) for item in value]}
        return {"plain": value}

    content: dict[str, Any] = {"structure": strip(state), "about": about}
    content["checksum"] = _checksum(tensors, content["structure"], about)
    with atomic(path) as temporary:
        # One entry only: safetensors keeps its metadata in no particular order, and equal states give equal bytes.
        try:
            save_file(tensors, temporary, metadata={"state": json.dumps(content)})
        except SafetensorError as error:
            raise CompanionError(f"{path} could not be written: {error}") from error


def _checksum(tensors: dict[str, torch.Tensor], *texts: Any) -> int:
    """CRC-32 over the bytes of all tensors and the JSON of `texts`: safetensors itself checks nothing."""
    value = zlib.crc32(json.dumps(texts).encode())
    for tensor in tensors.values():
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).cpu().numpy(), value)
    return value


def digest(network: torch.nn.Module) -> str:
    """Identity of a network: sha256 over its configuration and its weights, on whatever device and in any layout."""
    found = hashlib.sha256(json.dumps(getattr(network, "config", None), sort_keys=True).encode())
    for name, values in network.state_dict().items():
        found.update(name.encode())
        found.update(values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def load_state(path: Path, device: str = "cpu") -> tuple[Any, dict[str, Any]]:
    """Read what `save_state` wrote: (state, about); a missing, broken or foreign file is a `CompanionError`."""
    try:
        with safe_open(path, framework="pt", device=device) as file:
            found = json.loads((file.metadata() or {})["state"])
            structure, about = found["structure"], found["about"]
            # In the order in which they were counted, which the checksum has, too.
            tensors = {key: file.get_tensor(key) for key in sorted(file.keys(), key=lambda name: int(name[1:]))}
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


def load_network(path: Path, kind: str, build: Callable[[Any], torch.nn.Module], device: str | torch.device):
    """A network in evaluation mode and without gradients, and what its file says about it.

    Parameters
    ----------
    path : what `save_state` wrote, its `about` with the entries "kind" and "config"
    kind : what the file must hold; another network is a `CompanionError`
    build : the network of a configuration
    """
    state, about = load_state(path)
    if about.get("kind") != kind:
        raise CompanionError(f"{path} holds '{about.get('kind')}', not a {kind}; give the file that stage 04 wrote")
    network = build(about["config"])
    network.load_state_dict(state)
    return network.to(device).eval().requires_grad_(False), about


def is_finished(path: Path, identity: str) -> bool:
    """Whether `path` holds the final weights of the training with this identity; they are then this run's, too."""
    try:
        return path.exists() and load_state(path)[1].get("identity") == identity
    except CompanionError:
        return False
