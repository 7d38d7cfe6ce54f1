"""What the pairs of a study can show: effects over splits, equivalence, power, and where to spend the next run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from companion.evaluation.significance import BETWEEN_SEEDS, CONDITION, LEAST_SPLITS, comparisons, paired_t

NAN = float("nan")


def equivalence(differences: ArrayLike, margin: float, level: float = 0.95) -> dict[str, Any]:
    """Two one-sided t-tests (TOST): is the mean difference inside ±`margin`?

    Returns
    -------
    n, mean, margin, p (the larger of the two one-sided), low, high (interval of level 2 level - 1, which lies inside
    the margin exactly when p < 1 - level), undefined (why there is no test, or None)
    """
    from scipy import stats

    test = paired_t(np.asarray(differences, dtype=float), 2 * level - 1)
    result = {"n": test["n"], "mean": test["mean"], "margin": margin, "low": test["low"], "high": test["high"]}
    if test["undefined"]:
        return {**result, "p": NAN, "undefined": test["undefined"]}
    error = test["sd"] / np.sqrt(test["n"])
    lower, upper = (test["mean"] + margin) / error, (margin - test["mean"]) / error
    return {**result, "p": float(stats.t.sf(min(lower, upper), test["df"])), "undefined": None}


def equivalence_table(
    pairs: pd.DataFrame, margin: float, level: float = 0.95, between: Mapping[str, str] = BETWEEN_SEEDS
) -> pd.DataFrame:
    """`equivalence` of each condition, and of the split means of each N that has at least three.

    Parameters
    ----------
    pairs : columns split, n_train, difference (one measure)
    between : of `significance.between_pairs`

    Returns
    -------
    split ("all" for split means), n_train, varied, shared (see `significance.comparisons`), then the entries of
    `equivalence`
    """
    rows = [{**keys, **equivalence(differences, margin, level)} for keys, differences in comparisons(pairs, between)]
    return pd.DataFrame(rows, columns=[*CONDITION, *BETWEEN_SEEDS, *equivalence([], margin)])


def variance_components(pairs: pd.DataFrame) -> dict[str, Any]:
    """Standard deviation of paired differences between seeds (within a condition) and between splits.

    Where each seed has a generator of its own, what generators differ in is part of the spread between seeds.

    Parameters
    ----------
    pairs : columns split, n_train, difference (one measure)

    Returns
    -------
    seed_sd (NaN unless a condition has two pairs), split_sd (of the effect itself, seed noise taken out; NaN unless
    there are two splits of one N), splits, pairs
    """
    used = pairs.dropna(subset=["difference"])
    groups = used.groupby(["split", "n_train"])["difference"].agg(["mean", "var", "count"]).reset_index()
    df = (groups["count"] - 1).sum()
    within = float((groups["var"].fillna(0) * (groups["count"] - 1)).sum() / df) if df > 0 else NAN
    between = []
    for _, table in groups.groupby("n_train"):
        if len(table) > 1:
            between.append(table["mean"].var(ddof=1) - within * (1 / table["count"]).mean())
    split_sd = float(np.sqrt(max(0.0, np.mean(between)))) if between and np.isfinite(within) else NAN
    return {
        "seed_sd": float(np.sqrt(within)), "split_sd": split_sd,
        "splits": int(groups["split"].nunique()), "pairs": len(used),
    }  # fmt: skip


def overall_effect(
    pairs: pd.DataFrame, level: float = 0.95, between: Mapping[str, str] = BETWEEN_SEEDS
) -> dict[str, Any]:
    """Mean effect over splits and N: a mixed model where its structure is identified, fixed effects where not.

    Differences of pairs are modelled, so that what a pair shares cancels. With at least three splits of at least two
    pairs the split is random (statsmodels MixedLM, REML, t quantiles): the effect then speaks of splits that were not
    drawn. With one pair per split, or where the model does not converge, a t-test over the split means says the same.
    With fewer splits their variance is not identified; split and N become fixed effects (sum-coded least squares),
    and the effect speaks of these splits alone, and of what the pairs of each condition share.

    Parameters
    ----------
    pairs : columns split, n_train, seed, difference (one measure)
    between : of `significance.between_pairs`

    Returns
    -------
    model ("mixed", "split means", "fixed", "none"), reason, effect, low, high, p, split_sd, residual_sd, n
    """
    import warnings

    import statsmodels.formula.api as smf
    from scipy import stats
    from statsmodels.tools.sm_exceptions import ConvergenceWarning

    used = pairs.dropna(subset=["difference"]).astype({"split": str, "n_train": str})
    splits = used.groupby("split").size()
    result: dict[str, Any] = dict.fromkeys(("effect", "low", "high", "p", "split_sd", "residual_sd"), NAN)
    result |= {"model": "none", "n": len(used)}
    terms = [f"C({name}, Sum)" for name in ("n_train", "split") if used[name].nunique() > 1]
    cells = len(used.groupby(["split", "n_train"]))
    if len(used) < 2 or np.isclose(used["difference"].std(ddof=1), 0):
        return {**result, "reason": "fewer than two pairs, or no spread between them: there is nothing to model"}
    alpha = 1 - level
    if len(splits) >= LEAST_SPLITS and splits.min() >= 2:
        formula = "difference ~ 1" + "".join(f" + {t}" for t in terms if "n_train" in t)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            warnings.simplefilter("ignore", RuntimeWarning)
            warnings.simplefilter("ignore", UserWarning)
            fit = smf.mixedlm(formula, used, groups=used["split"]).fit(reml=True)
        if fit.converged:
            # Normal quantiles, the library's, are far too sure of few splits; of balanced pairs this t is exact.
            found, error, df = float(fit.fe_params["Intercept"]), float(fit.bse_fe["Intercept"]), len(splits) - 1
            half = float(stats.t.isf(alpha / 2, df)) * error
            return {
                **result, "model": "mixed", "reason": f"{len(splits)} splits as a random effect, t with {df} df",
                "effect": found, "low": found - half, "high": found + half,
                "p": float(2 * stats.t.sf(abs(found) / error, df)), "split_sd": float(np.sqrt(fit.cov_re.iloc[0, 0])),
                "residual_sd": float(np.sqrt(fit.scale)),
            }  # fmt: skip
        why = "the mixed model did not converge"
    elif len(splits) >= LEAST_SPLITS:
        why = "one pair per split"
    else:
        why = f"{len(splits)} split{'s' if len(splits) > 1 else ''}: the variance between splits is not identified"
    by_split = used.pivot_table(index="split", columns="n_train", values="difference")
    if len(splits) >= LEAST_SPLITS and by_split.notna().all(axis=None):  # a split that lacks an N is no fair mean
        test = paired_t(by_split.mean(axis=1), level)
        return {
            **result, "model": "split means", "reason": f"{why}; t-test over {len(splits)} split means",
            "effect": test["mean"], "low": test["low"], "high": test["high"], "p": test["p"],
        }  # fmt: skip
    if len(used) <= cells:
        return {**result, "reason": f"{why}, and one pair per condition leaves no residual for fixed effects"}
    fit = smf.ols("difference ~ 1" + "".join(f" + {term}" for term in terms), used).fit()
    low, high = fit.conf_int(alpha).loc["Intercept"]
    return {
        **result, "model": "fixed",
        "reason": f"{why}; the effect is that of these splits alone; pairs of a condition share {between['shared']}",
        "effect": float(fit.params["Intercept"]), "low": float(low), "high": float(high),
        "p": float(fit.pvalues["Intercept"]), "residual_sd": float(np.sqrt(fit.scale)),
    }  # fmt: skip


def power_table(
    effect: float, seed_sd: float, split_sd: float, designs: Sequence[tuple[int, int]], level: float = 0.95
) -> pd.DataFrame:
    """How well designs of k splits × m seeds estimate and detect an effect on splits not drawn.

    The spread of the estimate is sqrt(split_sd² / k + seed_sd² / (k m)); the test is a t-test over the k split means
    (statsmodels TTestPower). One split gives no such test, whatever the number of its seeds.

    Returns
    -------
    splits, seeds, runs (of one arm), standard_error, power
    """
    from statsmodels.stats.power import TTestPower

    rows = []
    for splits, seeds in designs:
        unit = float(np.sqrt(split_sd**2 + seed_sd**2 / seeds))
        power = NAN
        if splits > 1 and unit > 0:
            power = float(TTestPower().power(abs(effect) / unit, splits, 1 - level, alternative="two-sided"))
        rows.append((splits, seeds, splits * seeds, unit / np.sqrt(splits), power))
    return pd.DataFrame(rows, columns=["splits", "seeds", "runs", "standard_error", "power"])


def seeds_power(effect: float, seed_sd: float, seeds: Sequence[int], level: float = 0.95) -> pd.DataFrame:
    """Power of the paper's test (paired t over the seeds of one split) against the number of seeds.

    Returns
    -------
    seeds, power, smallest_effect (detected with power 0.8)
    """
    from statsmodels.stats.power import TTestPower

    solver = TTestPower()
    rows = [
        (
            n,
            float(solver.power(abs(effect) / seed_sd, n, 1 - level, alternative="two-sided")),
            seed_sd * float(np.squeeze(solver.solve_power(None, n, 1 - level, 0.8, alternative="two-sided"))),
        )
        for n in seeds
    ]
    return pd.DataFrame(rows, columns=["seeds", "power", "smallest_effect"])


def assumptions(
    pairs: pd.DataFrame, arms: tuple[str, str], rng: np.random.Generator, repeats: int = 400
) -> pd.DataFrame:
    """What the paired t-test assumes, as far as so few pairs can be asked.

    Normal differences (Shapiro-Wilk), equal spread of the two arms (Pitman-Morgan: correlation of sum and difference;
    the paired test does not need it, but generated patches may steady a detector), and equal spread of the
    differences in all conditions, which pooled models need (Levene about the median). Each of the first two comes
    with its power: the share of `repeats` drawn samples of the same size that are far from the assumption
    (exponential differences; one arm with twice the spread of the other) and that the test rejects at 0.05.

    Parameters
    ----------
    pairs : table of `significance.paired_scores`, one measure
    arms : its two columns of scores

    Returns
    -------
    condition, assumption, test, n, statistic, p, power, undefined (why there is no test, or "")
    """
    from scipy import stats

    def normality(table: pd.DataFrame) -> tuple[float, float]:
        return stats.shapiro(table["difference"])

    def spread(table: pd.DataFrame) -> tuple[float, float]:
        a, b = (table[arm].to_numpy() for arm in arms)
        return stats.pearsonr(a + b, b - a)

    def far_from(test: Any, n: int) -> pd.DataFrame:
        if test is normality:
            return pd.DataFrame({"difference": rng.exponential(size=n)})
        return pd.DataFrame({arms[0]: rng.standard_normal(n), arms[1]: 2 * rng.standard_normal(n)})

    named = ((normality, "normal differences", "Shapiro-Wilk"), (spread, "equal spread of the arms", "Pitman-Morgan"))
    power: dict[tuple[str, int], float] = {}
    rows, groups = [], []
    used = pairs.dropna(subset=[*arms, "difference"])
    for (split, n_train), table in used.groupby(["split", "n_train"], sort=True):
        n, condition = len(table), f"split {split}, N = {n_train}"
        groups.append(table["difference"].to_numpy())
        for test, assumption, name in named:
            varies = n >= 3 and not np.isclose(table[["difference", *arms]].std(ddof=1), 0).any()
            if not varies:
                why = f"{n} pair{'' if n == 1 else 's'}: three are the least" if n < 3 else "no spread"
                rows.append((condition, assumption, name, n, NAN, NAN, NAN, why))
                continue
            if (name, n) not in power:
                power[name, n] = float(np.mean([test(far_from(test, n))[1] < 0.05 for _ in range(repeats)]))
            statistic, p = test(table)
            rows.append((condition, assumption, name, n, float(statistic), float(p), power[name, n], ""))
    enough = len(groups) >= 2 and min(map(len, groups)) >= 3
    found = stats.levene(*groups, center="median") if enough else (NAN, NAN)
    why = "" if enough else "needs two conditions of three pairs"
    rows.append(
        ("all", "equal spread in all conditions", "Levene", sum(map(len, groups)), *map(float, found), NAN, why)
    )
    columns = ["condition", "assumption", "test", "n", "statistic", "p", "power", "undefined"]
    return pd.DataFrame(rows, columns=columns)
