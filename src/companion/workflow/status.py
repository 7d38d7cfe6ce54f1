"""What a run consists of, as Snakemake sees it: where it stands, and what the rest will take."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import yaml
from rich.console import Console
from rich.table import Table

from companion import layout, provenance
from companion.config import Profile, load_profile
from companion.errors import CompanionError
from companion.layout import Layout, shown
from companion.workflow.freshness import ERROR, STAMP, read_stamp, states

RESOLVED = "profile.yaml"


class Job(NamedTuple):
    """One stage of a run: its rule in the Snakefile, its folder below the run's, and whether Snakemake would run it."""

    rule: str
    folder: str
    pending: bool


# --- asking Snakemake ---------------------------------------------------------------------------------------


def snakemake(P: Profile, *options: str, look: bool = False) -> tuple[list[str], dict[str, str]]:
    """Command line and environment of Snakemake for a profile."""
    profile = P.name
    if not (layout.profiles() / f"{P.name}.yaml").is_file() or load_profile(P.name, P.dataset) != P:
        # As it is here, for every job to read.
        profile = str(layout.runs() / P.folder / RESOLVED)
        text = yaml.safe_dump(P.model_dump(mode="json"), sort_keys=False)
        if not Path(profile).is_file() or Path(profile).read_text(encoding="utf-8") != text:
            provenance.write_text(Path(profile), text)
    environment = {**os.environ, "COMPANION_PROFILE": profile, "COMPANION_DATASET": P.dataset}
    if look:
        environment["COMPANION_LOOK"] = "1"
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(layout.root() / "Snakefile"), "--nolock",
               "--rerun-triggers", "mtime", "--rerun-incomplete", *options]  # fmt: skip
    return command, environment


def jobs(P: Profile, look: bool = False) -> list[Job]:
    """Every stage of a run in the order of the paper.

    Parameters
    ----------
    look : leave the flags of the run as they are
    """
    command, environment = snakemake(P, "--summary", look=look)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=layout.root(), check=False)
    if done.returncode:
        raise CompanionError(last_error(done.stderr) or f"Snakemake stopped: {done.stderr.strip()[-500:]}")
    found: dict[str, Job] = {}
    for line in done.stdout.splitlines()[1:]:
        file, _, rule, *_, plan = line.split("\t")
        folder = str(Path(file).parent)
        owner = next(
            (job.folder for job in found.values() if job.rule == rule and folder.startswith(f"{job.folder}/")), folder
        )
        before = found.get(owner)
        found[owner] = Job(rule, owner, plan != "no update" or (before is not None and before.pending))
    order = re.findall(r"^ *rule (\w+):", (layout.root() / "Snakefile").read_text(encoding="utf-8"), re.M)
    return sorted(found.values(), key=lambda job: (order.index(job.rule), job.folder))


def last_error(log: str) -> str:
    """The last error that a log tells of, without where it was thrown."""
    told = re.findall(r"^(?:error: |\w*(?:Error|Exception)[^:\n]*: ?)(.+(?:\n  - .+)*)", log, re.M)
    return told[-1].strip() if told else ""


# --- looking ------------------------------------------------------------------------------------------------


def status(P: Profile, console: Console, tree: Path | None = None) -> bool:
    """Print every stage as fresh, stale (and because of what), running or missing; True if all are fresh."""
    tree = tree or Layout(P).tree
    table = Table(title=f"{title(P)} · {shown(tree)}", title_justify="left")
    for column in ("stage", "state", "why", "wall time"):
        table.add_column(column)
    counts: Counter[str] = Counter()
    known = states(P, tree)
    for job in jobs(P, look=True):
        why, stamp = known.get(job.folder), read_stamp(tree / job.folder) or {}
        state = "missing" if why is None else "stale" if why else "fresh"
        counts[state] += 1
        said = "; ".join(why or []) or progress_of(tree / job.folder) or error_of(tree / job.folder)
        colour = {"missing": "red", "stale": "yellow", "fresh": "green"}[state]
        table.add_row(job.folder, f"[{colour}]{state}", said, duration(stamp["wall_s"]) if stamp else "")
    console.print(table)
    others = "".join(f", {counts[state]} {state}" for state in ("stale", "missing") if counts[state])
    console.print(f"{counts['fresh']} of {counts.total()} stages fresh{others}", highlight=False)
    return counts["fresh"] == counts.total()


