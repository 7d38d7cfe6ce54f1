"""Is a difference between two arms more than luck? Paired tests with effect sizes, and what they cannot show.

Runs are paired by detector seed within one split and one N. Such runs share the training images, the test images
and, unless each seed has one of its own, the generator: their spread is that of what differs between seeds alone, and
a p-value from them speaks of this split (and this generator), not of the method (pseudo-replication).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

MEASURES = ("f1_hm", "f1_detect", "f1_class")
CONDITION = ["split", "n_train"]
# What pairs of one condition differ in, and what they have in common: only the first is in their spread.
BETWEEN_SEEDS = {
    "varied": "detector seed", "shared": "split, training images, simulated masks, generator, test images",
}  # fmt: skip
BETWEEN_GENERATORS = {
    "varied": "generator, detector seed", "shared": "split, training images, simulated masks, test images",
}  # fmt: skip
BETWEEN_SPLITS = {
    "varied": "split, training images, simulated masks, generator, test images, detector seed", "shared": "data set",
}  # fmt: skip
LEAST_SPLITS = 3  # from how many on their spread is taken to be known
GAIN_COLUMNS = [*CONDITION, "measure", "base", "other", "gain", "low", "high", "n", "share_of_left"]


def paired_t(differences: Sequence[float] | NDArray, level: float = 0.95) -> dict[str, Any]:
    """Paired t-test, from the differences of the pairs.

    Parameters
    ----------
    differences : [n] one per pair; undefined ones (NaN) are left out and counted
    level : of the confidence interval of the mean difference

    Returns
    -------
    n, left_out, mean, low, high, sd, t, df, p (two-sided), cohen_dz (mean / sd), hedges_g (d_z with the
    small-sample factor of Hedges, 1981), undefined (why there is no test, or None)
    """
    from scipy import stats
    from scipy.special import gamma

    values = np.asarray(differences, dtype=float)
    used = values[np.isfinite(values)]
    n = len(used)
    nan = float("nan")
    result: dict[str, Any] = dict.fromkeys(("low", "high", "sd", "t", "df", "p", "cohen_dz", "hedges_g"), nan)
    result |= {"n": n, "left_out": len(values) - n, "mean": float(used.mean()) if n else nan, "undefined": None}
    if n < 2:
        result["undefined"] = f"{n} pair{'' if n == 1 else 's'}: a spread needs two"
        return result
    sd, df = float(used.std(ddof=1)), n - 1
    result |= {"sd": sd, "df": df}
    if sd <= 1e-12 * max(1.0, abs(result["mean"])):
        result["undefined"] = "all differences are equal: there is no spread to test against"
        return result
    test = stats.ttest_1samp(used, 0.0)
    low, high = test.confidence_interval(level)
    dz = result["mean"] / sd
    # Hedges (1981): the factor that makes a standardised mean unbiased; there is none for one degree of freedom.
    factor = gamma(df / 2) / (np.sqrt(df / 2) * gamma((df - 1) / 2)) if df > 1 else nan
    return result | {
        "low": float(low), "high": float(high), "t": float(test.statistic), "p": float(test.pvalue),
        "cohen_dz": dz, "hedges_g": dz * float(factor),
    }  # fmt: skip


def sign_flip(differences: Sequence[float] | NDArray) -> dict[str, Any]:
    """Exact two-sided sign-flip permutation test of a mean difference of zero.

    Under the null each difference could as well have had the other sign: all 2^n sign patterns are tried. The
    smallest p that n pairs can ever give is 2 / 2^n: 0.125 for n = 4.

    Returns
    -------
    n, p, smallest_p, undefined (why there is no test, or None)
    """
    values = np.asarray(differences, dtype=float)
    values = values[np.isfinite(values)]
    n = len(values)
    if n < 1 or n > 20:
        why = "no pair" if n < 1 else f"{n} pairs: 2^{n} sign patterns are too many to try"
        return {"n": n, "p": float("nan"), "smallest_p": float("nan"), "undefined": why}
    signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)  # (2^n, n)
    sums = np.abs(signs @ values)
    extreme = sums >= sums[0] - 1e-12 * max(1.0, sums[0])  # pattern 0 is what was observed
    return {"n": n, "p": float(extreme.mean()), "smallest_p": min(1.0, 2 / 2**n), "undefined": None}


def holm(p_values: Sequence[float] | NDArray) -> NDArray[np.float64]:
    """Holm's adjusted p-values; undefined tests (NaN) stay undefined and do not count in the family."""
    from statsmodels.stats.multitest import multipletests

    p = np.asarray(p_values, dtype=float)
    adjusted = np.full(p.shape, np.nan)
    defined = np.isfinite(p)
    if defined.any():
        adjusted[defined] = multipletests(p[defined], method="holm")[1]
    return adjusted


