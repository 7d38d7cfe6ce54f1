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
import pandas as pd
from numpy.typing import NDArray
from scipy import fft, ndimage, optimize

from companion.micrographs.patches import Patches

LEVELS = 12  # bins of grey level through which the line of the variance is fitted
EDGE_PX = 3  # around a defect that does not count as background: there the residual holds signal as well
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

    def add(
        self, signals: NDArray[np.floating], rngs: Sequence[np.random.Generator], threads: int = 1
    ) -> NDArray[np.float32]:
        """Noiseless images [n, S, S], grey levels 0-255, each with the noise of one of the micrographs, by its rng."""

        def add(signal: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.float32]:
            micrograph, signal = int(rng.integers(len(self.line))), np.asarray(signal, dtype=np.float32)
            white = fft.rfft2(rng.standard_normal(signal.shape, dtype=np.float32))
            shaped = fft.irfft2(white * np.sqrt(self.spectrum[micrograph]), s=signal.shape)  # mean 0, variance 1
            return signal + shaped * _standard_deviation(self.line[micrograph], signal)

        with ThreadPoolExecutor(threads) as workers:  # NumPy and SciPy let threads work side by side
            return np.stack(list(workers.map(add, signals, rngs)))


def _standard_deviation(line: NDArray[np.float64], signal: NDArray[np.float32]) -> NDArray[np.float32]:
    offset, slope = map(float, line)
    return np.sqrt(np.maximum(offset + slope * signal, LOWEST_VARIANCE))


def measure(train: Patches, decoded: NDArray[np.floating]) -> NoiseModel:
    """Noise model of training patches and their reconstructions [P, S, S] in grey levels, from the background."""
    micrographs, lines, spectra = train.index["image"].to_numpy(), [], []
    for name in dict.fromkeys(micrographs):
        chosen = np.flatnonzero(micrographs == name)
        background = np.stack([~ndimage.binary_dilation(train.instances[p] > 0, iterations=EDGE_PX) for p in chosen])
        signal = np.asarray(decoded[chosen], dtype=np.float32)
        residual = train.images[chosen] - signal
        residual -= residual[background].mean()
        # Variance in bins of equally many pixels; the ends, where defects and rare grey levels are, count as the rest.
        grey, squared = signal[background].astype(float), residual[background].astype(float) ** 2
        bins = np.searchsorted(np.quantile(grey, np.linspace(0, 1, LEVELS + 1)[1:-1]), grey)
        level, variance = pd.DataFrame({"level": grey, "variance": squared}).groupby(bins).mean().to_numpy().T
        # Neither counting nor detector noise falls with the grey level: a fall is scatter, not to be extrapolated.
        line, _ = optimize.nnls(np.stack([np.ones(len(level)), level], axis=1), variance)
        scaled = residual / _standard_deviation(line, signal) * background
        lines.append(line)
        spectra.append((np.abs(np.fft.rfft2(scaled)) ** 2).sum(axis=0) / background.sum())
    return NoiseModel(np.array(lines), np.array(spectra, dtype=np.float32))
