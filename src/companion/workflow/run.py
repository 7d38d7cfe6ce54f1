"""A friendly face over Snakemake: what is done, what runs, how long it will take; one run per folder at a time."""

from __future__ import annotations

import fcntl
import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import yaml

from companion import provenance
from companion.config import ARMS, Profile
from companion.errors import CompanionError
from companion.layout import Layout, data_cache, given, shown
from companion.workflow import status
from companion.workflow.freshness import DONE, ERROR, read_stamp, stamps
from companion.workflow.status import CONSOLE, Job, duration, error_of, jobs

LOG = "snakemake.log"


def run(P: Profile, cores: int, cluster: Path | None = None) -> int:
    """Run every stage that is missing or stale, here on `cores` or as the Snakemake profile in `cluster` says.

    Returns the exit code: 0 done, 2 a stage refused its input, 1 a stage failed otherwise, 130 interrupted.
    """
    for told in (signal.SIGINT, signal.SIGTERM):  # being told to end is an interrupt; a script's `&` ignores SIGINT
        signal.signal(told, signal.default_int_handler)
    where = _submission(cluster) if cluster else ["--cores", str(cores), "--resources", f"gpu={P.jobs_per_device}"]
    _check_data(P)
    tree = Layout(P).tree
    with _only_run(tree) as lock:
        found = jobs(P)
        waiting = [job for job in found if job.why != []]
        if not waiting:
            CONSOLE.print(f"{status.title(P)}: nothing to do, every stage is fresh. {shown(tree)}")
            return 0
        CONSOLE.print(f"{status.title(P)}: {status.expected(P, found, cores)[1]}")
        _take_away_damaged_phantoms()
        for job in waiting:
            for file in (ERROR, DONE):
                (tree / job.folder / file).unlink(missing_ok=True)
        command, environment = status.snakemake(P, *where, "--keep-going", "--quiet", "progress")
        with open(tree / LOG, "w", encoding="utf-8") as log:
            # A session of its own: an interrupt reaches Snakemake once, from here, and not its jobs out of order.
            # It holds the folder's lock as well: should only this process be killed, no second run starts beside it.
            process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, pass_fds=[lock], env=environment
            )
            try:
                done = _follow(process, P, tree, waiting, cores)
            except KeyboardInterrupt:
                _stop(process)
                CONSOLE.print("interrupted; what is finished is kept, and the same command continues from here")
                return 130
    if process.returncode == 0:
        CONSOLE.print(done, highlight=False, soft_wrap=True)
        return 0
    refused = {job.folder: text for job in waiting if (text := error_of(tree / job.folder))}
    for folder, text in refused.items():
        print(f"error in {folder}: {text}", file=sys.stderr)
    if not refused and provenance.is_full(tree):
        raise CompanionError(f"{shown(tree)}: No space left on device; what is finished is kept")
    if not refused:
        told = status.last_error((tree / LOG).read_text(encoding="utf-8"))
        print(f"error: Snakemake stopped: {told or 'it does not say why'} (log: {shown(tree / LOG)})", file=sys.stderr)
    return 2 if refused else 1


def _check_data(P: Profile) -> None:
    """Refuse a data set or split that cannot be used before any work (the phantom's are checked with the profile)."""
    if absent := [w for w in (P.diffusion.autoencoder.weights, P.detection.weights) if w and not given(w).is_file()]:
        raise CompanionError(f"weights: there is no file {' and no file '.join(str(given(w)) for w in absent)}")
    if P.dataset == "phantom" and not any(isinstance(split, str) for split in P.splits):
        return
    from companion.micrographs.dataset import load_dataset
    from companion.micrographs.registry import obtain
    from companion.micrographs.splits import choose_split

    dataset = load_dataset(obtain(P.dataset, P.phantom, P.root_seed))
    present = {m.codes[a["category_id"]] for m in dataset.micrographs for a in m.annotations}
    if absent := [name for code, name in enumerate(dataset.classes, start=1) if code not in present]:
        raise CompanionError(f"{dataset.folder}: no micrograph shows {', '.join(absent)}; take it out of categories")
    for source, name in zip(P.splits, P.split_names, strict=True):
        group_by, arms = P.group_by.get(dataset.name), {arm for n in P.sizes for arm in P.arms_at(name, n)}
        fresh = P.n_fresh * any(ARMS[arm].other == "fresh" for arm in arms)
        split = choose_split(dataset, source, name, P.sizes, P.n_test, P.n_val, group_by, P.root_seed, fresh)
        used = [dataset.micrograph(file) for file in (*split.train, *split.val, *split.test)]
        if small := [m.file_name for m in used if min(m.width, m.height) < P.patches.size]:
            raise CompanionError(f"patches.size {P.patches.size}: smaller in split {name}: {', '.join(small[:9])}")


