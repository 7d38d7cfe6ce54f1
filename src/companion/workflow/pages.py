"""What the book's own pages include from a run: notices, cards and tables, all written from result files."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from companion import layout
from companion.config.arms import ARMS
from companion.evaluation.wording import CONDITION, NAMES, condition_name, signed
from companion.plots import data_name
from companion.provenance import write_text
from companion.workflow import answer, found
from companion.workflow.status import duration
from companion.workflow.tables import said as spelt

VERDICTS = ("reproduced", "partly", "not reproduced", "cannot be compared", "not attempted")
FIGURE = ":::{{figure}} executed/{0}.png\n:name: {0}\n:width: 100%\n:alt: {1}\n:::\n"
QUOTED = {"13_mask_faithfulness": 1, "14_annotation_bias": 2}  # sentences of studies, on the first page
Stamps = Sequence[tuple[Mapping[str, Any], list[str]]]  # the stamp of each stage, and why it is stale


def write_fragments(folder: Path, r: answer.Results, stages: Stamps) -> None:
    """Write into `folder`, book/executed, what pages include or quote, and the figure of the first page."""
    rows, stamps = r.json("11_claims", "claims")["claims"], [stamp for stamp, _ in stages]
    said, picture = answer.first_page(folder, r)
    strip = "One region four times: held-out patch, mask of its defects, image generated from it, detections. "
    follows, bias = (" ".join(found.sentences(page, r)[:n]) if page in r.at else "" for page, n in QUOTED.items())
    counts = Counter(row["verdict"] for row in rows)
    verdicts = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)
    fragments = {
        "answer": said, "notice": data_notice(r.P.dataset, r.P.name), "picture": picture,
        "byline": byline(layout.root() / "CITATION.cff", stamps), "status": status_table(stages),
        "verdicts": f"Of {len(rows)} claims: {verdicts}.\n\n{claim_cards(rows)}",
        "faults": faults_table(layout.root() / "benchmarks" / "faults.json"), "arms": f"{arms_table(r)}\n{bias}\n",
        "waterfall": FIGURE.format("waterfall", waterfall_said(r)), "strip": FIGURE.format("strip", strip + follows),
    }  # fmt: skip
    for name, text in fragments.items():
        write_text(folder / f"{name}.md", text)


def arms_table(r: answer.Results) -> str:
    """Markdown table of what every arm that has EXP as its baseline changes on the first split, at each N."""
    _, tests, measure = answer.tables(r)
    own = tests[(tests["baseline"] == "EXP") & (tests["split"] == r.P.split_names[0])].dropna(subset="gain")
    said = [signed(t.gain) + f" ({signed(t.low)} to {signed(t.high)})" * (t.high > t.low) for t in own.itertuples()]
    shown = list(dict.fromkeys((measure, "map50")))
    table = own.assign(said=said).pivot(index=["arm", "n_train"], columns="measure", values="said")
    rows = [(f"{arm}: {ARMS[arm].meaning}" if k == 0 else arm, n, *row) for arm in ARMS if arm in table.index
            for k, (n, *row) in enumerate(table.loc[arm].reindex(columns=shown).fillna("–").itertuples())]  # fmt: skip
    fresh = f"; in EXP+FRESH {r.P.n_fresh} micrographs more" * ("EXP+FRESH" in table.index)
    of = f"Scores less those of EXP, {ARMS['EXP'].meaning}; split {r.P.split_names[0]}, intervals over seeds{fresh}:"
    return f"{of}\n\n{markdown_table(('arm and what it is trained on', 'N', *map(NAMES.get, shown)), rows)}"


def waterfall_said(r: answer.Results) -> str:
    """What the waterfall shows, in words: the first score of each panel, and the change from each arm to the next."""
    said = ["Score of the first arm, and changes from each to the next."]
    for (*at, measure), own in r.table("08_sizes_and_splits", "waterfall").groupby([*CONDITION, "measure"], sort=False):
        steps = [f"{row.arm} {signed(row.step) if row.above else f'{row.score:.3f}'}" for row in own.itertuples()]
        said.append(f"{NAMES[measure]}, {condition_name(at)}: {', '.join(steps)}.")
    return " ".join(said)


def byline(citation: Path, stamps: Sequence[Mapping[str, Any]]) -> str:
    """HTML line that names what is read: project, version, day and commits of the run, how to cite, DOI."""
    about = yaml.safe_load(citation.read_text(encoding="utf-8"))
    ran = sorted(stamps, key=lambda stamp: str(stamp["started"]))
    commits = [str(stamp["commit"]) for stamp in ran if stamp.get("commit")] or ["none"]
    more = f", the last of {len(set(commits))} that its stages were made from" * (len(set(commits)) > 1)
    parts = [f"{', '.join(author['name'] for author in about['authors'])}: {about['title']}",
             f"version {about['version']}", f"run of {str(ran[-1]['started'])[:10] if ran else 'no day'}",
             f"commit {commits[-1]}{more}", f"DOI: {about.get('doi', 'none yet')}"]  # fmt: skip
    cite = '<a href="status.html">status</a> · <a href="#how-to-cite">how to cite</a>'
    return f'<p class="byline">{" · ".join(map(html.escape, parts))} · {cite}</p>\n'


def data_notice(dataset: str, profile: str) -> str:
    """MyST admonition that says what data and profile every number of the book comes from."""
    name = Path(dataset).name
    title, data = {
        "phantom": (
            "Simulated micrographs, not the paper's data", "The **phantom** stands in for the paper's micrographs: "
            "drawn by a program, with exact truth. All that is found about the paper is found on it; page 16 alone "
            "has real ones."),
        "fecral": ("The paper's data set", "**fecral**: the micrographs that the paper's authors have published."),
    }.get(name, (f"The data set {name}, not the paper's data", f"All of it is of **{name}**."))  # fmt: skip
    size = f"Profile: **{profile}** (`profiles/{profile}.yaml`)."
    if profile == "smoke":
        size = "This is the **smoke** run: two short runs per arm, which try every step. **Its numbers mean nothing.**"
    return f":::{{admonition}} {title}\n:class: warning companion-notice\n\n{data} {size}\n:::\n"


def claim_cards(claims: Iterable[Mapping[str, Any]], whole: bool = False) -> str:
    """HTML cards of claims: verdict, the paper, this run; as a `whole`, for the page of notebook 11, also why, rule,
    and whether other thresholds or the exact truth change the verdict."""
    cards, folder = [], "" if whole else "executed/"
    for c in claims:
        name, t = c["id"], {key: html.escape(spelt(str(value))) for key, value in c.items()}
        chip, link = t["verdict"].replace(" ", "-"), f"{folder}{c['notebook']}.html"
        lines = {"paper": t["paper"], "this run": t["ours"]}
        more = f'<a href="{folder}11_claims.html#claim-{name}" aria-label="why: {name} in full">why</a>'
        if whole:
            lines |= {"paper": f"{t['paper']} ({t['where']})", "because": t["reason"]}
            more = (f"<details><summary>The rule of {name}</summary><p>{t['rule']}</p></details>"
                    f'<a href="{link}">The values behind {name}: notebook {c["notebook"][:2]}</a>')  # fmt: skip
        if whole or ": " in c["sensitivity"]:  # by another reading another verdict
            lines["read otherwise"] = t["sensitivity"]
        rows = "".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in lines.items())
        anchor = f' id="claim-{name}"' if whole else ""
        cards.append(f'<article class="claim"{anchor}><p><b>{name}</b> <span class="verdict verdict-{chip}">'
                     f'{t["verdict"]}</span></p><p>{t["claim"]}</p><dl>{rows}</dl>{more}</article>')  # fmt: skip
    return f'<div class="claims-cards">{"".join(cards)}</div>\n'


def status_table(stages: Stamps) -> str:
    """Markdown table of the runs of each notebook: how many are fresh, what they took; below, why others are not."""
    rows, stale, table = [], [], pd.DataFrame([{**stamp, "why": "; ".join(why)} for stamp, why in stages])
    for name, own in table.groupby("notebook"):
        walls, devices = own["wall_s"], ", ".join(sorted(set(own["device"].map(str))))
        rows.append((f"[{name}](executed/{name}.ipynb)", len(own), sum(own["why"] == ""), duration(walls.sum()),
                     duration(walls.max()), f"{own['peak_memory_mib'].max()} MiB", devices))  # fmt: skip
        why = Counter(own["why"][own["why"] != ""]).most_common(3)
        stale += [f"- {name}, {n} of {len(own)}: {cell(text)}." for text, n in why]
    header = ("notebook", "runs", "fresh", "time, all runs", "longest", "peak memory", "device")
    why = "What is not fresh, and why:\n\n" + "\n".join(stale) if stale else "Everything is fresh."
    together = f"Together {duration(table['wall_s'].sum())} in {len(stages)} runs, some side by side."
    return f"{markdown_table(header, rows)}\n{together} {why}\n"


def faults_table(path: Path) -> str:
    """Markdown table of what was done to a run and what happened, from benchmarks/faults.json."""
    tried = json.loads(path.read_text(encoding="utf-8"))
    rows = [(row["fault"], row["tried"], row["happened"]) for row in tried["rows"]]
    told = f"\nOn {tried['device']}, at commit {tried['commit']}."
    return f"{markdown_table(('fault', 'what was done', 'what happened'), rows)}{told}\n"


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


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(map(cell, line))} |\n" for line in lines)


def cell(text: object) -> str:
    """A text as it may stand in a cell of a Markdown table."""
    return html.escape(str(text), quote=False).replace("|", "\\|").replace("\n", " ")