def headline_measure(scores: pd.DataFrame) -> tuple[str, str]:
    """The measure that a table can be read by, and what to say where it is not the paper's.

    Returns
    -------
    ("f1_hm", "") where F1HM is defined somewhere, else ("f1_detect", a sentence that says why)
    """
    if scores["f1_hm"].notna().any():
        return "f1_hm", ""
    if sum(column.startswith("f1_class_") for column in scores) < 2:
        why = "This data set has one class, so there is nothing to classify"
    else:
        why = "At no threshold do the matched pairs hold two classes"
    return "f1_detect", f"{why}: F1_class and F1HM are undefined, and F1_detect stands in their place."


def best_confidence(scores: pd.DataFrame, iou: float, measure: str) -> pd.DataFrame:
    """Confidence with the highest mean over seeds, for every split, N and arm.

    It is chosen on the test images themselves, so the score at it is optimistic.

    Parameters
    ----------
    scores : scores.parquet
    measure : e.g. "f1_hm"; conditions where it is undefined everywhere give no row

    Returns
    -------
    split, n_train, arm, confidence, mean: one row per condition; of equal means the lowest confidence
    """
    here = scores[np.isclose(scores["iou_threshold"], iou)]
    # A mean counts only where every seed is defined: a curve must not win by losing its bad seeds.
    grouped = here.groupby([*CONDITION, "arm", "confidence"], sort=True)[measure]
    means = grouped.mean().where(grouped.count() == grouped.size()).dropna().rename("mean").reset_index()
    order = means.sort_values(["mean", "confidence"], ascending=[False, True], kind="stable")
    return order.drop_duplicates([*CONDITION, "arm"]).sort_values([*CONDITION, "arm"], ignore_index=True)


def operating_points(scores: pd.DataFrame, iou: float, measure: str, otherwise: float) -> pd.DataFrame:
    """`best_confidence` of every condition, and `otherwise` for conditions where the measure is never defined.

    Returns
    -------
    split, n_train, arm, confidence, chosen_by ("best on test" or "fixed: ... undefined")
    """
    every = scores[[*CONDITION, "arm"]].drop_duplicates()
    table = every.merge(best_confidence(scores, iou, measure), on=[*CONDITION, "arm"], how="left")
    best = table["confidence"].notna()
    table["chosen_by"] = np.where(best, "best on test", f"fixed: {measure} is undefined")
    table["confidence"] = table["confidence"].fillna(otherwise)
    return table.drop(columns="mean").sort_values([*CONDITION, "arm"], ignore_index=True)


def paired_scores(
    scores: pd.DataFrame, iou: float, arms: tuple[str, str], chosen: pd.DataFrame | float
) -> pd.DataFrame:
    """Scores of two arms side by side, paired by seed.

    Parameters
    ----------
    chosen : a confidence for all, or a table like that of `best_confidence`

    Returns
    -------
    split, n_train, seed, measure, <arm>, <other arm>, difference (second minus first)
    """
    here = scores[np.isclose(scores["iou_threshold"], iou) & scores["arm"].isin(arms)]
    if isinstance(chosen, pd.DataFrame):
        here = here.merge(chosen[[*CONDITION, "arm", "confidence"]], on=[*CONDITION, "arm", "confidence"])
    else:
        here = here[np.isclose(here["confidence"], chosen)]
    long = here.melt([*CONDITION, "arm", "seed"], list(MEASURES), "measure", "score")
    wide = long.pivot(index=[*CONDITION, "seed", "measure"], columns="arm", values="score").reindex(columns=list(arms))
    wide["difference"] = wide[arms[1]] - wide[arms[0]]
    wide.columns.name = None
    return wide.reset_index()


def between_pairs(generator_per_seed: bool) -> Mapping[str, str]:
    """What pairs of one condition differ in and share: see `params.Profile.generator_per_seed`."""
    return BETWEEN_GENERATORS if generator_per_seed else BETWEEN_SEEDS


