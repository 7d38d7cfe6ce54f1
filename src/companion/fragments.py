"""What the book's own pages quote from a run: glued numbers, notices and tables, all written from result files.

MyST-NB takes numbers into prose from the outputs of a notebook. `glue_notebook` writes such a notebook
without running one; a page then says ``{glue:text}`executed/headline.ipynb::key:s```. The trailing ``:s`` is
needed: MyST-NB 1.4 takes what follows the last colon as the format, and without it that is the key itself.
"""

from __future__ import annotations

import html
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from companion import measurements, paths, places, provenance, stages
from companion.errors import CompanionError, problems
from companion.evaluation.conditions import at_condition, headline_condition
from companion.evaluation.wording import with_interval
from companion.config.profile import Profile
from companion.report import duration

VERDICTS = ("reproduced", "partly", "not reproduced", "cannot be compared", "not attempted")
HEADLINE_CLAIMS = ("C1", "C2", "C3", "C4", "C5", "C8")  # what the abstract rests on
MEASURES = {
    "f1_detect": r"$F_{1,\mathrm{detect}}$", "f1_class": r"$F_{1,\mathrm{class}}$", "f1_hm": r"$F_{1,\mathrm{HM}}$",
}  # fmt: skip
# MyST-NB (and scrapbook before it) hides an output whose media types carry this prefix.
_HIDDEN = "application/papermill.record/"
_KEY = re.compile(r"[a-z][a-z0-9_]*")
_GLUED = re.compile(r"\{glue:text\}`[^`:]*::([^`:]+):s`")


def write_fragments(
    folder: Path, profile: Profile, claims: Path, sizes: Path, states: Mapping[str, list[str] | None]
) -> None:
    """Write everything that pages include or quote: headline.ipynb, notice, headline, verdicts, times, freshness.

    Parameters
    ----------
    folder : book/executed
    claims : claims.json
    sizes : sizes.parquet; its first split and largest N make the headline
    states : of `stages.states`
    """
    rows = json.loads(claims.read_text(encoding="utf-8"))["claims"]
    gains = headline_gains(pd.read_parquet(sizes), profile)
    matrix = stages.matrix(profile)
    stamps = [(stage.kind.notebook, provenance.read_stamp(stage.folder) or {}) for stage in matrix]
    quoted = quoted_numbers(profile, rows, gains, [stamp for _, stamp in stamps])
    runs = paths.runs().parent
    origins = {
        "claims": claims.relative_to(runs).as_posix(), "sizes": sizes.relative_to(runs).as_posix(),
        "stamps": "the stamps of all stages", "profile": f"profile {profile.name}",
    }  # fmt: skip
    sources = {key: origins[origin] for key, (_, origin) in quoted.items()}
    glue_notebook({key: value for key, (value, _) in quoted.items()}, folder / "headline.ipynb", sources)
    fragments = {
        "notice": data_notice(places.dataset_name(profile.dataset), profile.name),
        "headline": scores_table(gains, profile.evaluation.confidence_level)
        + "\n"
        + claims_table([r for r in rows if r["id"] in HEADLINE_CLAIMS]),
        "verdicts": claims_table(rows),
        "times": times_table(stamps),
        "freshness": freshness_table([(stage.kind.notebook, states[stage.address]) for stage in matrix]),
        "faults": faults_table(paths.root() / "benchmarks" / "faults.json"),
        **measurements.fragments(),
    }
    for name, text in fragments.items():
        with provenance.atomic(folder / f"{name}.md") as temporary:
            temporary.write_text(text, encoding="utf-8")


# --- numbers in prose ---------------------------------------------------------------------------------------


