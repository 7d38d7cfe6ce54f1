"""What the blocks of `speed.py` share: patches, trainings as they are, the libraries' own way, and rates."""

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import numpy as np
import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from companion import training
from companion.config import Profile, load_profile, sections
from companion.config.phantom import Phantom
from companion.detection import train as detectors
from companion.detection.data import Detections, recipe_of
from companion.detection.model import Detector, build
from companion.device import Device, open_device
from companion.diffusion import autoencoder as autoencoders
from companion.diffusion import denoiser as denoisers
from companion.diffusion.train import Fitting, denoising_loss, descend, get_autoencoder, get_denoiser
from companion.layout import given as project_file
from companion.micrographs.cutting import cut_patches
from companion.micrographs.dataset import load_dataset
from companion.micrographs.patches import Patches, load_patches
from companion.phantom.render import render_dataset
from companion.seeds import Seeds

SEEDS = Seeds(1, "speed")
Step = Callable[[int], Any]
LIBRARY = {"build": lambda *given: Library(build(*given))}  # for `real_step`: torchvision's own loops


def real_step(train: Callable[[], object], **how: Any) -> tuple[Step, dict[str, Any]]:
    """Step and parts of a training, as `training.fit` gets them; `how` replaces names in the module of a detector's."""
    fit = Mock(side_effect=InterruptedError)
    with patch.object(training, "fit", fit), patch.multiple(detectors, fit=fit, **how), suppress(InterruptedError):
        train()
    return fit.call_args.args


class Library:
    """torchvision's network with its own loops over images."""

    def __init__(self, fast: Detector) -> None:
        self.network, self.resize_px = fast.network, fast.resize_px

    def _images(self, images: torch.Tensor) -> list[torch.Tensor]:
        self.network.transform.min_size = (images.shape[-1],)  # it enlarges nothing
        grey = images.to(next(self.network.parameters())) / 255
        return list(grey[:, None].expand(-1, len(self.network.transform.image_mean), -1, -1))

    def losses(self, batch):
        self.network.train()
        targets = []
        for boxes, labels, ids, instances in zip(batch.boxes, batch.labels, batch.ids, batch.instances, strict=True):
            masks = (instances == ids[labels > 0, None, None]).to(torch.uint8)
            targets.append({"boxes": boxes[labels > 0], "labels": labels[labels > 0], "masks": masks})
        return self.network(self._images(batch.images), targets)

    @torch.no_grad()
    def detect(self, images: torch.Tensor, size: int) -> list[Detections]:
        self.network.eval()
        found = [{name: value.cpu() for name, value in one.items()} for one in self.network(self._images(images))]
        values = ((f["boxes"], f["scores"], f["labels"], f["masks"][:, 0] > 0.5) for f in found)
        return [Detections(*(value.numpy() for value in one)) for one in values]


