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
STEPS = 41  # scores along a learning curve


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
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """With how many labelled micrographs EXP scores as much as EXP+GEN does at N, and as much as any score.

    Between two N the learning curve of EXP is straight in the logarithm of N, and it never falls (isotonic regression).
    In each resample detector seeds are drawn with replacement, the same for all N and both arms, on one of the samples
    of test micrographs that `scores` holds.

    `scores` have split, n_train, arm, seed, `measure` and resample (0: as measured), as of
    `significance.resampled_scores`; with resample 0 alone, detector seeds are drawn alone.

    Returns
    -------
    EXP+GEN : split, n_train, score, equivalent, low, high (micrographs, between the smallest N and the largest), worth
        (equivalent - n_train); of splits with two N or more where both arms are defined
    EXP : the same for scores from the curve's lower end to its upper, n_train NaN, without worth
    """
    rows, columns = [], [*CONDITION, "score", "equivalent", "low", "high"]
    for split, own in scores[scores["arm"].isin(FALL[2:])].groupby("split"):
        wide = own.pivot(index="resample", columns=["arm", "n_train", "seed"], values=measure)
        wide = wide.loc[:, wide.loc[0].notna()].sort_index(axis=1)
        numbers, seeds = (sorted(set(wide.columns.get_level_values(name))) for name in ("n_train", "seed"))
        full = [n for n in numbers if {(a, n, s) for a in FALL[2:] for s in seeds} <= set(wide.columns)]
        if len(full) < 2:
            continue
        both = (np.stack([wide[arm, n][seeds].to_numpy() for n in full], axis=1) for arm in ("EXP", "EXP+GEN"))
        picks = np.vstack([np.arange(len(seeds)), rng.integers(len(seeds), size=(resamples, len(seeds)))])
        draws = np.minimum(np.arange(len(picks)), len(wide) - 1)  # (1 + R,)
        exp, gen = (np.take_along_axis(each[draws], picks[:, None], axis=2).mean(axis=2) for each in both)
        known = np.isfinite(exp).all(axis=1)
        rising = np.array([isotonic_regression(row).x for row in np.where(known[:, None], exp, 0.0)])  # (1 + R, N)
        ends = np.broadcast_to(np.linspace(rising[0, 0], rising[0, -1], STEPS), (len(picks), STEPS))
        for at, values in ((full, gen), ([np.nan] * STEPS, ends)):
            found = np.exp([np.interp(row, curve, np.log(full)) for curve, row in zip(rising, values, strict=True)])
            found[~known] = np.nan  # (1 + R, N or STEPS)
            places = zip(at, values[0], found[0], *percentile_interval(found[1:], level), strict=True)
            rows += [(split, *place) for place in places]
    table = pd.DataFrame(rows, columns=columns)
    gained = table.dropna(subset="n_train").astype({"n_train": int})
    return gained.assign(worth=gained["equivalent"] - gained["n_train"]), table[table["n_train"].isna()]


def said(worth: pd.DataFrame, numbers: Sequence[int]) -> list[str]:
    """`in_micrographs` in words, which end where the learning curve does, at the smallest and largest of `numbers`."""
    ends = {min(numbers): " or fewer", max(numbers): " or more"}

    def shown(value: float, end: float) -> str:
        return f"{value:.0f}{ends.get(round(end, 6), '')}"

    return [
        f"Split {row.split}, N = {row.n_train}: EXP+GEN scores as EXP would with "
        f"{shown(row.equivalent, row.equivalent)} labelled micrographs (interval {shown(row.low, row.low)} to "
        f"{shown(row.high, row.high)}): the generated set {'costs' if row.worth < 0 else 'is worth'} "
        f"{shown(abs(row.worth), row.equivalent)}."
        for row in worth.itertuples()
    ] or ["A learning curve needs two N or more with both arms: this run cannot say what a generated set is worth."]
