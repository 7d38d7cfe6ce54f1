"""Noise put back from a measured model, for autoencoders that carry the signal and lose the noise.

The residual of the training patches (patch minus its reconstruction) is measured per micrograph: its variance as
a straight line in the grey level, as counting statistics with detector noise give it (Foi et al. 2008), and its
mean power spectrum, which holds the spatial correlation and the stripes of scan lines. A generated image gets the
noise of one training micrograph, drawn at random. Only training micrographs are looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft, ndimage, optimize

from companion.errors import CompanionError
from companion.micrographs.patches import Patches

LEVELS = 12  # bins of grey level through which the line of the variance is fitted
EDGE_PX = 3  # around a defect that does not count as background
LOWEST_VARIANCE = 0.25  # squared grey levels


@dataclass(frozen=True)
class NoiseModel:
    """Noise of M micrographs.

    Attributes
    ----------
    line : float [M, 2]: variance in squared grey levels at grey level 0, and its rise per grey level
    spectrum : float32 [M, S, S/2 + 1]: mean power of the residual divided by its standard deviation, 1 for white
    """

    line: NDArray[np.float64]
    spectrum: NDArray[np.float32]

    def standard_deviation(self, micrograph: int, grey: NDArray[np.floating]) -> NDArray[np.floating]:
        """Of the noise, in grey levels, where the signal is `grey`."""
        offset, slope = map(float, self.line[micrograph])
        return np.sqrt(np.maximum(offset + slope * grey, LOWEST_VARIANCE))

    def add(
        self, signals: NDArray[np.floating], rngs: Sequence[np.random.Generator], threads: int = 1
    ) -> NDArray[np.float32]:
        """Noiseless images [n, S, S], grey levels 0-255, each with the noise of one of the micrographs.

        Every image has a generator of its own, so that none depends on the others.

        Raises
        ------
        CompanionError
            When the images are not of the size that the noise was measured at.
        """
        if signals.shape[-1] != self.spectrum.shape[1]:
            raise CompanionError(
                f"the noise was measured on patches of {self.spectrum.shape[1]} px, images have {signals.shape[-1]} px"
            )

        def add(signal: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.float32]:
            micrograph, signal = int(rng.integers(len(self.line))), np.asarray(signal, dtype=np.float32)
            white = fft.rfft2(rng.standard_normal(signal.shape, dtype=np.float32))
            shaped = fft.irfft2(white * np.sqrt(self.spectrum[micrograph]), s=signal.shape)  # mean 0, variance 1
            return signal + shaped * self.standard_deviation(micrograph, signal)

        with ThreadPoolExecutor(threads) as workers:  # NumPy and SciPy let threads work side by side
            return np.stack(list(workers.map(add, signals, rngs)))


def measure(train: Patches, decoded: NDArray[np.floating]) -> NoiseModel:
    """Noise model of training patches, from their background: at a defect's edge the residual holds signal as well.

    Parameters
    ----------
    train : training patches with images
    decoded : [P, S, S], their reconstructions, grey levels (rounded or not)

    Raises
    ------
    CompanionError
        When there is no patch, or no background at all.
    """
    if train.images is None or len(train) == 0:
        raise CompanionError("noise is measured on training patches with images, but there are none")
    images, micrographs = train.images, train.index["image"].to_numpy()
    lines, spectra = [], []
    for name in dict.fromkeys(micrographs):
        chosen = np.flatnonzero(micrographs == name)
        background = np.stack([~ndimage.binary_dilation(train.instances[p] > 0, iterations=EDGE_PX) for p in chosen])
        if not background.any():
            raise CompanionError(f"no background in the training patches of {name}, so its noise cannot be measured")
        signal = np.stack([np.asarray(decoded[p], dtype=np.float32) for p in chosen])
        residual = np.stack([np.asarray(images[p], dtype=np.float32) for p in chosen]) - signal
        residual -= residual[background].mean()
        line = _variance_line(signal[background], residual[background])
        scaled = residual / np.sqrt(np.maximum(line[0] + line[1] * signal, LOWEST_VARIANCE)) * background
        power = np.sum([np.abs(np.fft.rfft2(patch)) ** 2 for patch in scaled], axis=0) / background.sum()
        lines.append(line)
        spectra.append(power)
    return NoiseModel(np.array(lines), np.array(spectra, dtype=np.float32))


def _variance_line(signal: NDArray[np.float32], residual: NDArray[np.float32]) -> tuple[float, float]:
    # Variance in bins of equally many pixels; the ends, where defects and rare grey levels are, count as the rest.
    edges = np.quantile(signal, np.linspace(0, 1, LEVELS + 1)[1:-1])
    bins = np.searchsorted(edges, signal)
    count = np.maximum(np.bincount(bins, minlength=LEVELS), 1)
    level = np.bincount(bins, weights=signal, minlength=LEVELS) / count
    variance = np.bincount(bins, weights=residual.astype(float) ** 2, minlength=LEVELS) / count
    used = np.bincount(bins, minlength=LEVELS) > 0
    # Neither counting nor detector noise falls with the grey level, so a fall is scatter and must not be extrapolated.
    (offset, slope), _ = optimize.nnls(np.stack([np.ones(used.sum()), level[used]], axis=1), variance[used])
    return float(offset), float(slope)
