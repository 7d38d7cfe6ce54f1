"""What the book's own pages quote from a run: glued numbers, notices and tables, all written from result files.

MyST-NB takes numbers into prose from the outputs of a notebook. `glue_notebook` writes such a notebook without running
one; a page then says ``{glue:text}`executed/headline.ipynb::key:s```. The trailing ``:s`` is needed: MyST-NB 1.4 takes
what follows the last colon as the format, and without it that is the key itself.
"""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from companion import layout
from companion.config import Profile
from companion.errors import CompanionError
from companion.evaluation.thresholds import headline
from companion.evaluation.wording import NAMES as MEASURES
from companion.evaluation.wording import with_interval
from companion.plots import data_name
from companion.provenance import write_text
from companion.workflow.status import duration

VERDICTS = ("reproduced", "partly", "not reproduced", "cannot be compared", "not attempted")
HEADLINE_CLAIMS = ("C1", "C2", "C3", "C4", "C5", "C8")  # what the abstract rests on
# MyST-NB (and scrapbook before it) hides an output whose media types carry this prefix.
_HIDDEN = "application/papermill.record/"
Stamps = Sequence[tuple[Mapping[str, Any], list[str]]]  # the stamp of each stage, and why it is stale


def write_fragments(folder: Path, P: Profile, claims: Path, sizes: Path, stages: Stamps) -> None:
    """Write everything that pages include or quote: headline.ipynb, notice, headline, verdicts, times, freshness.

    Parameters
    ----------
    folder : book/executed
    claims, sizes : claims.json; sizes.parquet, whose first split and largest N make the headline
    """
    rows = json.loads(claims.read_text(encoding="utf-8"))["claims"]
    table = headline(pd.read_parquet(sizes))
    here = (table["split"].astype(str) == P.split_names[0]) & (table["n_train"] == P.sizes[-1])
    here &= (table["arm"] == "EXP+GEN") & table["measure"].isin(list(MEASURES))
    gains = table[here].sort_values("measure", key=lambda names: names.map(list(MEASURES).index))
    glue_notebook(quoted_numbers(P, rows, gains, [stamp for stamp, _ in stages]), folder / "headline.ipynb")
    fragments = {
        "notice": data_notice(P.dataset, P.name),
        "headline": scores_table(gains, P.evaluation.confidence_level)
        + "\n" + claims_table([row for row in rows if row["id"] in HEADLINE_CLAIMS]),
        "verdicts": claims_table(rows),
        "times": times_table([stamp for stamp, _ in stages]),
        "freshness": freshness_table(stages),
        "faults": faults_table(layout.root() / "benchmarks" / "faults.json"),
    }  # fmt: skip
    for name, text in fragments.items():
        write_text(folder / f"{name}.md", text)


def glue_notebook(values: Mapping[str, tuple[str, str]], path: Path) -> None:
    """Write a notebook whose outputs are `values`, for pages of the book to quote.

    Parameters
    ----------
    values : key -> (text exactly as it is to appear in prose, file that it was read from); keys are lower-case letters,
        digits and underscores
    path : where the notebook goes, inside the book's sources
    """
    rows = [(f"`{key}`", cell(value), cell(source)) for key, (value, source) in values.items()]
    outputs = [
        # repr: MyST-NB evaluates the text as a literal, so a bare "0.410" would come out as 0.41.
        new_output("display_data", data={f"{_HIDDEN}text/plain": repr(value)},
                   metadata={"scrapbook": {"name": key, "mime_prefix": _HIDDEN}})
        for key, (value, _) in values.items()
    ]  # fmt: skip
    text = (
        "# Numbers quoted in the text\n\nEvery number that a page of this book quotes from the companion's own "
        "results, with the file that it was read from when the book was built. None is typed by hand.\n\n"
    )
    cells = [
        new_markdown_cell(text + markdown_table(("key", "value", "read from"), rows), id="numbers"),
        new_code_cell("", outputs=outputs, id="glue", metadata={"tags": ["remove-input"]}),
    ]
    kernel = {"name": "python3", "display_name": "Python 3"}
    notebook = new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    write_text(path, nbformat.writes(notebook) + "\n")