def significance_table(
    pairs: pd.DataFrame, level: float = 0.95, between: Mapping[str, str] = BETWEEN_SEEDS
) -> pd.DataFrame:
    """Tests of every split, N and measure.

    Parameters
    ----------
    pairs : the table of `paired_scores`
    between : of `between_pairs`

    Returns
    -------
    split, n_train, measure, varied and shared (between the pairs), the entries of `paired_t` (undefined is "" where
    there is a test), p_holm (family: the conditions of one measure), family (tests in it), p_sign_flip,
    smallest_p_sign_flip
    """
    rows = []
    for (split, n_train, measure), group in pairs.groupby([*CONDITION, "measure"], sort=True):
        flip = sign_flip(group["difference"])
        rows.append({
            "split": split, "n_train": int(n_train), "measure": measure, **between,
            **(test := paired_t(group["difference"], level)), "undefined": test["undefined"] or "",
            "p_sign_flip": flip["p"], "smallest_p_sign_flip": flip["smallest_p"],
        })  # fmt: skip
    table = pd.DataFrame(rows)
    if len(table):
        table["p_holm"] = table.groupby("measure")["p"].transform(lambda p: holm(p.to_numpy()))
        table["family"] = table.groupby("measure")["p"].transform("count")
    return table


def comparisons(
    pairs: pd.DataFrame, between: Mapping[str, str] = BETWEEN_SEEDS
) -> list[tuple[dict[str, Any], NDArray[np.float64]]]:
    """Differences that one test may take together: those of one condition, and the means of at least three splits.

    Pairs of several conditions are never one sample: those of one split and N share training and test images, if not
    the generator, so a pool of all counts the same images as often as there are seeds (pseudo-replication).

    Parameters
    ----------
    pairs : columns split, n_train, difference (one measure); undefined differences are left out
    between : of `between_pairs`

    Returns
    -------
    (split, n_train, varied, shared) and the differences [n]; split is "all" where they are means of splits
    """
    used = pairs.dropna(subset=["difference"])
    found: list[tuple[dict[str, Any], NDArray[np.float64]]] = [
        ({"split": split, "n_train": int(n_train), **between}, own["difference"].to_numpy(dtype=float))
        for (split, n_train), own in used.groupby(CONDITION, sort=True)
    ]
    for n_train, own in used.groupby("n_train", sort=True):
        means = own.groupby("split")["difference"].mean()
        if len(means) >= LEAST_SPLITS:
            found.append(({"split": "all", "n_train": int(n_train), **BETWEEN_SPLITS}, means.to_numpy(dtype=float)))
    return found


def comparison_table(
    pairs: pd.DataFrame, level: float = 0.95, between: Mapping[str, str] = BETWEEN_SEEDS
) -> pd.DataFrame:
    """`paired_t` of each of the `comparisons`: split, n_train, varied, shared, then its entries."""
    rows = [{**keys, **paired_t(differences, level)} for keys, differences in comparisons(pairs, between)]
    return pd.DataFrame(rows, columns=[*CONDITION, *BETWEEN_SEEDS, *paired_t([])])


def gain_table(pairs: pd.DataFrame, arms: tuple[str, str], level: float = 0.95) -> pd.DataFrame:
    """What the second arm adds to the first, per split, N and measure (the paper's Figs 4 and 5).

    Parameters
    ----------
    pairs : the table of `paired_scores` of `arms`

    Returns
    -------
    split, n_train, measure, base and other (mean scores of the arms), gain with low and high, n (pairs), and
    share_of_left: the gain as a share of what the first arm leaves to gain, gain / (1 - base)
    """
    rows = []
    for (split, n_train, measure), group in pairs.groupby([*CONDITION, "measure"], sort=True):
        both = group.dropna(subset=list(arms))
        test = paired_t(group["difference"], level)
        base = float(both[arms[0]].mean()) if len(both) else float("nan")
        rows.append({
            "split": split, "n_train": int(n_train), "measure": measure, "base": base, "other": base + test["mean"],
            "gain": test["mean"], "low": test["low"], "high": test["high"], "n": test["n"],
            "share_of_left": test["mean"] / (1 - base) if base < 1 else float("nan"),
        })  # fmt: skip
    return pd.DataFrame(rows, columns=GAIN_COLUMNS)


def records(table: pd.DataFrame) -> list[Mapping[str, Any]]:
    """Rows as plain mappings, for JSON."""
    return table.astype(object).where(table.notna(), None).to_dict("records")