def glue_notebook(values: Mapping[str, str], path: Path, sources: Mapping[str, str] | None = None) -> None:
    """Write a notebook whose outputs are `values`, for pages of the book to quote.

    Parameters
    ----------
    values : key -> text exactly as it is to appear in prose, e.g. ``{"n_pairs": "4"}``; keys are lower-case
        letters, digits and underscores
    path : where the notebook goes, inside the book's sources
    sources : key -> file that the number was read from, shown beside it on the notebook's own page

    Raises
    ------
    CompanionError
        A key that MyST-NB could not quote, or a value that is not a text.
    """
    sources = sources or {}
    wrong = [f"{key!r} is not lower-case letters, digits and underscores" for key in values if not _KEY.fullmatch(key)]
    wrong += [f"{key}: {value!r} is not a text" for key, value in values.items() if not isinstance(value, str)]
    if wrong:
        raise problems(f"{path}: cannot be glued", wrong)
    rows = [(f"`{key}`", _cell(value), _cell(sources.get(key, ""))) for key, value in values.items()]
    outputs = [
        # repr: MyST-NB evaluates the text as a literal, so a bare "0.410" would come out as 0.41.
        new_output(
            "display_data",
            data={f"{_HIDDEN}text/plain": repr(value)},
            metadata={"scrapbook": {"name": key, "mime_prefix": _HIDDEN}},
        )
        for key, value in values.items()
    ]
    text = (
        "# Numbers quoted in the text\n\nEvery number that a page of this book quotes from the companion's own "
        "results, with the file that it was read from when the book was built. None is typed by hand.\n\n"
    )
    cells = [
        new_markdown_cell(text + _table(("key", "value", "read from"), rows), id="numbers"),
        new_code_cell("", outputs=outputs, id="glue", metadata={"tags": ["remove-input"]}),
    ]
    kernel = {"name": "python3", "display_name": "Python 3"}
    notebook = new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})
    with provenance.atomic(path) as temporary:
        temporary.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def glued_keys(page: str) -> list[str]:
    """Keys that a page (its MyST source) quotes, in order, each once."""
    return list(dict.fromkeys(_GLUED.findall(page)))


def quoted_numbers(
    profile: Profile, claims: Sequence[Mapping[str, Any]], gains: pd.DataFrame, stamps: Sequence[Mapping[str, Any]]
) -> dict[str, tuple[str, str]]:
    """Key -> (text, origin); origin is "claims", "sizes", "stamps" or "profile".

    Parameters
    ----------
    claims : rows of claims.json
    gains : rows of `headline_gains`
    stamps : of every stage of the run
    """
    verdicts = Counter(row["verdict"] for row in claims)
    quoted = {
        "data": (data_name(places.dataset_name(profile.dataset)), "profile"),
        "profile": (profile.name, "profile"),
        "iou": (f"{profile.evaluation.iou:g}", "profile"),
        "n_claims": (str(len(claims)), "claims"),
        **{f"n_{v.replace(' ', '_')}": (str(verdicts[v]), "claims") for v in VERDICTS},
        "n_stages": (str(len(stamps)), "stamps"),
        "wall_time": (duration(sum(stamp.get("wall_s", 0) for stamp in stamps)), "stamps"),
        "device": (", ".join(sorted({str(s["device"]) for s in stamps if "device" in s})) or "unknown", "stamps"),
        "commit": (", ".join(sorted({str(s["commit"]) for s in stamps if s.get("commit")})) or "none", "stamps"),
    }
    condition = gains.to_dict("records")[0] if len(gains) else {}
    for key in ("split", "n_train"):
        quoted[key] = (str(condition.get(key, "none")), "sizes")
    level = profile.evaluation.confidence_level
    by_measure = {row["measure"]: row for row in gains.to_dict("records")}
    for measure in MEASURES:
        row = by_measure.get(measure, dict.fromkeys(("base", "other", "gain", "low", "high", "n")))
        quoted[f"{measure}_exp"] = (_score(row["base"]), "sizes")
        quoted[f"{measure}_gen"] = (_score(row["other"]), "sizes")
        quoted[f"{measure}_gain"] = (with_interval(row["gain"], row["low"], row["high"], row["n"], level), "sizes")
    return quoted


def headline_gains(gains: pd.DataFrame, profile: Profile) -> pd.DataFrame:
    """Rows of sizes.parquet of the profile's first split and its largest N, one per measure."""
    here = at_condition(gains, headline_condition(profile))
    return here.sort_values("measure", key=lambda names: names.map(list(MEASURES).index), ignore_index=True)


# --- fragments ----------------------------------------------------------------------------------------------


def data_name(dataset: str) -> str:
    """How text names a data set; the phantom is never named without saying what it is."""
    return "phantom (simulated)" if dataset == "phantom" else dataset


def data_notice(dataset: str, profile: str) -> str:
    """MyST admonition that says what data and profile every number of the book comes from."""
    if dataset == "phantom":
        title = "The numbers in this book come from simulated micrographs"
        data = (
            "They were computed on the **phantom**: micrographs drawn by a program, with exact truth. The phantom "
            "stands in for the paper's micrographs. It is **not the paper's data**: what is found on it, for or "
            "against the paper, is found on the phantom only."
        )
    elif dataset == "fecral":
        title = "The numbers in this book come from the paper's data set"
        data = "They were computed on **fecral**, the micrographs that the paper's authors have published."
    else:
        title = f"The numbers in this book come from the data set {dataset}"
        data = f"They were computed on **{dataset}**. This is **not the paper's data**."
    size = (
        "The **smoke** profile checks that every step runs: tiny networks, two training runs per arm, minutes on two "
        "processor cores. It is too small to decide a claim of the paper."
        if profile == "smoke"
        else f"Profile: **{profile}**; its numbers are in `profiles/{profile}.yaml`."
    )
    return f":::{{admonition}} {title}\n:class: warning companion-notice\n\n{data}\n\n{size}\n:::\n"


