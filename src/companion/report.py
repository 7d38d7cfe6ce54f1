"""What a person reads of a run: its stages, its plan, where it stands, and how it ended."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from rich.console import Console
from rich.table import Table

from companion import paths, places, plan, provenance, stages
from companion.config.profile import Profile


def status(profile: Profile, console: Console) -> bool:
    """Print every stage as fresh, stale (and because of what), running or missing; True if all are fresh."""
    states = stages.states(profile)
    table = Table(title=f"{title(profile)} · {shown(places.tree(profile))}", title_justify="left")
    for column in ("stage", "notebook", "state", "why", "wall time"):
        table.add_column(column)
    for stage in stages.matrix(profile):
        reasons, stamp = states[stage.address], provenance.read_stamp(stage.folder) or {}
        state = "[red]missing" if reasons is None else "[yellow]stale" if reasons else "[green]fresh"
        why = "; ".join(reasons or []) or progress_of(stage.folder) or error_of(stage.folder)
        wall = duration(stamp["wall_s"]) if "wall_s" in stamp else ""
        table.add_row(stage.address, stage.kind.notebook, state, why, wall)
    console.print(table)
    fresh, missing = sum(reasons == [] for reasons in states.values()), list(states.values()).count(None)
    counts = {"stale": len(states) - fresh - missing, "missing": missing}
    others = "".join(f", {n} {state}" for state, n in counts.items() if n)
    console.print(f"{fresh} of {len(states)} stages fresh{others}", highlight=False)
    return fresh == len(states)


def show_plan(profile: Profile, gpu: str | None, cores: int, console: Console) -> None:
    """Print what a run does, in order, what is done, and the hours and disk that the rest will take."""
    gpu = gpu or plan.device_here(profile)
    table = plan.plan(profile, gpu, cores)
    listing = Table(title=f"{title(profile)}, networks on {gpu}, {cores} cores", title_justify="left")
    for column in ("notebook", "stages", "done", "one stage", "what is left", "disk", "time from"):
        listing.add_column(column, justify="left" if column in ("notebook", "time from") else "right")
    for row in table.itertuples():
        each, left = ("?" if s != s else duration(s) for s in (row.each_s, row.left_s))
        listing.add_row(row.notebook, str(row.stages), str(row.done), each, left, f"{row.disk_mib:.0f} MiB", row[7])
    console.print(listing)
    unknown = table[table["left_s"].isna()]["notebook"].tolist()
    console.print(
        f"{table['done'].sum()} of {table['stages'].sum()} stages done; the rest takes "
        f"{'more than' if unknown else 'about'} {duration(table['left_s'].sum())}"
        + (f" (no figure measured on {gpu} for {', '.join(unknown)})" if unknown else "")
        + f"; disk {table['disk_mib'].sum() / 1024:.1f} GiB, free {plan.free_mib() / 1024:.0f} GiB. "
        "Figures and their sources: src/companion/throughputs.yaml"
        + (", with the reasons for what is assumed" if table["from"].eq("assumed").any() else ""),
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def summarise(profile: Profile, name: str, ran: list[str], took_s: float, console: Console) -> None:
    """Print how a run ended: time, the longest stage, size, verdicts, and what to do next."""
    tree = places.tree(profile)
    walls = {address: (provenance.read_stamp(tree / address) or {}).get("wall_s", 0.0) for address in ran}
    slowest = max(walls, key=lambda address: walls[address])
    size = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file()) / 2**20
    lines = [
        f"{title(profile)}: {len(ran)} stages done in {duration(took_s)}, {duration(sum(walls.values()))} of work; "
        f"the longest: {slowest}, {duration(walls[slowest])}. {shown(tree)}, {size:.0f} MiB"
    ]
    if (claims := tree / "claims" / "claims.json").is_file():
        verdicts = Counter(row["verdict"] for row in json.loads(claims.read_text(encoding="utf-8"))["claims"])
        counted = ", ".join(f"{n} {verdict}" for verdict, n in verdicts.most_common())
        lines.append(f"claims of the paper on this data: {counted}. {shown(claims)}")
    lines.append(f"next: `make book PROFILE={name}` for the pages, `companion bundle {name} --out DIR` to pass it on")
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def costs(profile: Profile, cores: int, states: plan.States) -> dict[str, float]:
    """Elapsed seconds that each stage adds, by address; NaN where no figure was measured."""
    table = plan.plan(profile, plan.device_here(profile), cores, states).set_index("notebook")
    each = table["left_s"] / (table["stages"] - table["done"]).clip(lower=1)
    return {stage.address: float(each[stage.kind.notebook]) for stage in stages.matrix(profile)}


def time_left(costs: dict[str, float], waiting: list[str], finished: set[str], elapsed_s: float) -> str:
    """What is left by the estimates, at the pace that this run has had so far."""
    known = [a for a in waiting if costs[a] == costs[a]]
    done, rest = (sum(costs[a] for a in known if (a in finished) == side) for side in (True, False))
    return f", {duration(elapsed_s)} so far, about {duration(rest * elapsed_s / done)} left" if done and rest else ""


def progress_of(folder: Path) -> str:
    """What the training in a stage's folder is at; empty where none is."""
    try:
        progress = json.loads((folder / "checkpoint" / "progress.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    left = f"about {duration(progress['left_s'])} left"
    return f"{progress['title']}, step {progress['step']} of {progress['steps']}, {left}"


def error_of(folder: Path) -> str:
    """Why the last run of a stage was refused; empty where it was not."""
    path = folder / "error.txt"
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def title(profile: Profile) -> str:
    """Profile and data set."""
    return f"{profile.name} on {places.dataset_name(profile.dataset)}"


def shown(path: Path) -> str:
    """A path as seen from the project folder."""
    return str(path.relative_to(paths.root()) if path.is_relative_to(paths.root()) else path)


def duration(seconds: float) -> str:
    """Seconds in words, to the second."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
