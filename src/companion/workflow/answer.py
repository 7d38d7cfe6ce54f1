"""The first page: what generated patches change in a run, how surely, and a picture of it."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from companion.config import Profile
from companion.config.arms import ARMS
from companion.evaluation.plots import paired_differences
from companion.evaluation.significance import headline_measure, paired_scores, paired_tests, power
from companion.evaluation.thresholds import headline
from companion.evaluation.verdicts import PAPER_GAIN
from companion.evaluation.wording import CONDITION, NAMES, at_condition, with_interval
from companion.plots import data_name, data_note, save, use_style

MEANS = {"f1_hm": "finding and naming", "f1_detect": "finding defects", "f1_class": "naming their class"}
SAME = "not shown to differ"


@dataclass(frozen=True)
class Results:
    """A run: its profile, and the folder of each notebook that a page shows."""

    P: Profile
    at: Mapping[str, Path]

    def table(self, notebook: str, file: str) -> pd.DataFrame:
        """A table of a notebook."""
        return pd.read_parquet(self.at[notebook] / f"{file}.parquet")

    def json(self, notebook: str, file: str) -> Any:
        """What a JSON file of a notebook holds."""
        return json.loads((self.at[notebook] / f"{file}.json").read_text(encoding="utf-8"))

    def here(self, table: pd.DataFrame) -> pd.DataFrame:
        """Rows of the condition that pages show: the first split, the largest N."""
        return at_condition(table, (self.P.split_names[0], self.P.sizes[-1]))

    def said(self, row: Mapping[str, Any], value: str = "mean") -> str:
        """A value with its interval, of a row with columns low and high."""
        return with_interval(row[value], row["low"], row["high"], row.get("n"), self.P.evaluation.confidence_level)


class Change(NamedTuple):
    """Mean of EXP+GEN minus EXP over the conditions of a run, each counted once."""

    measure: str
    gain: float
    low: float
    high: float
    n: int  # pairs of runs
    chance: float  # to see a gain of PAPER_GAIN that is there in all conditions
    chance_of_one: float  # the same of one condition by itself, as the paper tests

    def said(self, level: float) -> str:
        """The gain with its sign and interval."""
        return "+" * (self.gain > 0) + with_interval(self.gain, self.low, self.high, self.n, level)


def change(pairs: pd.DataFrame, measure: str, level: float) -> Change:
    """What EXP+GEN changes, from `significance.paired_scores` at one choice of the threshold, against labels.

    Conditions are fixed: the interval says how their mean would move with other detector seeds, not with other splits
    or models. The spread of the pairs is pooled inside conditions, whose own means stay out of it (t with n minus
    conditions degrees of freedom); it is NaN without two pairs in a condition.
    """
    from scipy import stats

    own = pairs[(pairs["arm"] == "EXP+GEN") & (pairs["measure"] == measure)].dropna(subset="difference")
    groups = own.groupby(CONDITION)["difference"]
    n, df, gain = groups.size(), len(own) - groups.ngroups, float(groups.mean().mean())
    spread = ((own["difference"] - groups.transform("mean")) ** 2).sum() / df if df else 0.0
    spread = float(np.sqrt(spread)) or float("nan")  # equal differences have none
    error = spread * np.sqrt((1 / n).sum()) / max(1, len(n))
    half, chance = float(stats.t.isf((1 - level) / 2, df)) * error, power(PAPER_GAIN / error, df, level)
    of_one = power(PAPER_GAIN / spread * np.sqrt(n.max()), n.max() - 1, level)
    return Change(measure, gain, gain - half, gain + half, len(own), chance, of_one)


def by_size(pairs: pd.DataFrame, measure: str, level: float) -> tuple[dict[int, Change], bool]:
    """`change` at each N, and whether it is for the better at one and for the worse at another."""
    each = {n: change(own, measure, level) for n, own in pairs.groupby("n_train")}
    return each, {"better", "worse"} <= {direction(one.low, one.high) for one in each.values()}


def direction(low: float, high: float) -> str:
    """What an interval of a change says: "better", "worse" or "not shown to differ", also where there is none."""
    return "better" if low > 0 else "worse" if high < 0 else SAME


def sentence(pairs: pd.DataFrame, measure: str, data: str, level: float) -> tuple[str, str]:
    """The answer to the book's question from the pairs of a run, and the changes at each N.

    Where the change is for the better at one N and for the worse at another, their mean answers nothing: each N does.
    """
    found, name = change(pairs, measure, level), f"{NAMES[measure]} ({MEANS[measure]})"
    if not found.n:
        return f"Not known: on {data} this run has no pair of arms with a defined {name}.", ""
    at, mixed = by_size(pairs, measure, level)
    up, down = (" and ".join(str(n) for n, one in at.items() if direction(one.low, one.high) == way)
                for way in ("better", "worse"))  # fmt: skip
    holds = f"it does {'not ' if found.high < PAPER_GAIN else ''}hold the paper's gain of {PAPER_GAIN}, too"
    answer = {
        "better": f"Yes, on {data}: generated images raise {name}.",
        "worse": f"No, on {data}: generated images lower {name}.",
        SAME: f"Not shown, on {data}: the interval of the change in {name} holds zero; {holds}.",
    }[direction(found.low, found.high)]
    if mixed:
        answer = f"On {data} it depends: generated images raise {name} where {up} micrographs are labelled, and lower "
        answer += f"it where {down} are."
    elif not np.isfinite(found.high):
        answer = f"Not known, on {data}: too few pairs of runs for an interval of the change in {name}."
    return answer, "; ".join(f"N = {n}: {one.said(level)}" for n, one in at.items()) + ". Each is a mean over splits."


def head_room(tests: pd.DataFrame, measure: str, level: float) -> str:
    """Where fresh labelled micrographs raise nothing either, in words; "" where they do, or where none were added."""
    fresh = tests[(tests["arm"] == "EXP+FRESH") & (tests["measure"] == measure) & (tests["low"] <= 0)]
    where = " and ".join(f"N = {row.n_train}, {with_interval(row.gain, row.low, row.high, row.n, level)}"
                         for row in fresh.itertuples())  # fmt: skip
    return f"Fresh labelled micrographs do not raise it either at {where}: only a loss can show there." * bool(where)


def first_page(folder: Path, r: Results) -> tuple[str, str]:
    """Markdown of the answer, and of the picture (drawn into ``folder/figures``) beside its numbers."""
    P, level = r.P, r.P.evaluation.confidence_level
    pairs, tests, measure = tables(r)
    answer, more = sentence(pairs, measure, data_name(P.dataset), level)
    at, mixed = by_size(pairs, measure, level)
    more = f"Each number is a mean over {len(P.splits)} splits." if mixed else more  # those below are of each N
    more = f"{more} {head_room(tests, measure, level)}".strip()
    if P.name == "smoke":
        more = f"By the rule it would read: {answer} {more}"
        answer = "Not from this run: a smoke run checks that every step works, and its numbers mean nothing."
    value, what, beside = real(r.at.get("16_real_micrographs"))
    use_style()
    shown = [t[t["arm"] == "EXP+GEN"] for t in (pairs.dropna(subset="difference"), tests.dropna(subset="gain"))]
    measures = [name for name in MEANS if (shown[1]["measure"] == name).any()] or [measure]
    save(paired_differences(*shown, measures, data_note(P.dataset, P.name), 4.4), folder, "change")
    tiles = {f"{NAMES[measure]} at N = {n}": one for n, one in at.items()}
    if not mixed:  # the mean, and finding or naming, whichever stands out most
        found = {name: change(pairs, name, level) for name in MEANS}
        parts = [name for name, f in found.items() if name not in (measure, "f1_hm") and np.isfinite(f.gain)]
        parts.sort(key=lambda name: -abs(f.gain) / (f.high - f.low) if (f := found[name]).high > f.low else 0.0)
        tiles = {f"{NAMES[name]}, {MEANS[name]}, mean of all N": found[name] for name in (measure, *parts[:1])}
    known = {what: (one.said(level), direction(one.low, one.high)) for what, one in tiles.items() if one.n}
    picture = (
        "::::{div} first-screen\n:::{figure} executed/figures/change.png\n"
        f":alt: Change by generated images; {'; '.join(f'{what} {v}, {how}' for what, (v, how) in known.items())}.\n\n"
        "Dots: pairs of detectors of one seed. Diamonds: means with intervals. Grey: the paper's gain in F1HM. Read "
        "from {download}`chosen.parquet <executed/files/07_thresholds/chosen.parquet>`.\n"
        f":::\n\n{numbers(known, (value, what), [change(pairs, measure, level), *at.values()])}\n::::\n"
    )
    return f'<p class="answer">{html.escape(answer)} <small>{html.escape(more)}</small></p>\n{beside}', picture


def tables(r: Results) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """Pairs and tests of chosen.parquet at the headline's threshold, and the measure to read them by."""
    pairs = paired_scores(headline(chosen := r.table("07_thresholds", "chosen")))
    return pairs, paired_tests(pairs, r.P.evaluation.confidence_level), headline_measure(chosen)[0]


