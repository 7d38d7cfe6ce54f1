"""From noise and a mask to a micrograph patch.

Every image has random numbers of its own, named by its number, so image i is the same in any subset, in any order and
after any interruption. Batches are padded to one size, because the last bits of a convolution can depend on it;
another `batch_size` gives the same grey levels but for rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from companion.config import diffusion as settings_of
from companion.device import Device, enough_memory, uncompiled
from companion.diffusion.autoencoder import Autoencoder, reconstruct
from companion.diffusion.denoiser import Denoiser, outlined, sampler
from companion.diffusion.noise import NoiseModel, measure
from companion.errors import CompanionError
from companion.micrographs.patches import Patches
from companion.provenance import hash_arrays, write_array
from companion.seeds import Seeds
from companion.training import CHECKPOINT, fingerprint
from companion.weights import digest

Images = NDArray[np.uint8]  # [n, S, S]: grey levels, or masks as `outlined` gives them


@dataclass(frozen=True)
class LatentDiffusion:
    """Trained networks, and how images are drawn with them.

    Attributes
    ----------
    settings : the profile's section; guidance needs a denoiser that was trained for it
    seeds : the path of names that the random numbers of all images have in common
    noise : put back after decoding; None: images are what the autoencoder decodes, as in the paper
    """

    autoencoder: Autoencoder
    denoiser: Denoiser
    settings: settings_of.Sampling
    device: Device
    seeds: Seeds
    noise: NoiseModel | None = None

    def __post_init__(self) -> None:
        if self.settings.guidance not in (1, [1]) and not self.denoiser.config["mask_dropout"]:
            said = f"sampling.guidance is {self.settings.guidance}, but the denoiser was never trained without a mask"
            raise CompanionError(f"{said}; train it with diffusion.denoiser.mask_dropout, e.g. 0.1")

    def generate(self, masks: Patches, folder: Path) -> Images:
        """Images of all masks; finished batches are kept in ``folder/checkpoint`` and not drawn again."""
        shown, size = outlined(masks), self.settings.batch_size
        identity = fingerprint(
            "companion.diffusion.sample", settings=self.settings.model_dump(mode="json"), seeds=self.seeds.integer(),
            precision=str(self.device.dtype), networks=[digest(self.autoencoder), digest(self.denoiser)],
            data=hash_arrays(shown, *((self.noise.line, self.noise.spectrum) if self.noise else ())),
        )[:16]  # fmt: skip
        images = np.zeros(shown.shape, dtype=np.uint8)
        for start in tqdm(range(0, len(images), size), desc="sampling", mininterval=2, leave=False):
            path = folder / CHECKPOINT / f"images-{identity}-{start}.npy"
            here = range(start, min(start + size, len(images)))
            if not path.exists():
                write_array(path, self.sample(shown[here], here))
            images[here] = np.load(path, allow_pickle=False)
        return images

    def each(self) -> list[LatentDiffusion]:
        """One for every guidance that the settings list, which one to draw with is chosen from (`choose_guidance`)."""
        found = np.atleast_1d(self.settings.guidance).tolist()
        return [replace(self, settings=self.settings.model_copy(update={"guidance": one})) for one in found]

    @torch.no_grad()
    def sample(self, masks: Images, numbers: Sequence[int]) -> Images:
        """Images of given masks and image numbers; the same mask and number give the same image."""
        self.device.prepare(self.denoiser.unet, self.autoencoder.vq.decoder)
        size, images = self.settings.batch_size, np.zeros(masks.shape, dtype=np.uint8)
        for start in range(0, len(images), size):
            here = slice(start, min(start + size, len(images)))
            batch = np.zeros((size, *masks.shape[1:]), dtype=np.uint8)  # padded with empty masks
            batch[: here.stop - start] = masks[here]
            with enough_memory("sampling"):
                decoded = self._denoise(torch.from_numpy(batch), numbers[here])
            images[here] = put_back(self.noise, decoded, self.seeds, numbers[here])
        return images

    def sample_few(self, masks: Images, numbers: Sequence[int]) -> Images:
        """`sample` for a few images that are shown: in one batch of their number, uncompiled, as none comes again."""
        few = self.settings.model_copy(update={"batch_size": max(1, len(masks))})
        with uncompiled(self.autoencoder, self.denoiser):
            return replace(self, settings=few, device=replace(self.device, compile=False)).sample(masks, numbers)

    def _denoise(self, masks: torch.Tensor, numbers: Sequence[int]) -> NDArray[np.float32]:
        side, device = masks.shape[-1] // self.autoencoder.downsampling, self.device
        shape = (self.autoencoder.latent_channels, side, side)
        rngs = [self.seeds.torch("image", int(number)) for number in numbers]

        def draw() -> torch.Tensor:  # (B, C, s, s), zeros where the batch is padded
            drawn = torch.zeros(len(masks), *shape)
            for k, rng in enumerate(rngs):
                drawn[k] = torch.randn(shape, generator=rng)
            return device.send(drawn)

        scheduler, latents = sampler(self.denoiser.config, self.settings), draw()
        masks, scale = device.send(masks), self.settings.guidance
        with device.autocast():
            features = self.denoiser.mask_encoder(masks)  # once: the mask stays
            if scale != 1:  # every patch twice in one batch: with its mask, and with none
                hidden = masks.new_zeros(len(masks))
                features = torch.cat([features, self.denoiser.mask_encoder(masks, hidden)])
        for timestep in scheduler.timesteps:
            with device.autocast():
                times = device.send(timestep).expand(len(features))
                seen = latents if scale == 1 else torch.cat([latents, latents])
                predicted = self.denoiser(seen, times, features).float()
            if scale != 1:  # classifier-free guidance (Ho and Salimans 2022)
                masked, unmasked = predicted.chunk(2)
                predicted = unmasked + scale * (masked - unmasked)
            more = {"eta": self.settings.eta, "variance_noise": draw()} if self.settings.sampler == "ddim" else {}
            latents = scheduler.step(predicted, timestep, latents, **more).prev_sample
        with device.autocast():
            return self.autoencoder.decode(latents)[: len(numbers)].float().cpu().numpy()


def noise_of(train: Patches, autoencoder: Autoencoder, settings: settings_of.Sampling) -> NoiseModel | None:
    """The noise to put back after decoding, measured on training patches; None where the profile asks for none."""
    return measure(train, reconstruct(autoencoder, train.images)) if settings.noise == "measured" else None


def put_back(noise: NoiseModel | None, decoded: NDArray, seeds: Seeds, numbers: Sequence[int]) -> Images:
    """Decoded grey levels [n, S, S] with measured noise, drawn by image numbers (None: as they are), rounded."""
    if noise:
        decoded = noise.add(decoded, [seeds.rng("noise", number) for number in numbers], torch.get_num_threads())
    return np.rint(np.clip(decoded, 0, 255)).astype(np.uint8)
