"""What generated data are worth: beside fresh micrographs and perfect images, and in labelled micrographs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.optimize import isotonic_regression

from companion.evaluation.significance import paired_t
from companion.evaluation.wording import CONDITION
from companion.stats import percentile_interval

FALL = ("EXP+FRESH", "EXP+RENDER", "EXP+GEN", "EXP")  # each has what the next has, and one thing more


def waterfall(chosen: pd.DataFrame, measures: Sequence[str], level: float) -> tuple[pd.DataFrame, list[str]]:
    """From more labelled micrographs down to none: the arms of `FALL`, and what is lost at each step, paired by seed.

    From `thresholds.headline`, steps of the conditions that have the most arms of `FALL`, two or more: split, n_train,
    measure, arm, above (the arm above), score (mean over seeds), step (score minus that of the arm above; NaN for the
    first), low, high, n; and a sentence for every condition that lacks an arm.
    """
    rows, missing, columns = [], [], [*CONDITION, "measure", "arm", "above", "score", "mean", "low", "high", "n"]
    most = max(2, chosen[chosen["arm"].isin(FALL)].groupby(CONDITION)["arm"].nunique().max())
    for (split, n), own in chosen.groupby(CONDITION):
        arms = [arm for arm in FALL if arm in set(own["arm"])]
        if absent := [arm for arm in FALL if arm not in arms]:
            missing.append(f"Split {split}, N = {n}: {', '.join(absent)} not in this profile, or not possible here.")
        for measure in measures if len(arms) == most else ():
            wide = own.pivot(index="seed", columns="arm", values=measure)[arms].dropna()
            for above, arm in zip(["", *arms], arms, strict=False):
                step = paired_t(wide[arm] - wide[above] if above else [], level)
                names = {"split": split, "n_train": n, "measure": measure, "arm": arm, "above": above}
                rows.append({**names, "score": wide[arm].mean(), **step})
    return pd.DataFrame(rows, columns=columns).rename(columns={"mean": "step"}), missing


def in_micrographs(
    scores: pd.DataFrame, measure: str, rng: np.random.Generator, resamples: int, level: float
) -> pd.DataFrame:
    """Where EXP+GEN at N lies on the learning curve of EXP: with how many labelled micrographs EXP scores as much.

    Between two N the curve is straight in the logarithm of N, and it never falls (isotonic regression). In each
    resample detector seeds are drawn with replacement, the same for all N and both arms, on one of the samples of test
    micrographs that `scores` holds.

    `scores` have split, n_train, arm, seed, `measure` and resample (0: as measured), as of
    `significance.resampled_scores`; with resample 0 alone, detector seeds are drawn alone. Columns split, n_train,
    equivalent, low, high (micrographs, between the smallest N and the largest), worth (equivalent - n_train); of splits
    with two N or more where both arms are defined.
    """
    rows = []
    for split, own in scores[scores["arm"].isin(["EXP", "EXP+GEN"])].groupby("split"):
        wide = own.pivot(index="resample", columns=["arm", "n_train", "seed"], values=measure)
        wide = wide.loc[:, wide.loc[0].notna()].sort_index(axis=1)
        numbers, seeds = (sorted(set(wide.columns.get_level_values(name))) for name in ("n_train", "seed"))
        full = [n for n in numbers if {(a, n, s) for a in FALL[2:] for s in seeds} <= set(wide.columns)]
        if len(full) < 2:
            continue
        curve, added = (np.stack([wide[arm, n][seeds].to_numpy() for n in full], axis=1) for arm in ("EXP", "EXP+GEN"))
        picks = np.vstack([np.arange(len(seeds)), rng.integers(len(seeds), size=(resamples, len(seeds)))])
        draws = np.minimum(np.arange(len(picks)), len(wide) - 1)  # (1 + R,)
        curve, added = (np.take_along_axis(each[draws], picks[:, None], axis=2).mean(axis=2) for each in (curve, added))
        known = np.isfinite(curve).all(axis=1)
        rising = np.array([isotonic_regression(exp).x for exp in np.where(known[:, None], curve, 0.0)])
        found = np.exp([np.interp(gen, exp, np.log(full)) for exp, gen in zip(rising, added, strict=True)])
        found[~known] = np.nan  # (1 + R, N)
        low, high = percentile_interval(found[1:], level)
        rows += [(split, n, found[0, k], low[k], high[k], found[0, k] - n) for k, n in enumerate(full)]
    return pd.DataFrame(rows, columns=[*CONDITION, "equivalent", "low", "high", "worth"])


def said(worth: pd.DataFrame, numbers: Sequence[int]) -> list[str]:
    """`in_micrographs` in words, which end where the learning curve does, at the smallest and largest of `numbers`."""

    ends = {min(numbers): " or fewer", max(numbers): " or more"}

    def shown(value: float, end: float, sign: str = "") -> str:
        return f"{value:{sign}.0f}{ends.get(round(end, 6), '')}"

    return [
        f"Split {row.split}, N = {row.n_train}: EXP+GEN scores as EXP would with "
        f"{shown(row.equivalent, row.equivalent)} labelled micrographs (interval {shown(row.low, row.low)} to "
        f"{shown(row.high, row.high)}): the generated set is worth {shown(row.worth, row.equivalent, '+')}."
        for row in worth.itertuples()
    ] or ["A learning curve needs two N or more with both arms: this run cannot say what a generated set is worth."]