def real(folder: Path | None) -> tuple[str, str, str]:
    """The change on real micrographs, as the notebook about them found it, what it is, and the answer as HTML; or that
    it was not run."""
    if folder is None:
        return "not run yet", "the same question on real micrographs (loops_316L, 16 TEM images of steel)", ""
    r = json.loads((folder / "real.json").read_text(encoding="utf-8"))
    first, of = r["gains"][0], f"{r['images']} real micrographs"
    said = [("+" * (g["gain"] > 0) + with_interval(g["gain"], g["low"], g["high"], level=r["level"]), ARMS[g["arm"]])
            for g in r["gains"]]  # fmt: skip
    value, also = said[0][0], "".join(f"; without a model, {arm.meaning}: {text}" for text, arm in said[1:])
    does = {"better": "raise", "worse": "lower"}.get(how := direction(first["low"], first["high"]))
    answer = (
        f'<p class="answer">On {of}: generated images {does or "are not shown to change"} F1_detect. '
        f'<small>{value}{also}. <a href="executed/16_real_micrographs.html">Page 16</a></small></p>\n'
    )
    return value, f"F1_detect on {of}, {how}", answer


def numbers(known: Mapping[str, tuple[str, str]], on_real: tuple[str, str], changes: Sequence[Change]) -> str:
    """HTML of the numbers beside the picture: changes by what they are of, with their direction; the one on real
    micrographs; and the chance of seeing the paper's in one condition, as it tests, and at least in all `changes`."""
    chance = ["unknown" if np.isnan(p) else "> 99 %" if p >= 0.995 else f"{100 * p:.0f} %"
              for p in (changes[0].chance_of_one, min(one.chance for one in changes))]  # fmt: skip
    power = f"power: chance that one split's pairs show a true change of {PAPER_GAIN}; all pairs of an N: {chance[1]}"
    tiles = [*((value, f"{what}: {how}") for what, (value, how) in known.items()), on_real, (chance[0], power)]
    rows = (f"<div><b>{html.escape(value)}</b> <small>{html.escape(more.rstrip(')'))}</small><span>{html.escape(what)}"
            "</span></div>" for said, what in tiles for value, _, more in [said.partition(" (")])  # fmt: skip
    return f'<div class="numbers">{"".join(rows)}</div>\n'