def usual_loop(P: Profile, device: Device) -> dict[str, Step]:
    """Diffusion as usual, float32: batches encoded again, losses read, the mask encoded at every step of sampling."""
    settings, batch, size = P.diffusion.denoiser, P.diffusion.denoiser.batch_size, P.patches.size
    made = autoencoders.configuration(P.diffusion.autoencoder, (128, 30))
    autoencoder = autoencoders.Autoencoder(made).to(device.torch).eval().requires_grad_(False)
    latent = autoencoder.latent_channels, autoencoder.downsampling
    denoiser = denoisers.Denoiser(denoisers.configuration(settings, 3, *latent)).to(device.torch)
    average = [parameter.detach().clone() for parameter in denoiser.parameters()]
    optimizer, process = device.adamw(denoiser, settings.learning_rate), denoisers.noise_process(denoiser.config)
    images = torch.randint(0, 256, (batch, size, size), device=device.torch)
    masks = torch.randint(0, 4, (batch, size, size), device=device.torch, dtype=torch.uint8)
    with torch.no_grad():
        latents = autoencoder.encode(images)

    def train(_: int) -> None:
        with torch.no_grad():
            clean = autoencoder.encode(images)
        noise, times = torch.randn_like(clean), torch.randint(settings.timesteps, (batch,), device=device.torch)
        loss = denoising_loss(denoiser, process, clean, masks, times, noise, loss=settings.loss)
        optimizer.zero_grad(set_to_none=True)
        descend(loss, denoiser)
        optimizer.step()
        get_ema_multi_avg_fn(settings.ema_decay)(average, list(denoiser.parameters()), None)
        loss.item()

    @torch.no_grad()
    def evaluate(_: int) -> None:
        times = torch.full((batch,), settings.timesteps // 2, device=device.torch)
        denoiser(latents, times, denoiser.mask_encoder(masks))

    @torch.no_grad()
    def decode(_: int) -> None:
        autoencoder.decode(latents)

    return {"denoiser, training": train, "denoiser, one evaluation": evaluate, "autoencoder, decoding": decode}


class Bench:
    """Patches and device of one block, which writes to `work`; a measurement takes `each` seconds."""

    def __init__(self, device: str, each: float, work: Path) -> None:
        self.name, self.each, self.work = device, each, work
        self.P, self.gpu, self.cpu = load_profile("reference"), device == "cuda", Device(torch.device("cpu"))
        self.device = open_device(sections.Device(name=device))

    @staticmethod
    def say(what: str, ok: bool | None = None, **values: Any) -> None:
        """Print one finding; `ok` is None where nothing can be wrong."""
        print(json.dumps({"what": what, "ok": ok, **values}), flush=True)

    @contextmanager
    def trying(self, what: str, **values: Any) -> Iterator[None]:
        """Say of an error that it came: what is found of other things counts."""
        try:
            yield
        except Exception as error:
            self.say(what, ok=False, **values, error=f"{type(error).__name__}: {error}"[:1000])

    def patches(self, size: int = 128) -> Patches:
        """Patches of four phantom micrographs, drawn once for all blocks."""
        folder = self.work / f"patches-{size}"
        if not (folder / "patches.json").exists():  # which is written last
            render_dataset(Phantom(preset="binned", n_images=4), 7, drawn := self.folder())
            dataset = load_dataset(drawn)
            cut_patches(dataset, dataset.files, size, size, 0.25, (0, 1, 2, 3))[0].save(folder)
        return load_patches(folder)

    def folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self.work))

    def fitting(self, device: Device) -> Fitting:
        return Fitting(device, SEEDS, self.folder(), 1000)

    def detector(self, settings: sections.Detection, device: Device, patches: Patches) -> Callable[[], Any]:
        """A training of the arm EXP."""
        recipe = recipe_of("EXP", patches, None, settings, SEEDS)
        return lambda: detectors.train_detector(recipe, settings, device, self.folder())

    def denoiser(self, P: Profile, device: Device, patches: Patches) -> Callable[[], object]:
        autoencoder = self.autoencoder(P, device, patches)
        return lambda: get_denoiser(patches, autoencoder, P.diffusion.denoiser, self.fitting(device))

    def autoencoder(self, P: Profile, device: Device, patches: Patches) -> autoencoders.Autoencoder:
        path = P.diffusion.autoencoder.weights
        settings = P.diffusion.autoencoder.model_copy(update={"weights": None, "steps": 1})
        return get_autoencoder(patches, settings, self.fitting(device), project_file(path) if path else None)[0]

    def rates(self, steps: Mapping[str, Step], per_step: int, start: int = 0) -> dict[str, dict[str, float]]:
        """Images per second and milliseconds per step of things that take turns, so that neighbours meet them alike.

        The device is waited for at the ends of a turn alone, of at most ten steps or 0.2 s. "first_s" is the first
        step's: compiling, recording, allocating. "times" is how much faster each is than the last of `steps`, median
        over the turns.
        """
        first = {name: self._seconds(step, start, 1) for name, step in steps.items()}
        warm = max(self._seconds(step, start + 1, 1) for step in steps.values())
        number, began, length = start + 2, time.perf_counter(), max(1, min(10, int(0.2 / warm)))
        spent: dict[str, list[float]] = {name: [] for name in steps}
        while time.perf_counter() - began < self.each * len(steps) or number < start + 2 + 2 * length:
            for name, step in steps.items():
                spent[name].append(self._seconds(step, number, length) / length)
            number += length
        last = spent[next(reversed(spent))]
        return {
            name: {"images_per_s": per_step / statistics.median(own), "ms_per_step": 1e3 * statistics.median(own),
                   "first_s": first[name], "times": statistics.median(b / a for a, b in zip(own, last, strict=True))}
            for name, own in spent.items()
        }  # fmt: skip

    def rate(self, step: Step, per_step: int, start: int = 0) -> dict[str, float]:
        """`rates` of one thing."""
        return {name: rate for name, rate in self.rates({"": step}, per_step, start)[""].items() if name != "times"}

    def _seconds(self, step: Step, number: int, count: int) -> float:
        began = time.perf_counter()
        for k in range(count):
            step(number + k)
        if self.gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - began


def distance(found: torch.Tensor | np.ndarray, wanted: torch.Tensor | np.ndarray) -> float:
    """Norm of the difference over the norm of what is wanted."""
    a, w = (torch.as_tensor(v).detach().double().cpu() for v in (found, wanted))
    return float((a - w).norm() / w.norm().clamp(min=1e-12))
