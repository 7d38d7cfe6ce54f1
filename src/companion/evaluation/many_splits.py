"""What many splits buy, shown on simulated differences: the designs of `designs` where the truth is known.

A run of one split cannot reach the models that need several. Here differences are drawn from a known effect, with a
spread between splits and between seeds, and every design estimates it as `designs.overall_effect` would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from companion.evaluation.designs import overall_effect

ASSUMED_SEED_SD = 0.01  # half of the paper's largest gain


def simulated_pairs(
    splits: int, seeds: int, effect: float, split_sd: float, seed_sd: float, rng: np.random.Generator
) -> pd.DataFrame:
    """Differences effect + split_sd z_split + seed_sd z_pair of one N: split, n_train, seed, difference."""
    of_split = np.repeat(rng.normal(effect, split_sd, splits), seeds)
    differences = of_split + rng.normal(0, seed_sd, len(of_split))
    return pd.DataFrame({
        "split": np.repeat(np.arange(1, splits + 1), seeds).astype(str), "n_train": 1,
        "seed": np.tile(np.arange(1, seeds + 1), splits), "difference": differences,
    })  # fmt: skip


def assumed_spread(parts: Mapping[str, Any]) -> tuple[float, float, str]:
    """Spreads for a simulation: those of a run where it has them.

    Parameters
    ----------
    parts : of `designs.variance_components`

    Returns
    -------
    split_sd, seed_sd, and a sentence that says where each is from
    """
    measured = bool(parts["seed_sd"] > 0)
    seed_sd = float(parts["seed_sd"]) if measured else ASSUMED_SEED_SD
    between = bool(np.isfinite(parts["split_sd"]))
    split_sd = float(parts["split_sd"]) if between else seed_sd
    words = (
        f"spread between seeds {seed_sd:.4f} ({'measured in this run' if measured else 'assumed'}), of the effect "
        f"between splits {split_sd:.4f} ({'measured in this run' if between else 'assumed as large: not measurable'})"
    )
    return split_sd, seed_sd, words


def designs_on_simulated_scores(
    effect: float,
    split_sd: float,
    seed_sd: float,
    designs: Sequence[tuple[int, int]],
    rng: np.random.Generator,
    repeats: int = 100,
    level: float = 0.95,
) -> pd.DataFrame:
    """What each design of k splits x m seeds says of a known effect, over repeated draws.

    Parameters
    ----------
    effect, split_sd, seed_sd : F1; of the differences that are drawn
    designs : (splits, seeds)

    Returns
    -------
    splits, seeds, runs (of one arm), model (the one that the design allows), estimate (mean over draws), half_width
    (median, of the intervals that the model gives), coverage (share of them that hold the effect; `level` if they
    are honest), honest_half_width (estimates lie within it of the effect in a share `level` of the draws)
    """
    rows = []
    for splits, seeds in designs:
        found = pd.DataFrame(
            [
                overall_effect(simulated_pairs(splits, seeds, effect, split_sd, seed_sd, rng), level)
                for _ in range(repeats)
            ]
        )
        error = (found["effect"] - effect).abs()
        inside = (found["low"] <= effect) & (effect <= found["high"])
        half = ((found["high"] - found["low"]) / 2).median()
        rows.append((
            splits, seeds, splits * seeds, found["model"].mode()[0], found["effect"].mean(), half, inside.mean(),
            error.quantile(level),
        ))  # fmt: skip
    columns = ["splits", "seeds", "runs", "model", "estimate", "half_width", "coverage", "honest_half_width"]
    return pd.DataFrame(rows, columns=columns)
