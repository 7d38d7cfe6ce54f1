"""A feedback loop: where the detector errs, the next simulated masks have more of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from companion.data.patches import Patches
from companion.evaluation import outcomes
from companion.extensions.study import (
    MEASURES,
    Generator,
    Study,
    draw_fields,
    draw_pool,
    paired,
    score_arm,
    train_generator,
)
from companion.masks import statistics

ARM = "EXP+GEN"


def run(study: Study) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Two rounds for every seed: the first common, the second plain or steered by the first detector's errors.

    Both second rounds have the patches of the first and as many new ones, and train a new detector for as many steps.
    Errors are counted on validation patches, never on test patches. The generator is trained once: the rounds differ
    in their masks alone.

    Returns
    -------
    scores : round (1, 2), masks ("plain", "steered"), then the rows of `study.score_arm`
    errors : seed, then the rows of `error_rates`
    """
    fields = draw_fields(study)
    train, val, tests = fields["train"].labels, fields["val"].labels, {"test": fields["test"].truth}
    generator = train_generator(study, train, "generator")
    rows, errors = [], []
    for seed in study.profile.extensions.seeds:
        first = draw_pool(study, generator, seed, "first")
        scored, found = score_arm(study, ARM, seed, {"real": train, "generated": first}, val, tests, "first")
        rows += [{"round": 1, "masks": "plain", **row} for row in scored]
        rates = error_rates(study, found, val, train)
        errors.append(rates.assign(seed=seed))
        for masks, pool in (("plain", None), ("steered", rates)):
            second = _second_pool(study, generator, seed, pool)
            pools = {"real": train, "generated": join(first, second)}
            scored, _ = score_arm(study, ARM, seed, pools, val, tests, masks)
            rows += [{"round": 2, "masks": masks, **row} for row in scored]
    return pd.DataFrame(rows), pd.concat(errors, ignore_index=True)


def effects(scores: pd.DataFrame, level: float) -> pd.DataFrame:
    """Differences over seeds: quantity ("second round", "steering"), measure, mean, low, high, n, p.

    "second round" is plain masks after two rounds minus after one, "steering" steered minus plain after two.
    """
    wide = scores.pivot(index="seed", columns=["round", "masks"], values=list(MEASURES))
    rows = []
    for measure in MEASURES:
        own = wide[measure]
        rows.append(paired(own[2, "plain"] - own[1, "plain"], level, quantity="second round", measure=measure))
        rows.append(paired(own[2, "steered"] - own[2, "plain"], level, quantity="steering", measure=measure))
    return pd.DataFrame(rows).sort_values("quantity", kind="stable", ignore_index=True)


def error_rates(study: Study, found: pd.DataFrame, val: Patches, train: Patches) -> pd.DataFrame:
    """Share of labelled defects that a detector misses or takes for another class, by class and size.

    Parameters
    ----------
    found : predictions on `val` at the detector's confidence
    train : whose sizes divide each class into groups of equal number

    Returns
    -------
    class, group, from_px (long side of the smallest box of the group), labelled, wrong, rate; the rate is
    (wrong + 1) / (labelled + 2), so that a group without defects has 1/2
    """
    evaluation = study.profile.evaluation
    fates = outcomes.fates(found, val.table, evaluation.iou, 0.0, evaluation.matching)
    fates = fates[fates["outcome"] != outcomes.INVENTED]
    shares = np.arange(1, study.profile.extensions.size_groups) / study.profile.extensions.size_groups
    rows = []
    for code in range(1, len(train.classes) + 1):
        sizes = long_sides(train.table[train.table["class"] == code])
        edges = np.concatenate([[0.0], np.quantile(sizes, shares) if len(sizes) else np.full(len(shares), np.inf)])
        own = fates[fates["class"] == code]
        member = np.searchsorted(edges, own["size_px"].to_numpy(), side="right") - 1
        for group, edge in enumerate(edges):
            outcome = own["outcome"].to_numpy()[member == group]
            wrong = int((outcome != outcomes.HIT).sum())
            rows.append((code, group, float(edge), len(outcome), wrong, (wrong + 1) / (len(outcome) + 2)))
    return pd.DataFrame(rows, columns=["class", "group", "from_px", "labelled", "wrong", "rate"])


def steered_tables(train: Patches, rates: pd.DataFrame, rng: np.random.Generator) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Statistics and counts in which every real defect weighs as much as its group's error rate.

    Rows of the statistics are drawn anew with these weights, and the defects of every patch get classes by the
    summed weights of each class; the number of defects of a patch stays.
    """
    measured, numbers = statistics.measure(train), statistics.counts(train)
    weight = _weights(train.table, rates)
    rows = np.sort(rng.choice(len(measured), size=len(measured), p=weight / weight.sum()))
    shares = np.bincount(train.table["class"], weights=weight, minlength=len(train.classes) + 1)[1:]
    table = numbers.pivot(index="patch", columns="class", values="count").sort_index().to_numpy()  # (P, C)
    drawn = rng.multinomial(table.sum(axis=1), shares / shares.sum())
    ordered = numbers.sort_values(["patch", "class"], ignore_index=True)
    return measured.iloc[rows].reset_index(drop=True), ordered.assign(count=drawn.ravel())


def long_sides(table: pd.DataFrame) -> NDArray[np.float64]:
    """Long side of every box, px."""
    return np.maximum(table["x2"] - table["x1"], table["y2"] - table["y1"]).to_numpy(dtype=float)


def join(first: Patches, second: Patches) -> Patches:
    """Generated patches of two rounds as one pool."""
    images = np.concatenate([np.asarray(first.images), np.asarray(second.images)])
    index, table = (
        pd.concat([a, b.assign(patch=b["patch"] + len(first))], ignore_index=True)
        for a, b in ((first.index, second.index), (first.table, second.table))
    )
    instances = np.concatenate([first.instances, second.instances])
    return replace(first, images=images, instances=instances, index=index, table=table)


def _second_pool(study: Study, generator: Generator, seed: int, rates: pd.DataFrame | None) -> Patches:
    tables = rates if rates is None else steered_tables(generator.train, rates, study.stage.rng("steering", seed))
    return draw_pool(study, generator, seed, "second", tables=tables)


def _weights(table: pd.DataFrame, rates: pd.DataFrame) -> NDArray[np.float64]:
    weight, sizes, codes = np.zeros(len(table)), long_sides(table), table["class"].to_numpy()
    for row in rates.sort_values("from_px", kind="stable").itertuples():
        code = int(rates.loc[row.Index, "class"])
        weight[(codes == code) & (sizes >= row.from_px)] = row.rate
    return weight
