"""Is a difference between two arms more than luck? Paired tests with effect sizes, and what they cannot show.

A run is paired with that of its arm's baseline (`config.arms`) which has the same split, N and detector seed. Pairs of
one condition share the training images, the simulated masks, the model that painted them and the test images: their
spread is that of the detector's training alone, and a p-value from them speaks of this split and this model, not of
the method. Taking pairs of several conditions for one sample would count the same images as often as there are seeds
(pseudo-replication), so every condition is tested by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from companion.config.arms import ARMS
from companion.evaluation.runs import Run
from companion.evaluation.scores import Counts, pooled
from companion.evaluation.wording import ARM, CONDITION, F1, NAMES, READ, RUN, p_value, signed, with_interval
from companion.seeds import Seeds
from companion.stats import cluster_weights

COMPARED = [*READ, *ARM, "baseline", "measure"]
GAIN_COLUMNS = [*COMPARED, "base", "score", "gain", "low", "high", "n", "share_of_left"]
TEST_COLUMNS = [*GAIN_COLUMNS, "sd", "t", "df", "p", "hedges_g", "undefined", "p_sign_flip", "smallest_p_sign_flip"]


def paired_t(differences: ArrayLike, level: float = 0.95) -> dict[str, Any]:
    """Paired t-test (Student 1908), from the differences [n] of the pairs; undefined ones (NaN) are left out.

    Gives n, mean, low, high, sd, t, df, p (two-sided), hedges_g (mean / sd with the small-sample factor of Hedges,
    1981; none for one degree of freedom), undefined (why there is no test; "" where there is one).
    """
    from scipy import stats
    from scipy.special import gamma

    used = pd.Series(differences, dtype=float).dropna().to_numpy()
    n, df = len(used), len(used) - 1
    result: dict[str, Any] = dict.fromkeys(("mean", "low", "high", "sd", "t", "df", "p", "hedges_g"), float("nan"))
    result |= {"n": n, "undefined": ""} | ({"mean": float(used.mean())} if n else {})
    if n < 2:
        return result | {"undefined": f"{n} pair{'' if n == 1 else 's'}: a spread needs two"}
    result |= {"sd": float(used.std(ddof=1)), "df": df}
    if result["sd"] <= 1e-12 * max(1.0, abs(result["mean"])):
        return result | {"undefined": "all differences are equal: there is no spread to test against"}
    test = stats.ttest_1samp(used, 0.0)
    low, high = test.confidence_interval(level)
    if df > 1:
        factor = gamma(df / 2) / (np.sqrt(df / 2) * gamma((df - 1) / 2))
        result["hedges_g"] = float(result["mean"] / result["sd"] * factor)
    return result | {"low": float(low), "high": float(high), "t": float(test.statistic), "p": float(test.pvalue)}


def power(errors: float, df: int, level: float = 0.95) -> float:
    """Chance of a two-sided t-test to see a mean that lies `errors` standard errors from zero; NaN without an error."""
    from scipy import stats

    return float(stats.ncf.sf(stats.f.isf(1 - level, 1, df), 1, df, errors**2))  # as t squared: nct loses its far tail


def sign_flip(differences: ArrayLike) -> tuple[float, float]:
    """Exact two-sided sign-flip test of a mean difference of zero.

    Under the null each difference could as well have had the other sign: all 2^n sign patterns are tried. Returns p and
    the smallest p that n pairs can give, 2 / 2^n; NaN for one pair, and for more than 20 (too many patterns).
    """
    from scipy import stats

    values = pd.Series(differences, dtype=float).dropna().to_numpy()
    if not 2 <= len(values) <= 20:
        return float("nan"), float("nan")
    test = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    return float(test.pvalue), 2 / 2 ** len(values)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """p-values adjusted for their number (Holm 1979); undefined ones (NaN) stay undefined and do not count."""
    p = np.asarray(p_values, dtype=float)
    order, n = np.argsort(p), int(np.isfinite(p).sum())  # NaN comes last
    adjusted = np.full(p.shape, np.nan)
    adjusted[order[:n]] = np.maximum.accumulate(p[order[:n]] * np.arange(n, 0, -1)).clip(max=1)
    return adjusted


def headline_measure(scores: pd.DataFrame) -> tuple[str, str]:
    """The measure that a table can be read by: "f1_hm" and "", or "f1_detect" and a sentence that says why."""
    if scores["f1_hm"].notna().any():
        return "f1_hm", ""
    why = "F1_class needs matched pairs of two classes or more, and at no threshold are there any"
    return "f1_detect", f"{why}: it and F1HM are undefined, and F1_detect stands in their place."


def paired_scores(chosen: pd.DataFrame, measures: Sequence[str] = tuple(NAMES)) -> pd.DataFrame:
    """Scores of every run (`thresholds.read_at`) beside those of its baseline's run of the same split, N and seed.

    Columns choice, against, split, n_train, arm, baseline, measure, seed, base (score of the baseline; NaN where it was
    not run), score, difference (score minus base).
    """
    long = chosen.melt([*READ, *RUN], list(measures), "measure", "score")
    base = long.rename(columns={"arm": "baseline", "score": "base"})
    long["baseline"] = long["arm"].map({name: arm.baseline for name, arm in ARMS.items()})
    pairs = long[long["arm"] != long["baseline"]].merge(base, how="left")
    by, pairs["difference"] = [*COMPARED, "seed"], pairs["score"] - pairs["base"]
    return pairs[[*by, "base", "score", "difference"]].sort_values(by, ignore_index=True)


def paired_tests(pairs: pd.DataFrame, level: float = 0.95) -> pd.DataFrame:
    """Every arm against its baseline, in each split and N by itself.

    `TEST_COLUMNS` and p_holm (family: the conditions of one arm and measure): base and score are means over the pairs,
    gain their difference, share_of_left the gain as a share of what the baseline leaves, the others as in `paired_t`.
    """
    rows = []
    for names, group in pairs.groupby(COMPARED):
        test, flip = paired_t(group["difference"], level), sign_flip(group["difference"])
        base, gain = float(group["base"].where(group["difference"].notna()).mean()), test.pop("mean")
        rows.append({
            **dict(zip(COMPARED, names, strict=True)), "base": base, "score": base + gain, "gain": gain, **test,
            "share_of_left": gain / (1 - base) if base < 1 else float("nan"), "p_sign_flip": flip[0],
            "smallest_p_sign_flip": flip[1],
        })  # fmt: skip
    table = pd.DataFrame(rows, columns=TEST_COLUMNS)
    family = table.groupby([*READ, "arm", "measure"])["p"]
    return table.assign(p_holm=family.transform(lambda p: holm(p.to_numpy())) if rows else None)


def significant(tests: pd.DataFrame, level: float) -> list[str]:
    """A sentence for every gain or loss of EXP+GEN that its test calls significant after Holm's correction, whatever
    its sign, F1HM first; else one that says so. `tests` are those of the headline."""
    own = tests[(tests["arm"] == "EXP+GEN") & tests["measure"].isin(list(NAMES))].dropna(subset="p")
    own = own.sort_values("measure", key=lambda names: names.map(list(NAMES).index), kind="stable")
    return [
        f"{NAMES[row.measure]} {'rises' if row.gain > 0 else 'falls'} on split {row.split} at N = {row.n_train}: "
        f"{with_interval(row.gain, row.low, row.high, row.n, level)}, {p_value(row.p)} (Holm {p_value(row.p_holm)})."
        for row in own[own["p_holm"] < 1 - level].itertuples()
    ] or [f"Of {len(own)} tests of EXP+GEN against EXP none is significant."]


def sign_by_choice(tests: pd.DataFrame, measure: str, against: str = "labels") -> list[str]:
    """Where the sign of the gain of EXP+GEN depends on how the threshold was chosen, in words; else one sentence."""
    own = tests[(tests["arm"] == "EXP+GEN") & (tests["measure"] == measure) & (tests["against"] == against)]
    said = []
    for (split, n_train), rows in own.groupby(CONDITION):
        if len(set(np.sign(rows["gain"].dropna()))) > 1:
            gains = ", ".join(f"{signed(row.gain)} ({row.choice})" for row in rows.itertuples())
            said.append(f"Split {split}, N = {n_train}: the sign of the gain depends on the threshold: {gains}.")
    return said or [
        f"Against {against} the sign of the gain in {NAMES[measure]} is the same for every choice of the threshold."
    ]


def resampled_scores(
    counted: Sequence[tuple[Run, Counts]], points: pd.DataFrame, iou: float, seeds: Seeds, resamples: int
) -> pd.DataFrame:
    """Scores of every run on bootstrap samples of the test micrographs (Efron and Tibshirani 1993).

    Whole micrographs are drawn, the same for all runs of a split, each run at the threshold of its arm in `points`
    (`thresholds.choices` by one way of choosing). Columns split, n_train, arm, seed, resample (0: every micrograph
    once), f1_detect, f1_class, f1_hm.
    """
    tables = []
    for run, counts in counted:
        images = run.patches.index["image"]
        drawn = cluster_weights(images, seeds.rng("micrographs", run.keys["split"]), resamples)
        weights = np.vstack([np.ones(len(images)), drawn])  # (1 + R, P)
        i, c = counts.iou.index(iou), int(np.argmin(np.abs(np.subtract(counts.confidence, run.confidence(points)))))
        here = counts._replace(pairs=counts.pairs[:, i : i + 1, c : c + 1], predicted=counts.predicted[:, c : c + 1])
        scores = {name: values[:, 0, 0] for name, values in pooled(here, weights).items() if name in F1}
        tables.append(pd.DataFrame({"resample": range(len(weights)), **scores}).assign(**run.keys))
    return pd.concat(tables, ignore_index=True)[[*RUN, "resample", *F1]]
