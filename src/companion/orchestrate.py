"""A friendly face over Snakemake: what is done, what runs, how long it will take; one run per tree at a time."""

from __future__ import annotations

import fcntl
import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from companion import paths, places, provenance, report
from companion.errors import CompanionError
from companion.execute import DONE, synchronise
from companion.config.profile import Profile

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
    tree = places.tree(profile)
    with _only_run(tree) as lock:
        if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
            signal.signal(signal.SIGHUP, lambda *_: _leave_terminal(tree / TERMINAL))
        states = synchronise(profile)
        waiting = [address for address, reasons in states.items() if reasons != []]
        if not waiting:
            console.print(f"{report.title(profile)}: nothing to do, every stage is fresh. {report.shown(tree)}")
            return 0
        if cluster is None and cores < (needed := profile.threads * room) and room > 1:
            console.print(
                f"jobs_per_device: {room} detectors side by side need {needed} cores (threads: {profile.threads}); of "
                f"{cores} cores, {max(1, cores // profile.threads)} at a time: give --cores {needed}, or lower threads",
                soft_wrap=True,
            )
        costs = report.costs(profile, cores, states)
        known = [cost for cost in costs.values() if cost == cost]
        about = f"{'about' if len(known) == len(costs) else 'more than'} {report.duration(sum(known))}"
        console.print(f"{report.title(profile)}: {len(waiting)} of {len(costs)} stages to run, {about}")
        began = time.monotonic()
        code = _snakemake(profile, name_or_path, where, waiting, costs, console, lock)
        if code == 0:
            report.summarise(profile, name_or_path, waiting, time.monotonic() - began, console)
        return code


def check_inputs(profile: Profile) -> None:
    """Refuse a data set or split that cannot be used before any work.

    Raises
    ------
    CompanionError
        With every problem found.
    """
    if profile.dataset == "phantom" and not any(isinstance(split, str) for split in profile.splits):
        if (needed := max(profile.sizes) + profile.n_test + profile.n_val) > profile.phantom.n_images:
            raise CompanionError(
                f"profile {profile.name}: {max(profile.sizes)} training, {profile.n_test} test and {profile.n_val} "
                f"validation micrographs are {needed}, the phantom has phantom.n_images = {profile.phantom.n_images}"
            )
        return
    from companion.micrographs.dataset import load_dataset
    from companion.micrographs.registry import obtain
    from companion.micrographs.splits import profile_split

    dataset = load_dataset(obtain(profile))
    for split in profile.splits:
        profile_split(dataset, split, profile)


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
    tree = places.tree(profile)
    command = [
        sys.executable, "-m", "snakemake", "--snakefile", str(paths.root() / "Snakefile"),
        "--directory", str(paths.root()), *where, "--rerun-triggers", "mtime", "--rerun-incomplete",
        "--nolock", "--keep-going", "--quiet", "progress",
        "--config", f"profile={name_or_path}", f"dataset={profile.dataset}",
        "splits=" + ",".join(str(split) for split in profile.splits),
        f"synchronised={tree}",  # while this process holds the tree's lock, nobody else changes its flags
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
        try:
            _watch(process, tree, waiting, costs, console)
        except KeyboardInterrupt:
            _stop(process)
            console.print("interrupted; what is finished is kept, and the same command continues from here")
            return 130
    if process.returncode == 0:
        return 0
    refused = [(address, text) for address in waiting if (text := report.error_of(tree / address))]
    for address, text in refused:
        print(f"error in {address}: {text}", file=sys.stderr)
    if not refused and provenance.is_full(tree):
        raise CompanionError(f"{report.shown(tree)}: No space left on device; what is finished is kept")
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
                    left = report.time_left(costs, waiting, finished, time.monotonic() - began)
                    count = f"{len(finished):>3}/{len(waiting)}"
                    console.print(f"  {count}  {address}  {report.duration(wall)}{left}", highlight=False)
            running = [f"{a}: {text}" for a in waiting if a not in finished and (text := report.progress_of(tree / a))]
            progress.update(task, completed=len(finished), description="; ".join(running[:2]) or "stages")
            if ended:
                return
            time.sleep(0.5)


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
        raise CompanionError(f"{report.shown(tree)} cannot be written to: {error.strerror}") from None
    with opened as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CompanionError(f"another run is working on {report.shown(tree)}; wait for it or stop it") from None
        yield lock.fileno()
