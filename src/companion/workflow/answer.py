"""The first page: what generated patches change in a run, how surely, and a picture of it."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from companion.config import Profile
from companion.evaluation.plots import paired_differences
from companion.evaluation.significance import headline_measure, paired_scores, paired_tests
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
        said = with_interval(self.gain, self.low, self.high, self.n, level).replace("-", "−")
        return "+" * (self.gain > 0) + said


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

    def seen(error: float, df: int) -> tuple[float, float]:  # half the interval, and the power of its test
        least = float(stats.t.isf((1 - level) / 2, df))
        beyond = stats.nct.sf([least, -least], df, PAPER_GAIN / error)
        return least * error, float(beyond[0] + 1 - beyond[1])

    half, chance = seen(spread * np.sqrt((1 / n).sum()) / max(1, len(n)), df)
    of_one = seen(spread / np.sqrt(n.max()), n.max() - 1)[1]
    return Change(measure, gain, gain - half, gain + half, len(own), chance, of_one)


def direction(low: float, high: float) -> str:
    """What an interval of a change says: "better", "worse" or "not shown to differ", also where there is none."""
    return "better" if low > 0 else "worse" if high < 0 else SAME


def sentence(pairs: pd.DataFrame, measure: str, data: str, level: float) -> tuple[str, str]:
    """The answer to the book's question from the pairs of a run, and the changes at each N.

    Where the change is for the better at one N and for the worse at another, their mean answers nothing: each N does.
    """
    found, name = change(pairs, measure, level), NAMES[measure]
    if not found.n:
        return f"Not known: on {data} this run has no pair of arms with a defined {name}.", ""
    by_size = {n: change(own, measure, level) for n, own in pairs.groupby("n_train")}
    up, down = (" and ".join(str(n) for n, one in by_size.items() if direction(one.low, one.high) == way)
                for way in ("better", "worse"))  # fmt: skip
    holds = f"it does {'not ' if found.high < PAPER_GAIN else ''}hold the paper's gain of {PAPER_GAIN}, too"
    answer = {
        "better": f"Yes, on {data}: generated images raise {name}.",
        "worse": f"No, on {data}: generated images lower {name}.",
        SAME: f"Not shown, on {data}: the interval of the change in {name} holds zero; {holds}.",
    }[direction(found.low, found.high)]
    if up and down:
        answer = f"It depends, on {data}: generated images raise {name} where {up} micrographs are labelled, "
        answer += f"and lower it where {down} are."
    elif not np.isfinite(found.high):
        answer = f"Not known, on {data}: too few pairs of runs for an interval of the change in {name}."
    each = "; ".join(f"N = {n}: {one.said(level)}" for n, one in by_size.items())
    return answer, f"{each}. Each is a mean over splits."


def first_page(folder: Path, r: Results) -> tuple[str, str]:
    """Markdown of the answer, and of the picture (drawn into ``folder/figures``) beside its numbers."""
    P, level = r.P, r.P.evaluation.confidence_level
    pairs, tests, measure = tables(r)
    found = {name: change(pairs, name, level) for name in MEANS}
    answer, more = sentence(pairs, measure, data_name(P.dataset), level)
    if P.name == "smoke":
        more = f"By the rule it would read: {answer} {more}"
        answer = "Not from this run: a smoke run checks that every step works, and its numbers mean nothing."
    value, what, beside = real(r.at.get("16_real_micrographs"))
    use_style()
    shown = [t[t["arm"] == "EXP+GEN"] for t in (pairs.dropna(subset="difference"), tests.dropna(subset="gain"))]
    measures = [name for name in MEANS if (shown[1]["measure"] == name).any()] or [measure]
    save(paired_differences(*shown, measures, data_note(P.dataset, P.name), 4.4), folder, "change")
    each = (f"{NAMES[f.measure]} {f.said(level)}, {direction(f.low, f.high)}" for f in found.values() if f.n)
    picture = (
        "::::{div} first-screen\n:::{figure} executed/figures/change.png\n"
        f":alt: Change by generated images; {'; '.join(each)}.\n\n"
        "Dots: pairs of detectors of one seed. Diamonds: means with intervals. Grey: the paper's gain in F1HM. Read "
        "from {download}`chosen.parquet <executed/files/07_thresholds/chosen.parquet>`.\n"
        f":::\n\n{numbers(found, measure, (value, what), level)}\n::::\n"
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
    first, *others = r["gains"]
    of, how = f"{r['images']} real micrographs", direction(first["low"], first["high"])
    value, *beside = (with_interval(g["gain"], g["low"], g["high"], level=r["level"]) for g in (first, *others))
    value, does = "+" * (first["gain"] > 0) + value.replace("-", "−"), {"better": "raise", "worse": "lower"}.get(how)
    also = "".join(f"; {g['arm']}, without a model: {text}" for g, text in zip(others, beside, strict=True))
    answer = (
        f'<p class="answer">On {of}: generated images {does or "are not shown to change"} F1_detect. '
        f'<small>{value}{also}. <a href="executed/16_real_micrographs.html">Page 16</a></small></p>\n'
    )
    return value, f"F1_detect on {of}, {how}", answer


def numbers(found: dict[str, Change], measured: str, on_real: tuple[str, str], level: float) -> str:
    """HTML of the numbers beside the picture: headline, finding or naming, real micrographs, chance of seeing it."""
    one = found[measured]
    tiles = [(one.said(level), f"{NAMES[measured]}, {MEANS[measured]}, mean of all N: {direction(one.low, one.high)}")]
    parts = [f for name, f in found.items() if name not in (measured, "f1_hm") and np.isfinite(f.gain)]
    if parts:  # the one whose change stands out most
        most = max(parts, key=lambda f: abs(f.gain) / (f.high - f.low) if f.high > f.low else 0.0)
        how = direction(most.low, most.high)
        tiles.append((most.said(level), f"{NAMES[most.measure]}, {MEANS[most.measure]}, mean of all N: {how}"))
    chance = ["unknown" if np.isnan(p) else "> 99 %" if p >= 0.995 else f"{100 * p:.0f} %"
              for p in (one.chance, one.chance_of_one)]  # fmt: skip
    what = f"chance that a study of this size sees a change of {PAPER_GAIN}; {chance[1]} in one condition by itself"
    tiles += [on_real, (chance[0], what)]
    rows = (f"<div><b>{html.escape(value)}</b> <small>{html.escape(more.rstrip(')'))}</small><span>{html.escape(what)}"
            "</span></div>" for said, what in tiles for value, _, more in [said.partition(" (")])  # fmt: skip
    return f'<div class="numbers">{"".join(rows)}</div>\n'