def quoted_numbers(
    P: Profile, claims: Sequence[Mapping[str, Any]], gains: pd.DataFrame, stamps: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[str, str]]:
    """Key -> (text, file that it is from).

    Parameters
    ----------
    claims : rows of claims.json
    gains : rows of sizes.parquet of the headline's condition, one per measure
    stamps : of every stage of the run
    """
    verdicts = Counter(row["verdict"] for row in claims)
    profile, table, every = f"profile {P.name}", "sizes/sizes.parquet", "the stamps of all stages"
    quoted = {
        "data": (data_name(P.dataset), profile), "profile": (P.name, profile),
        "iou": (f"{P.evaluation.iou:g}", profile), "n_claims": (str(len(claims)), "claims/claims.json"),
        **{f"n_{v.replace(' ', '_')}": (str(verdicts[v]), "claims/claims.json") for v in VERDICTS},
        "n_stages": (str(len(stamps)), every),
        "wall_time": (duration(sum(stamp["wall_s"] for stamp in stamps)), every),
        "device": (", ".join(sorted({str(stamp["device"]) for stamp in stamps})) or "unknown", every),
        "commit": (", ".join(sorted({str(s["commit"]) for s in stamps if s.get("commit")})) or "none", every),
        "split": (P.split_names[0], table), "n_train": (str(P.sizes[-1]), table),
    }  # fmt: skip
    by_measure = {row["measure"]: row for row in gains.to_dict("records")}
    for measure in MEASURES:
        row = by_measure.get(measure, dict.fromkeys(("base", "score", "gain", "low", "high", "n")))
        gain = with_interval(row["gain"], row["low"], row["high"], row["n"], P.evaluation.confidence_level)
        quoted |= {f"{measure}_exp": (_score(row["base"]), table), f"{measure}_gen": (_score(row["score"]), table),
                   f"{measure}_gain": (gain, table)}  # fmt: skip
    return quoted


def data_notice(dataset: str, profile: str) -> str:
    """MyST admonition that says what data and profile every number of the book comes from."""
    name = Path(dataset).name
    title, data = {
        "phantom": (
            "simulated micrographs", "the **phantom**: micrographs drawn by a program, with exact truth. The phantom "
            "stands in for the paper's micrographs. It is **not the paper's data**: what is found on it, for or "
            "against the paper, is found on the phantom only."),
        "fecral": ("the paper's data set", "**fecral**, the micrographs that the paper's authors have published."),
    }.get(name, (f"the data set {name}", f"**{name}**. This is **not the paper's data**."))  # fmt: skip
    size = f"Profile: **{profile}**; its numbers are in `profiles/{profile}.yaml`."
    if profile == "smoke":
        size = (
            "The **smoke** profile checks that every step runs: tiny networks, two training runs per arm, minutes on "
            "two processor cores. It is too small to decide a claim of the paper."
        )
    head = f":::{{admonition}} The numbers in this book come from {title}\n:class: warning companion-notice"
    return f"{head}\n\nThey were computed on {data}\n\n{size}\n:::\n"


def scores_table(gains: pd.DataFrame, level: float = 0.95) -> str:
    """Markdown table of both arms' scores with the difference and its interval, which is of `level`."""
    header = (f"score, threshold {'; '.join(gains['choice'].unique())}", "EXP", "EXP+GEN", "difference")
    rows = [
        (MEASURES[row["measure"]], _score(row["base"]), _score(row["score"]),
         with_interval(row["gain"], row["low"], row["high"], row["n"], level))
        for row in gains.to_dict("records")
    ]  # fmt: skip
    return markdown_table(header, rows) if rows else "This profile has no pair of arms to compare.\n"


def claims_table(claims: Iterable[Mapping[str, Any]]) -> str:
    """Markdown table of claims: the paper, this run, verdict and its reason."""
    rows = [
        (c["id"], cell(c["claim"]), cell(c["paper"]), cell(c["ours"]), verdict_chip(c["verdict"]), cell(c["reason"]))
        for c in claims
    ]
    return markdown_table(("id", "claim", "paper", "this run", "verdict", "because"), rows)