def scores_table(gains: pd.DataFrame, level: float = 0.95) -> str:
    """Markdown table of both arms' scores with the difference and its interval, which is of `level`."""
    header = ("score, at each arm's best threshold", "EXP", "EXP+GEN", "difference")
    rows = [
        (MEASURES[row["measure"]], _score(row["base"]), _score(row["other"]),
         with_interval(row["gain"], row["low"], row["high"], row["n"], level))
        for row in gains.to_dict("records")
    ]  # fmt: skip
    return _table(header, rows) if rows else "This profile has no pair of arms to compare.\n"


def claims_table(claims: Iterable[Mapping[str, Any]]) -> str:
    """Markdown table of claims: the paper, this run, verdict and its reason."""
    rows = [
        (
            c["id"],
            _cell(c["claim"]),
            _cell(c["paper"]),
            _cell(c["ours"]),
            verdict_chip(c["verdict"]),
            _cell(c["reason"]),
        )
        for c in claims
    ]
    return _table(("", "claim", "paper", "this run", "verdict", "because"), rows)


def times_table(stamps: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """Markdown table of the run times of each notebook, from (notebook, stamp)."""
    table = pd.DataFrame(
        [(name, s["wall_s"], s["peak_memory_mib"], s["device"]) for name, s in stamps if "wall_s" in s],
        columns=["notebook", "wall", "memory", "device"],
    )
    rows = [
        (f"[{name}](executed/{name}.ipynb)", str(len(runs)), duration(runs["wall"].sum()),
         duration(runs["wall"].max()), f"{runs['memory'].max()} MiB", _cell(", ".join(sorted(set(runs["device"])))))
        for name, runs in table.groupby("notebook", sort=True)
    ]  # fmt: skip
    total = f"\nTogether {duration(table['wall'].sum())} in {len(table)} runs, some of them side by side.\n"
    return _table(("notebook", "runs", "time, all runs", "longest", "peak memory", "device"), rows) + total


def freshness_table(states: Iterable[tuple[str, list[str] | None]]) -> str:
    """Markdown table of how many runs of each notebook are fresh, and why others are not, from (notebook, reasons)."""
    by_notebook: dict[str, list[list[str] | None]] = {}
    for name, reasons in states:
        by_notebook.setdefault(name, []).append(reasons)
    rows = []
    for name, runs in by_notebook.items():
        why = Counter("missing" if reasons is None else "; ".join(reasons) for reasons in runs if reasons != [])
        text = ". ".join(f"{n} of them: {reason}" for reason, n in why.most_common(3))
        rows.append((f"[{name}](executed/{name}.ipynb)", str(len(runs)), str(runs.count([])), _cell(text)))
    return _table(("notebook", "runs", "fresh", "the others, because"), rows)


def faults_table(path: Path) -> str:
    """Markdown table of what was done to a run and what happened, from benchmarks/faults.json."""
    if not path.is_file():
        return "Nothing has been tried yet on this version: `python benchmarks/faults.py` writes the table.\n"
    tried = json.loads(path.read_text(encoding="utf-8"))
    rows = [(row["fault"], _cell(row["tried"]), _cell(row["happened"])) for row in tried["rows"]]
    told = f"\nOn {tried['device']}, at commit {tried['commit']}."
    missing = f" Not tried yet: {'; '.join(tried['not_tried'])}." if tried["not_tried"] else ""
    return _table(("fault", "what was done", "what happened"), rows) + told + missing + "\n"


def verdict_chip(verdict: str) -> str:
    """HTML chip of a verdict of the claims table."""
    if verdict not in VERDICTS:
        raise CompanionError(f"verdict {verdict!r} is none of {', '.join(VERDICTS)}")
    return f'<span class="verdict verdict-{verdict.replace(" ", "-")}">{verdict}</span>'


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(text: object) -> str:
    return html.escape(str(text), quote=False).replace("|", "\\|").replace("\n", " ")


def _score(value: float | None) -> str:
    return "undefined" if pd.isna(value) else f"{value:.3f}"
