"""What a run survives, tried: ``python benchmarks/faults.py [--only NAME …] [--kills 30]``.

A tiny run of every stage (``benchmarks/faults.yaml``) is left alone once. Then the same run is killed, its files are
damaged, its disk fills, and so on; afterwards `companion run` must either end with the same artifacts, to the byte, or
refuse with one message and exit code 2. What happened goes to ``benchmarks/faults.json``, which the page
``book/faults.md`` shows.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import yaml
from disturbed import AT_WORK, DAMAGES, Project, flip, undisturbed

from companion import provenance
from companion.workflow import freshness, job

CHECKPOINT, TABLE = "checkpoint/denoiser.safetensors", Path(__file__).with_suffix(".json")
Ended = tuple[int, str]  # exit code, and what was said
Rows = Iterator[tuple[str, str]]  # what was tried, and what happened


@dataclass(frozen=True)
class Trial:
    """What the faults are tried on: a finished undisturbed run, its results, and a folder for disturbed copies."""

    calm: Project
    expected: dict[str, str]
    folder: Path
    kills: int
    rng: random.Random
    commit: str  # that the code was copied from

    def partial(self, name: str, count: int) -> Project:
        """A copy of the undisturbed run that lacks `count` of its stages, chosen at random."""
        project = self.calm.copy(self.folder / name)
        self.remove(project, count)
        return project

    def remove(self, project: Project, count: int) -> None:
        for path in self.rng.sample(project.stamps(), count):
            shutil.rmtree(path.parent)

    def verdict(self, project: Project, ended: Ended | None = None) -> str:
        """One sentence on the results after a last run; begins with FAILED where they are not as undisturbed."""
        code, said = ended or project.run()
        if code != 0:
            return f"FAILED: exit code {code}: {said[-300:]}"
        results = project.results()
        if differing := sorted(k for k in self.expected | results if self.expected.get(k) != results.get(k)):
            return f"FAILED: {len(differing)} artifacts differ, for instance {', '.join(differing[:3])}"
        return f"all {len(results)} artifacts and stamps as undisturbed"


def refused(ended: Ended, word: str) -> str:
    """'refused (exit 2): message', or FAILED where it was not one clear message."""
    code, said = ended
    messages = [line for line in said.splitlines() if line.startswith("error")]
    if code != 2 or "Traceback" in said or not any(word in line for line in messages):
        return f"FAILED: exit code {code}: {said[-400:]}"
    return f"refused, exit code 2: “{messages[0].removeprefix('error: ')}”"


def killed(trial: Trial) -> Rows:
    """Killed at random moments"""
    project = trial.calm.copy(trial.folder / "killed", "runs", "data")
    done, whole, met = 0, 0, set()
    while done < trial.kills:
        old, at_work, begun = set(project.tree.rglob(AT_WORK)), set(), set()
        process, wanted, left = project.start(), trial.rng.randrange(5), trial.rng.uniform(0, 4)
        while process.poll() is None and left > 0:
            at_work = set(project.tree.rglob(AT_WORK)) - old
            begun |= at_work
            left -= 0.1 * (len(begun) >= wanted)  # counted from the start, or from the first to fourth stage's begin
            time.sleep(0.1)
        if process.poll() is None:
            project.kill()
            met |= {path.parent for path in at_work}
            done += 1
        said, _ = process.communicate()
        if process.returncode >= 0:  # it came to its end: take some of its stages away, and on
            state = trial.verdict(project, (process.returncode, said))
            if state.startswith("FAILED"):
                yield f"SIGKILL of all processes, {done} times", state
                return
            whole += 1
            trial.remove(project, 6)
    what = f"SIGKILL of all processes {done} times in one chain of runs, which met {len(met)} of "
    what += f"{len(trial.calm.stamps())} stages at work and came to its end {whole + 1} times"
    yield what, trial.verdict(project)


def command_killed(trial: Trial) -> Rows:
    """Command killed, its jobs alive"""
    project = trial.partial("orphans", 5)
    process = project.start(until=AT_WORK)
    process.kill()
    process.wait()
    yield "SIGKILL of `companion run` alone, and the command again at once", refused(project.run(), "another run")
    while project.processes():
        time.sleep(0.1)
    yield "the command once more, after its jobs have ended", trial.verdict(project)


def corrupted(trial: Trial) -> Rows:
    """Artifacts damaged"""
    project = trial.calm.copy(trial.folder / "damaged")
    for stamp, damage in zip(project.stamps(), cycle(DAMAGES.values()), strict=False):
        damage(stamp.parent / trial.rng.choice(list(freshness.outputs(stamp.parent))))
    yield f"one artifact of each of {len(project.stamps())} stages: {', '.join(DAMAGES)}", trial.verdict(project)
    project = trial.calm.copy(trial.folder / "damaged-stamps")
    stamps, images = project.stamps(), sorted((project.root / "data").rglob("*.png"))
    for path, damage in zip([*stamps, *images], cycle(DAMAGES.values()), strict=False):
        damage(path)
    what = f"all {len(stamps)} stamps and all {len(images)} micrographs of the phantom, in the same ways"
    yield what, trial.verdict(project)


def checkpoint(trial: Trial) -> Rows:
    """Checkpoint damaged"""
    project = trial.calm.copy(trial.folder / "checkpoint")
    for folder in project.tree.rglob("diffusion"):
        shutil.rmtree(folder)
    process = project.start(until=CHECKPOINT)
    project.kill()
    process.communicate()
    files = list(project.tree.rglob(CHECKPOINT))
    for path in files:
        flip(path)
    yield f"killed in training, a bit of its checkpoint flipped ({len(files)})", trial.verdict(project)


def disk(trial: Trial) -> Rows:
    """Disk full, or read-only"""
    if os.geteuid() != 0:
        yield "a small disk", "not tried: mounting one needs root"
        return
    project, kept = trial.calm.copy(trial.folder / "disk", "runs", "data"), trial.partial("kept", 6)
    needed, used = (sum(p.stat().st_size for p in q.tree.rglob("*") if p.is_file()) >> 10 for q in (trial.calm, kept))
    (place := project.root / "runs").mkdir()

    def mount(options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)], check=True)

    mount("size=200m")
    try:
        shutil.copytree(kept.root / "runs", place, dirs_exist_ok=True)
        room = sum(path.stat().st_blocks for path in place.rglob("*")) // 2  # KiB, in whole pages
        mount(f"remount,size={room + (needed - used) // 3}k")
        what = f"six stages to make, and a third of the {needed - used} KiB that they need on the disk"
        yield what, refused(project.run(), "No space left")
        mount("remount,size=200m,ro")
        yield "write permission removed (remounted read-only)", refused(project.run(), "Read-only")
        mount("remount,size=200m,rw")
        yield "the same disk with space and permission", trial.verdict(project)
    finally:
        project.kill()
        subprocess.run(["umount", str(place)], check=True)


def together(trial: Trial) -> Rows:
    """Two runs at once; moved"""
    project = trial.partial("two", 5)
    first = project.start(until=AT_WORK)
    yield "a second run of the same tree, while the first works", refused(project.run(), "another run")
    project.kill()
    first.communicate()
    moved = Project(trial.folder / "elsewhere" / "deeper")
    os.renames(project.root, moved.root)
    yield "the first killed midway, and the project moved to another folder", trial.verdict(moved)


def changed(trial: Trial) -> Rows:
    """Parameters changed midway"""
    project = trial.partial("changed", 8)
    settings = project.root / "profiles" / "faults.yaml"
    kept = settings.read_text(encoding="utf-8")
    process = project.start(until=AT_WORK)
    entries = {"masks": {"n_patches": 24, "compare": []}, "evaluation": {"bootstrap": 60}}
    settings.write_text(yaml.safe_dump({**yaml.safe_load(kept), **entries}), encoding="utf-8")
    process.communicate()
    settings.write_text(kept, encoding="utf-8")
    what = f"masks and bootstrap changed during a run (its exit code: {process.returncode}), changed back, run again"
    yield what, trial.verdict(project)


FAULTS: dict[str, Callable[[Trial], Rows]] = {  # their docstrings are their names in the table
    f.__name__: f for f in (killed, command_killed, corrupted, checkpoint, disk, together, changed)
}


def tried(trial: Trial, name: str) -> bool:
    """Try one fault and put what happened into the table, in place of an earlier trial of it; whether it failed."""
    before = json.loads(TABLE.read_text(encoding="utf-8"))["rows"] if TABLE.exists() else []
    rows, began = [row for row in before if row["id"] != name], time.monotonic()
    for what, happened in FAULTS[name](trial):
        happened = happened.replace(f"{trial.folder}/", "")
        took = round(time.monotonic() - began, 1)
        rows.append({"id": name, "fault": FAULTS[name].__doc__, "tried": what, "happened": happened, "s": took})
        print(f"{took:7.1f} s  {what}: {happened}", flush=True)
        began = time.monotonic()
    provenance.write_json(TABLE, {"commit": trial.commit, "device": job.processor(),
                                  "rows": sorted(rows, key=lambda row: list(FAULTS).index(row["id"]))})  # fmt: skip
    return any(row["happened"].startswith("FAILED") for row in rows if row["id"] == name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--kills", type=int, default=30)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with tempfile.TemporaryDirectory() as temporary:
        folder, commit = Path(temporary), job.git_commit() or "none"
        try:
            calm = undisturbed(folder)
            trial = Trial(calm, calm.results(), folder, given.kills, random.Random(1), commit)
            failed = [tried(trial, name) for name in given.only]
        finally:
            Project(folder).kill()
    sys.exit(any(failed))


if __name__ == "__main__":
    main()