def times_table(stamps: Sequence[Mapping[str, Any]]) -> str:
    """Markdown table of the run times of each notebook."""
    columns = ["notebook", "wall_s", "peak_memory_mib", "device"]
    table = pd.DataFrame(stamps, columns=columns)
    rows = [
        (f"[{name}](executed/{name}.ipynb)", str(len(runs)), duration(runs["wall_s"].sum()),
         duration(runs["wall_s"].max()), f"{runs['peak_memory_mib'].max()} MiB",
         cell(", ".join(sorted(set(runs["device"])))))
        for name, runs in table.groupby("notebook", sort=True)
    ]  # fmt: skip
    total = f"\nTogether {duration(table['wall_s'].sum())} in {len(table)} runs, some of them side by side.\n"
    return markdown_table(("notebook", "runs", "time, all runs", "longest", "peak memory", "device"), rows) + total


def freshness_table(stages: Stamps) -> str:
    """Markdown table of how many runs of each notebook are fresh, and why others are not."""
    rows = []
    for name in sorted({stamp["notebook"] for stamp, _ in stages}):
        runs = [reasons for stamp, reasons in stages if stamp["notebook"] == name]
        why = Counter("; ".join(reasons) for reasons in runs if reasons)
        text = ". ".join(f"{n} of them: {reason}" for reason, n in why.most_common(3))
        rows.append((f"[{name}](executed/{name}.ipynb)", str(len(runs)), str(runs.count([])), cell(text)))
    return markdown_table(("notebook", "runs", "fresh", "the others, because"), rows)


def faults_table(path: Path) -> str:
    """Markdown table of what was done to a run and what happened, from benchmarks/faults.json."""
    if not path.is_file():
        return "Nothing has been tried yet on this version: `python benchmarks/faults.py` writes the table.\n"
    tried = json.loads(path.read_text(encoding="utf-8"))
    rows = [(row["fault"], cell(row["tried"]), cell(row["happened"])) for row in tried["rows"]]
    told = f"\nOn {tried['device']}, at commit {tried['commit']}."
    missing = f" Not tried yet: {'; '.join(tried['not_tried'])}." if tried["not_tried"] else ""
    return markdown_table(("fault", "what was done", "what happened"), rows) + told + missing + "\n"


def badge(stamp: Mapping[str, Any], reasons: list[str]) -> str:
    """HTML lines from a stamp: data set, condition, profile, device, times, commit, date; fresh, or stale and why."""
    keys = ", ".join(f"{name} {value}" for name, value in stamp["keys"].items())
    entries = [
        ("data", data_name(stamp["dataset"])), ("profile", stamp["profile"]), ("condition", keys or "all"),
        ("device", stamp["device"]), ("wall time", f"{stamp['wall_s']:.0f} s"),
        ("peak memory", f"{stamp['peak_memory_mib']} MiB"), ("commit", stamp["commit"] or "none"),
        ("date", stamp["started"][:10]),
    ]  # fmt: skip
    chips = "".join(f"<span><b>{name}</b> {html.escape(str(value))}</span>" for name, value in entries)
    state = "stale" if reasons else "fresh"
    why = f'<div class="stamp-why">Stale because: {html.escape("; ".join(reasons))}</div>' if reasons else ""
    return f'<div class="stamp stamp-{state}">{chips}<span class="state">{state}</span></div>{why}'


def verdict_chip(verdict: str) -> str:
    """HTML chip of a verdict of the claims table."""
    if verdict not in VERDICTS:
        raise CompanionError(f"verdict {verdict!r} is none of {', '.join(VERDICTS)}")
    return f'<span class="verdict verdict-{verdict.replace(" ", "-")}">{verdict}</span>'


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(text: object) -> str:
    """A text as it may stand in a cell of a Markdown table."""
    return html.escape(str(text), quote=False).replace("|", "\\|").replace("\n", " ")


def _score(value: float | None) -> str:
    return "undefined" if pd.isna(value) else f"{value:.3f}"