def _take_away_damaged_phantoms() -> None:
    """Remove phantoms with files that cannot be read, so that they are drawn again."""
    from companion.micrographs.images import read_grey

    for folder in data_cache().glob("phantom-*"):
        try:
            both = [json.loads((folder / name).read_bytes())["images"] for name in ("annotations.json", "truth.json")]
            for image in both[0]:
                read_grey(folder / "images" / image["file_name"])
        except (OSError, ValueError, KeyError, TypeError, CompanionError) as error:
            CONSOLE.print(f"{error}\nThis phantom is drawn again.", highlight=False, soft_wrap=True)
            shutil.rmtree(folder)


def _submission(folder: Path) -> list[str]:
    """Options that hand the jobs to a cluster."""
    settings = folder.resolve() / "config.yaml"
    try:
        executor = yaml.safe_load(settings.read_text(encoding="utf-8"))["executor"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        needed = "there should be a config.yaml that names an executor; copy cluster/slurm and edit its entries"
        raise CompanionError(f"--cluster {folder}: {needed}") from None
    if importlib.util.find_spec(f"snakemake_executor_plugin_{executor}") is None:
        raise CompanionError(f"{settings}: executor {executor} is not installed; pip install -e '.[cluster]'")
    return ["--workflow-profile", str(settings.parent)]


def _follow(process: subprocess.Popen[bytes], P: Profile, tree: Path, waiting: list[Job], cores: int) -> str:
    """Say what has finished and how long the rest will take, until the process has ended; returns it in short."""
    began, left, ended = time.time(), [*waiting], False
    since = datetime.fromtimestamp(began - 60, UTC).isoformat("T", "seconds")  # clocks of nodes differ
    with CONSOLE.status("") as line:
        while not ended:
            ended = process.poll() is not None
            for job in [job for job in left if (tree / job.folder / DONE).exists()]:
                left.remove(job)
                stamp = read_stamp(tree / job.folder)
                how = duration(stamp["wall_s"]) if stamp and stamp["started"] >= since else "as made before"
                rest = status.expected(P, left, cores)[0]["what is left"].sum()
                how += f", {duration(time.time() - began)} so far{f', about {duration(rest)} left' if rest else ''}"
                at = len(waiting) - len(left)
                CONSOLE.print(f"  {at:>3}/{len(waiting)}  {job.folder}  {how}", highlight=False)
            running = [f"{job.folder}: {text}" for job in left if (text := status.progress_of(tree / job.folder))]
            done = f"{len(waiting) - len(left)} of {len(waiting)} stages, {duration(time.time() - began)}"
            line.update("; ".join([done, *running[:2]]))
            time.sleep(0 if ended else 0.5)
    work = sum(stamp["wall_s"] for stamp in stamps(tree).values() if stamp["started"] >= since)
    said = f"{len(waiting)} stages done in {duration(time.time() - began)}, {duration(work)} of work. {shown(tree)}"
    if (claims := tree / "claims" / "claims.json").is_file():
        verdicts = Counter(row["verdict"] for row in json.loads(claims.read_text(encoding="utf-8"))["claims"])
        said += f"\nclaims of the paper: {', '.join(f'{n} {v}' for v, n in verdicts.most_common())}. {shown(claims)}"
    return said


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
        process.wait(timeout=30)
    subprocess.run(["pkill", "-TERM", "-s", str(process.pid)], check=False)  # kernels that outlived Snakemake


@contextmanager
def _only_run(tree: Path) -> Iterator[int]:
    """Hold the folder's lock; the system releases it however the process ends."""
    try:
        tree.mkdir(parents=True, exist_ok=True)
        lock = open(tree / ".lock", "w", encoding="utf-8")  # noqa: SIM115 (closed below)
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CompanionError(f"another run is working on {shown(tree)}; wait for it or stop it") from None
    except OSError as error:
        raise CompanionError(f"{shown(tree)} cannot be written to: {error.strerror}") from None
    with lock:
        yield lock.fileno()