def plan(P: Profile, cores: int, console: Console) -> None:
    """Print what is done and what is left, and how long it will take: stages left times what one took before."""
    table = expected(P, jobs(P, look=True), cores)
    listing = Table(title=f"{title(P)}, {cores} cores", title_justify="left")
    for column in ("rule", "stages", "left", "one stage", "what is left", "time from"):
        listing.add_column(column, justify="left" if column in ("rule", "time from") else "right")
    for row in table.itertuples():
        each, left = ("?" if s != s else duration(s) for s in (row.each_s, row.left_s))
        listing.add_row(row.rule, str(row.stages), str(row.left), each, left, row.source)
    console.print(listing)
    unknown = table[(table["left"] > 0) & table["each_s"].isna()]["rule"].tolist()
    free = shutil.disk_usage(next(p for p in (layout.runs(), *layout.runs().parents) if p.exists())).free
    never = f" (never measured: {', '.join(unknown)})" if unknown else ""
    console.print(
        f"{table['left'].sum()} of {table['stages'].sum()} stages to run, {'more than' if unknown else 'about'} "
        f"{duration(table['left_s'].sum())}{never}; "
        f"{free / 2**30:.0f} GiB of disk are free",
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def expected(P: Profile, found: list[Job], cores: int) -> pd.DataFrame:
    """Seconds that the stages of each rule take: rule, stages, left, each_s (mean of one), left_s (elapsed), source.

    Times are those of stamps: of this run where it has any of the rule, else of the reference run.
    """
    stamps = {"this run": Layout(P).tree, "the reference run": layout.root() / "results" / "reference" / "phantom"}
    walls = {
        source: pd.DataFrame(
            [(stamp["notebook"], stamp["wall_s"]) for path in tree.rglob(STAMP) if (stamp := read_stamp(path.parent))],
            columns=["notebook", "wall_s"],
        ).groupby("notebook")["wall_s"].mean()
        for source, tree in stamps.items()
    }  # fmt: skip
    text = (layout.root() / "Snakefile").read_text(encoding="utf-8")
    notebooks = dict(re.findall(r"rule (\w+):(?:(?!rule).)*?run\(\"(\w+)\"", text, re.S))
    rows = []
    for rule in dict.fromkeys(job.rule for job in found if job.rule in notebooks):
        members = [job for job in found if job.rule == rule]
        left = sum(job.pending for job in members)
        source = next((s for s in walls if notebooks[rule] in walls[s]), "")
        each = walls[source][notebooks[rule]] if source else float("nan")
        together = max(1, min(cores // P.device.threads, len(members)))
        rows.append((rule, len(members), left, each, -(-left // together) * each if left else 0.0, source))
    return pd.DataFrame(rows, columns=["rule", "stages", "left", "each_s", "left_s", "source"])


# --- in words -----------------------------------------------------------------------------------------------


def progress_of(folder: Path) -> str:
    """What the training in a stage's folder is at; empty where none is."""
    try:
        progress = json.loads((folder / "checkpoint" / "progress.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    at = f"{progress['title']}, step {progress['step']} of {progress['steps']}"
    return f"{at}, about {duration(progress['left_s'])} left"


def error_of(folder: Path) -> str:
    """Why the last run of a stage was refused; empty where it was not."""
    return (folder / ERROR).read_text(encoding="utf-8").strip() if (folder / ERROR).exists() else ""


def title(P: Profile) -> str:
    """Profile and data set."""
    return f"{P.folder} on {Path(P.dataset).name}"


def duration(seconds: float) -> str:
    """Seconds in words, to the second."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
