"""A friendly face over Snakemake: what is done, what runs, how long it will take; one run per tree at a time."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from companion import paths, plan, provenance, stages
from companion.errors import CompanionError
from companion.execute import DONE, synchronise
from companion.params import Profile

LOG, TERMINAL = "snakemake.log", "terminal.log"


def run(profile: Profile, name_or_path: str, cores: int, console: Console, cluster: Path | None = None) -> int:
    """Run every stage of `profile` that is missing or stale.

    Parameters
    ----------
    profile : validated, with the data set and splits of the command line
    name_or_path : the profile as named by the user
    cores : how many processor cores the jobs share
    cluster : folder of a Snakemake profile that says where jobs run instead, e.g. cluster/slurm

    Returns
    -------
    Exit code: 0 done, 2 a stage refused its input, 1 a stage failed otherwise, 130 interrupted.
    """
    room = profile.jobs_per_device
    here = ["--cores", str(cores), "--resources", f"gpu={room}", f"gpu_share={room}"]
    where = here if cluster is None else _submission(cluster)
    check_inputs(profile)
    tree = stages.tree(profile)
    with _only_run(tree) as lock:
        waiting = [address for address, reasons in synchronise(profile).items() if reasons != []]
        if not waiting:
            console.print(f"{_title(profile)}: nothing to do, every stage is fresh. {_shown(tree)}")
            return 0
        costs = _costs(profile, cores)
        known = [cost for cost in costs.values() if cost == cost]
        about = f"{'about' if len(known) == len(costs) else 'more than'} {_duration(sum(known))}"
        console.print(f"{_title(profile)}: {len(waiting)} of {len(costs)} stages to run, {about}")
        began = time.monotonic()
        code = _snakemake(profile, name_or_path, where, waiting, costs, console, lock)
        if code == 0:
            _summarise(profile, name_or_path, waiting, time.monotonic() - began, console)
        return code


def _costs(profile: Profile, cores: int) -> dict[str, float]:
    """Elapsed seconds that each stage adds, by address; NaN where no figure was measured."""
    table = plan.plan(profile, plan.device_here(profile), cores).set_index("notebook")
    each = table["left_s"] / (table["stages"] - table["done"]).clip(lower=1)
    return {stage.address: float(each[stage.kind.notebook]) for stage in stages.matrix(profile)}


def _summarise(profile: Profile, name: str, ran: list[str], took_s: float, console: Console) -> None:
    tree = stages.tree(profile)
    walls = {address: (provenance.read_stamp(tree / address) or {}).get("wall_s", 0.0) for address in ran}
    slowest = max(walls, key=lambda address: walls[address])
    size = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file()) / 2**20
    lines = [
        f"{_title(profile)}: {len(ran)} stages done in {_duration(took_s)}, {_duration(sum(walls.values()))} of work; "
        f"the longest: {slowest}, {_duration(walls[slowest])}. {_shown(tree)}, {size:.0f} MiB"
    ]
    if (claims := tree / "claims" / "claims.json").is_file():
        verdicts = Counter(row["verdict"] for row in json.loads(claims.read_text(encoding="utf-8"))["claims"])
        counted = ", ".join(f"{n} {verdict}" for verdict, n in verdicts.most_common())
        lines.append(f"claims of the paper on this data: {counted}. {_shown(claims)}")
    lines.append(f"next: `make book PROFILE={name}` for the pages, `companion bundle {name} --out DIR` to pass it on")
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def check_inputs(profile: Profile) -> None:
    """Refuse a data set or split that cannot be used before any work.

    Raises
    ------
    CompanionError
        With every problem found.
    """
    if profile.dataset == "phantom" and not any(isinstance(split, str) for split in profile.splits):
        if (needed := max(profile.sizes) + profile.n_test) > profile.phantom.n_images:
            raise CompanionError(
                f"profile {profile.name}: {max(profile.sizes)} training and {profile.n_test} test micrographs are "
                f"{needed}, the phantom has phantom.n_images = {profile.phantom.n_images}"
            )
        return
    from companion.data.dataset import load_dataset
    from companion.data.registry import obtain
    from companion.data.splits import make_split

    dataset = load_dataset(obtain(profile))
    for split in profile.splits:
        make_split(dataset, split, sizes=profile.sizes, n_test=profile.n_test, root_seed=profile.root_seed)


def status(profile: Profile, console: Console) -> bool:
    """Print every stage as fresh, stale (and because of what), running or missing; True if all are fresh."""
    states = stages.states(profile)
    table = Table(title=f"{_title(profile)} · {_shown(stages.tree(profile))}", title_justify="left")
    for column in ("stage", "notebook", "state", "why", "wall time"):
        table.add_column(column)
    for stage in stages.matrix(profile):
        reasons, stamp = states[stage.address], provenance.read_stamp(stage.folder) or {}
        state = "[red]missing" if reasons is None else "[yellow]stale" if reasons else "[green]fresh"
        why = "; ".join(reasons or []) or _working(stage.folder) or _error(stage.folder)
        wall = _duration(stamp["wall_s"]) if "wall_s" in stamp else ""
        table.add_row(stage.address, stage.kind.notebook, state, why, wall)
    console.print(table)
    fresh = sum(reasons == [] for reasons in states.values())
    console.print(f"{fresh} of {len(states)} stages fresh")
    return fresh == len(states)


def show_plan(profile: Profile, gpu: str | None, cores: int, console: Console) -> None:
    """Print what a run does, in order, what is done, and the hours and disk that the rest will take."""
    gpu = gpu or plan.device_here(profile)
    table = plan.plan(profile, gpu, cores)
    shown = Table(title=f"{_title(profile)}, networks on {gpu}, {cores} cores", title_justify="left")
    for column in ("notebook", "stages", "done", "one stage", "what is left", "disk", "time from"):
        shown.add_column(column, justify="left" if column in ("notebook", "time from") else "right")
    for row in table.itertuples():
        each, left = ("?" if s != s else _duration(s) for s in (row.each_s, row.left_s))
        shown.add_row(row.notebook, str(row.stages), str(row.done), each, left, f"{row.disk_mib:.0f} MiB", row[7])
    console.print(shown)
    unknown = table[table["left_s"].isna()]["notebook"].tolist()
    console.print(
        f"{table['done'].sum()} of {table['stages'].sum()} stages done; the rest takes "
        f"{'more than' if unknown else 'about'} {_duration(table['left_s'].sum())}"
        + (f" (no figure measured on {gpu} for {', '.join(unknown)})" if unknown else "")
        + f"; disk {table['disk_mib'].sum() / 1024:.1f} GiB, free {plan.free_mib() / 1024:.0f} GiB. "
        "Figures and their sources: benchmarks/throughputs.yaml"
        + (", with the reasons for what is assumed" if table["from"].eq("assumed").any() else ""),
        highlight=False, soft_wrap=True,
    )  # fmt: skip


def _submission(folder: Path) -> list[str]:
    """Options that hand the jobs to a cluster."""
    config = folder.resolve() / "config.yaml"
    if not config.is_file():
        raise CompanionError(f"--cluster {folder}: no config.yaml there; copy cluster/slurm and edit its entries")
    try:
        executor = yaml.safe_load(config.read_text(encoding="utf-8"))["executor"]
    except (yaml.YAMLError, KeyError, TypeError):
        raise CompanionError(f"{config} names no executor, for instance `executor: slurm`") from None
    if importlib.util.find_spec(f"snakemake_executor_plugin_{executor}") is None:
        raise CompanionError(f"{config}: executor {executor} is not installed; pip install -e '.[cluster]'")
    return ["--workflow-profile", str(config.parent)]


def _snakemake(
    profile: Profile,
    name_or_path: str,
    where: list[str],
    waiting: list[str],
    costs: dict[str, float],
    console: Console,
    lock: int,
) -> int:
    tree = stages.tree(profile)
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", str(paths.root() / "Snakefile"),
        "--directory", str(paths.root()), *where, "--rerun-triggers", "mtime", "--rerun-incomplete",
        "--nolock", "--keep-going", "--quiet", "progress",
        "--config", f"profile={name_or_path}", f"dataset={profile.dataset}",
        "splits=" + ",".join(str(split) for split in profile.splits),
    ]  # fmt: skip
    for address in waiting:
        (tree / address / "error.txt").unlink(missing_ok=True)
    with open(tree / LOG, "w", encoding="utf-8") as log:
        # A session of its own: an interrupt reaches Snakemake once, from here, and not its jobs out of order.
        # It holds the tree's lock as well: should only this process be killed, no second run starts beside it.
        process = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, pass_fds=[lock]
        )
        signal.signal(signal.SIGTERM, _interrupt)  # being told to end is an interrupt, too
        if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
            signal.signal(signal.SIGHUP, lambda *_: _leave_terminal(tree / TERMINAL))
        try:
            _watch(process, tree, waiting, costs, console)
        except KeyboardInterrupt:
            _stop(process)
            console.print("interrupted; what is finished is kept, and the same command continues from here")
            return 130
    if process.returncode == 0:
        return 0
    refused = [(address, text) for address in waiting if (text := _error(tree / address))]
    for address, text in refused:
        print(f"error in {address}: {text}", file=sys.stderr)
    if not refused and provenance.is_full(tree):
        raise CompanionError(f"{_shown(tree)}: No space left on device; what is finished is kept")
    if not refused:
        print(f"error: Snakemake stopped; its log is {tree / LOG}", file=sys.stderr)
    return 2 if refused else 1


def _watch(
    process: subprocess.Popen[bytes], tree: Path, waiting: list[str], costs: dict[str, float], console: Console
) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    finished: set[str] = set()
    began = time.monotonic()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("stages", total=len(waiting))
        while True:
            ended = process.poll() is not None
            for address in waiting:
                if address not in finished and (tree / address / DONE).exists():
                    finished.add(address)
                    wall = (provenance.read_stamp(tree / address) or {}).get("wall_s", 0)
                    left = _left(costs, waiting, finished, time.monotonic() - began)
                    count = f"{len(finished):>3}/{len(waiting)}"
                    console.print(f"  {count}  {address}  {_duration(wall)}{left}", highlight=False)
            running = [f"{a}: {text}" for a in waiting if a not in finished and (text := _working(tree / a))]
            progress.update(task, completed=len(finished), description="; ".join(running[:2]) or "stages")
            if ended:
                return
            time.sleep(0.5)


def _left(costs: dict[str, float], waiting: list[str], finished: set[str], elapsed_s: float) -> str:
    """What is left by the estimates, at the pace that this run has had so far."""
    known = [a for a in waiting if costs[a] == costs[a]]
    done, rest = (sum(costs[a] for a in known if (a in finished) == side) for side in (True, False))
    return f", {_duration(elapsed_s)} so far, about {_duration(rest * elapsed_s / done)} left" if done and rest else ""


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _leave_terminal(log: Path) -> None:
    """The terminal is gone: the run goes on, and what it would have said goes to a file."""
    with open(log, "a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        pass
    finally:
        # Notebook kernels that outlived Snakemake are in its session.
        subprocess.run(["pkill", "-TERM", "-s", str(process.pid)], check=False)


@contextmanager
def _only_run(tree: Path) -> Iterator[int]:
    """Hold the tree's lock; the system releases it however the process ends."""
    try:
        tree.mkdir(parents=True, exist_ok=True)
        opened = open(tree / ".lock", "w", encoding="utf-8")  # noqa: SIM115 (closed below)
    except OSError as error:
        raise CompanionError(f"{_shown(tree)} cannot be written to: {error.strerror}") from None
    with opened as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CompanionError(f"another run is working on {_shown(tree)}; wait for it or stop it") from None
        yield lock.fileno()


def _working(folder: Path) -> str:
    try:
        progress = json.loads((folder / "checkpoint" / "progress.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    left = f"about {_duration(progress['left_s'])} left"
    return f"{progress['title']}, step {progress['step']} of {progress['steps']}, {left}"


def _error(folder: Path) -> str:
    path = folder / "error.txt"
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def _title(profile: Profile) -> str:
    return f"{profile.name} on {stages.dataset_name(profile.dataset)}"


def _shown(path: Path) -> str:
    return str(path.relative_to(paths.root()) if path.is_relative_to(paths.root()) else path)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
