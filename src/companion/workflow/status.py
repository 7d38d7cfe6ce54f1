"""What a run consists of, as Snakemake sees it: where it stands, and what the rest will take."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import numpy as np
import pandas as pd
import yaml
from rich.console import Console
from rich.table import Table

from companion import layout, provenance
from companion.config import Profile, load_profile
from companion.errors import CompanionError
from companion.layout import Layout, shown
from companion.workflow.freshness import ERROR, input_hash, read_stamp, stamps, states, trains
from companion.workflow.job import device_name, processor

CONSOLE = Console(width=None if sys.stdout.isatty() else 240)  # what is piped keeps whole lines


class Job(NamedTuple):
    """One stage of a run: its rule in the Snakefile, its folder below the run's, and why it must run again.

    `why` is None where it was never made, and empty where it is fresh.
    """

    rule: str
    folder: str
    why: list[str] | None

    def will_run(self, tree: Path) -> bool:
        """Whether it is known to run: not where all that it waits for may come out as it was."""
        if not self.why or not self.why[0].startswith("reads "):
            return self.why != []
        read = (read_stamp(tree / self.folder) or {"inputs": {}})["inputs"]
        return any(input_hash(tree / folder, tree) not in (None, sha) for folder, sha in read.items())


def rules() -> dict[str, str]:
    """Rule -> notebook, in the order of the paper."""
    text = (layout.root() / "Snakefile").read_text(encoding="utf-8")
    return dict(re.findall(r"rule (\w+):(?:(?!rule).)*?run\(\"(\w+)\"", text, re.S))


def snakemake(P: Profile, *options: str) -> tuple[list[str], dict[str, str]]:
    """Command line and environment of Snakemake for a profile."""
    profile = P.name
    if not (layout.root() / "profiles" / f"{P.name}.yaml").is_file() or load_profile(P.name, P.dataset) != P:
        path = layout.runs() / P.folder / "profile.yaml"  # as it is here, for every job to read
        text = yaml.safe_dump(P.model_dump(mode="json"), sort_keys=False)
        if "--summary" in options:  # it is only looked at
            path = Path(tempfile.gettempdir(), f"companion-{provenance.hash_value(text)[:16]}.yaml")
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            provenance.write_text(path, text)
        profile = str(path)
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(layout.root() / "Snakefile"), "--nolock",
               "--rerun-triggers", "mtime", "--rerun-incomplete", *options]  # fmt: skip
    return command, {**os.environ, "COMPANION_PROFILE": profile, "COMPANION_DATASET": P.dataset}


@contextmanager
def committed(P: Profile) -> Iterator[bool]:
    """Let ``results/`` be the folder of runs where a profile's run is committed there and none is here; yield which."""
    kept = layout.root() / "results"
    use = not stamps(tree_of(P)) and (kept / P.name / Path(P.dataset).name).is_dir()
    with patch.dict(os.environ, COMPANION_RUNS=str(kept if use else layout.runs())):  # also for what it starts
        yield use


def jobs(P: Profile) -> list[Job]:
    """Every stage of a run in the order of the paper; nothing is changed.

    Of a run with changed entries that has not begun, what the unchanged run would have to do again.
    """
    command, environment = snakemake(P, "--summary")
    environment["COMPANION_LOOK"] = "1"
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True, cwd=layout.root()) as asked:
        known, order = states(P, tree_of(P)), list(rules())  # meanwhile
        summary, log = asked.communicate()
    if asked.returncode:
        raise CompanionError(last_error(log) or f"Snakemake stopped: {log.strip()[-500:]}")
    made: dict[str, str] = {}
    for line in summary.splitlines()[1:]:
        file, _, rule, *_ = line.split("\t")
        folder = str(Path(file).parent)
        if not any(made[owner] == rule and folder.startswith(f"{owner}/") for owner in made):  # a part of its output
            made[folder] = rule
    found = [Job(rule, folder, known.get(folder)) for folder, rule in made.items()]
    return sorted(found, key=lambda job: (order.index(job.rule), job.folder))


def tree_of(P: Profile) -> Path:
    """The run of a profile; where its changed entries have not been run yet, that without them."""
    place = Layout(P)
    return place.tree if stamps(place.tree) else place.unchanged


def last_error(log: str) -> str:
    """The last error that a log tells of, without where it was thrown."""
    told = re.findall(r"^(?:error: |\w*(?:Error|Exception)[^:\n]*: ?)(.+(?:\n  - .+)*)", log, re.M)
    return told[-1].strip() if told else ""


def status(P: Profile) -> None:
    """Print every stage as fresh, stale (and because of what), running or missing."""
    tree, counts = tree_of(P), Counter[str]()
    table = Table("stage", "state", "why", "wall time", title=f"{title(P)} · {shown(tree)}", title_justify="left")
    for job in jobs(P):
        folder, stamp = tree / job.folder, read_stamp(tree / job.folder)
        state = "[red]missing" if job.why is None else "[yellow]stale" if job.why else "[green]fresh"
        counts[state.partition("]")[2]] += 1
        said = "; ".join(job.why or []) or progress_of(folder) or error_of(folder)
        table.add_row(job.folder, state, said, duration(stamp["wall_s"]) if stamp else "")
    CONSOLE.print(table)
    others = "".join(f", {counts[state]} {state}" for state in ("stale", "missing") if counts[state])
    CONSOLE.print(f"{counts['fresh']} of {counts.total()} stages fresh{others}", highlight=False)


def plan(P: Profile, cores: int) -> None:
    """Print what is done and what is left, and how long it will take: stages left times what one took before."""
    table, said = expected(P, jobs(P), cores)
    words = table.to_string(index=False, float_format=lambda seconds: duration(seconds), na_rep="?")
    CONSOLE.print(f"{title(P)}, {cores} cores\n{words}\n{said}", highlight=False, soft_wrap=True)


def expected(P: Profile, found: Sequence[Job], cores: int) -> tuple[pd.DataFrame, str]:
    """What the stages of each rule will take by the stamps of this run, else of its committed one; and all in words.

    Columns rule, stages, left (which are known to run), one stage (mean, s), what is left (elapsed, s).
    """
    tree, committed = tree_of(P), layout.root() / "results" / P.name / Path(P.dataset).name
    timed = [pd.DataFrame(stamps(place).values(), columns=["notebook", "wall_s"]) for place in (tree, committed)]
    own, others = (table.groupby("notebook")["wall_s"].mean() for table in timed)
    known = pd.DataFrame([(job.rule, job.will_run(tree)) for job in found], columns=["rule", "left"])
    table = known.groupby("rule", sort=False)["left"].agg(["size", "sum"]).set_axis(["stages", "left"], axis=1)
    table["one stage"] = table.index.map(rules()).map(own.combine_first(others))
    at_once = min(cores // P.device.threads, P.jobs_per_device if device_name(P) != processor() else cores)
    together = np.clip(np.where(table.index.map(rules()).map(trains), at_once, cores), 1, table["stages"])
    table["what is left"] = (np.ceil(table["left"] / together) * table["one stage"]).where(table["left"] > 0, 0.0)
    left_s, waiting = table["what is left"], sum(job.why != [] for job in found)
    about = f"{'more than' if left_s.isna().any() else 'about'} {duration(left_s.sum())}"
    about = about if left_s.any() or left_s.notna().all() else "none of which was timed before"
    maybe = f"; {n} of them only where what they read comes out changed" if (n := waiting - table["left"].sum()) else ""
    return table.reset_index(), f"{waiting} of {len(found)} stages to run, {about}{maybe}"


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
