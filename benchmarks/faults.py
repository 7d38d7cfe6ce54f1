"""What a run survives, tried: ``python benchmarks/faults.py [--only NAME …] [--kills 30] [--work DIR]``.

A tiny run of every stage (``benchmarks/faults.yaml``) is left alone once. Then the same run is killed, its files are
damaged, its disk fills, and so on; afterwards `companion run` must either end with the same artifacts, to the byte, or
refuse with one message and exit code 2. What happened goes to ``benchmarks/faults.json``, which the page
``book/faults.md`` shows. ``--work`` keeps the undisturbed run, for several calls that try one fault each.
"""

from __future__ import annotations

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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from disturbed import Project, undisturbed

from companion import provenance
from companion.workflow import freshness, job

CHECKPOINT = "checkpoint/denoiser.safetensors"


@dataclass(frozen=True)
class Trial:
    """What the faults are tried on: a finished undisturbed run, its results, and a folder for disturbed copies."""

    calm: Project
    expected: dict[str, str]
    folder: Path
    kills: int
    rng: random.Random

    def partial(self, name: str, count: int = 5) -> Project:
        """A copy of the undisturbed run that lacks `count` of its stages, chosen at random."""
        project = self.calm.copy(self.folder / name)
        self.remove(project, count)
        return project

    def remove(self, project: Project, count: int) -> None:
        for path in self.rng.sample(sorted(project.tree.rglob(freshness.STAMP)), count):
            shutil.rmtree(path.parent)

    def verdict(self, project: Project, ended: tuple[int, str]) -> str:
        """One sentence on the results after the last run; begins with FAILED where they are not as undisturbed."""
        code, said = ended
        if code != 0:
            return f"FAILED: exit code {code}: {said[-300:]}"
        results = project.results()
        differing = sorted(k for k in self.expected | results if self.expected.get(k) != results.get(k))
        if differing:
            return f"FAILED: {len(differing)} artifacts differ, for instance {', '.join(differing[:3])}"
        return f"all {len(results)} artifacts and stamps as undisturbed"


def refused(ended: tuple[int, str], word: str) -> str:
    """'refused (exit 2): message', or FAILED where it was not one clear message."""
    code, said = ended
    messages = [line for line in said.splitlines() if line.startswith("error")]
    if code != 2 or "Traceback" in said or not any(word in line for line in messages):
        return f"FAILED: exit code {code}: {said[-400:]}"
    return f"refused, exit code 2: “{messages[0].removeprefix('error: ')}”"


# --- faults: each yields rows (what was tried, what happened) -------------------------------------------------

Rows = Iterator[tuple[str, str]]


def killed(trial: Trial) -> Rows:
    """Killed at random moments"""
    project = trial.calm.fresh(trial.folder / "killed")
    done, whole, stages = 0, 0, set()
    while done < trial.kills:
        old, at_work, begun = set(project.tree.rglob(".tmp-*.ipynb")), set(), set()
        process, wanted, left = project.start(), trial.rng.randrange(5), trial.rng.uniform(0, 4)
        while process.poll() is None and left > 0:
            at_work = {path.parent for path in project.tree.rglob(".tmp-*.ipynb") if path not in old}
            begun |= at_work
            if len(begun) >= wanted:  # one of five moments is counted from the start, the others from a stage's begin
                left -= 0.1
            time.sleep(0.1)
        if process.poll() is None:
            project.kill()
            stages |= at_work
            done += 1
        said, _ = process.communicate()
        if process.returncode >= 0:  # it came to its end: take some of its stages away, and on
            state = trial.verdict(project, (process.returncode, said))
            if state.startswith("FAILED"):
                yield f"SIGKILL of all processes, {done} times", state
                return
            whole += 1
            trial.remove(project, 6)
    state = trial.verdict(project, project.run())
    yield (
        f"SIGKILL of all processes {done} times in one chain of runs, which met {len(stages)} of "
        f"{len(list(trial.calm.tree.rglob(freshness.STAMP)))} stages at work and came to its end {whole + 1} times",
        state,
    )  # fmt: skip


def command_killed(trial: Trial) -> Rows:
    """Command killed, its jobs alive"""
    project = trial.partial("orphans")
    process = project.start()
    _until(project, lambda: any(project.tree.rglob(".tmp-*.ipynb")))
    process.kill()
    process.wait()
    yield "SIGKILL of `companion run` alone, and the command again at once", refused(project.run(), "another run")
    _until(project, lambda: not project.processes())
    yield "the command once more, after its jobs have ended", trial.verdict(project, project.run())


def corrupted(trial: Trial) -> Rows:
    """Artifacts damaged"""
    ways = list(DAMAGES)
    for turn in range(2):
        project = trial.calm.copy(trial.folder / f"damaged-{turn}")
        stages = sorted(path.parent for path in project.tree.rglob(freshness.STAMP))
        for index, stage in enumerate(stages):
            name = trial.rng.choice([name for name in freshness.outputs(stage) if "foreign" not in name])
            DAMAGES[ways[(index + 2 * turn) % len(ways)]](stage / name)
        yield f"one artifact of each of {len(stages)} stages: {', '.join(ways)}", trial.verdict(project, project.run())
    project = trial.calm.copy(trial.folder / "damaged-stamps")
    stamps = sorted(project.tree.rglob(freshness.STAMP))
    images = sorted((project.root / "data").rglob("*.png"))
    for index, path in enumerate([*stamps, *images]):
        DAMAGES[ways[index % len(ways)]](path)
    what = f"all {len(stamps)} stamps and all {len(images)} micrographs of the phantom, in the same ways"
    yield what, trial.verdict(project, project.run())


def checkpoint(trial: Trial) -> Rows:
    """Checkpoint damaged"""
    project = trial.calm.copy(trial.folder / "checkpoint")
    for folder in project.tree.rglob("diffusion"):
        shutil.rmtree(folder)
    process = project.start()
    _until(project, lambda: any(project.tree.rglob(CHECKPOINT)))
    project.kill()
    process.communicate()
    files = list(project.tree.rglob(CHECKPOINT))
    for path in files:
        _flip(path)
    yield f"killed in training, a bit of its checkpoint flipped ({len(files)})", trial.verdict(project, project.run())


def disk(trial: Trial) -> Rows:
    """Disk full, or read-only"""
    if os.geteuid() != 0:
        yield "a small disk", "not tried: mounting one needs root"
        return
    project = trial.calm.fresh(trial.folder / "disk")
    kept = trial.partial("kept", 6)
    needed, used = (sum(p.stat().st_size for p in q.tree.rglob("*") if p.is_file()) >> 10 for q in (trial.calm, kept))
    place = project.root / "runs"
    place.mkdir()

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
        yield "the same disk with space and permission", trial.verdict(project, project.run())
    finally:
        project.kill()
        subprocess.run(["umount", str(place)], check=True)


def together(trial: Trial) -> Rows:
    """Two runs at once; moved"""
    project = trial.partial("two")
    first = project.start()
    _until(project, lambda: any(project.tree.rglob(".tmp-*.ipynb")))
    yield "a second run of the same tree, while the first works", refused(project.run(), "another run")
    project.kill()
    first.communicate()
    moved = replace(project, root=trial.folder / "elsewhere" / "deeper")
    moved.root.parent.mkdir()
    project.root.rename(moved.root)
    yield "the first killed midway, and the project moved to another folder", trial.verdict(moved, moved.run())


def changed(trial: Trial) -> Rows:
    """Parameters changed midway"""
    project = trial.partial("changed", 8)
    kept = project.settings.read_text(encoding="utf-8")
    process = project.start()
    _until(project, lambda: any(project.tree.rglob(".tmp-*.ipynb")))
    entries = {"masks": {"n_patches": 24, "compare": []}, "evaluation": {"bootstrap": 60}}
    project.settings.write_text(yaml.safe_dump({**yaml.safe_load(kept), **entries}), encoding="utf-8")
    process.communicate()
    project.settings.write_text(kept, encoding="utf-8")
    what = f"masks and bootstrap changed during a run (its exit code: {process.returncode}), changed back, run again"
    yield what, trial.verdict(project, project.run())


FAULTS: dict[str, Callable[[Trial], Rows]] = {
    f.__name__: f for f in (killed, command_killed, corrupted, checkpoint, disk, together, changed)
}


def _until(project: Project, condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.1)
    raise TimeoutError(f"{project.root}: what was waited for did not happen")


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 4
    path.write_bytes(content)


def _foreign(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04 of another program " * 20)
    path.with_name(f"foreign{path.suffix}").write_bytes(b"not of this run")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": _truncate, "a bit flipped": _flip, "emptied": lambda path: path.write_bytes(b""),
    "replaced by a foreign file, another one beside it": _foreign, "deleted": Path.unlink,
}  # fmt: skip


def tried(trial: Trial, name: str) -> list[dict[str, Any]]:
    """Rows of the table: fault, what was tried, what happened, seconds."""
    rows, began = [], time.monotonic()
    for what, happened in FAULTS[name](trial):
        took = round(time.monotonic() - began, 1)
        rows.append({"id": name, "fault": FAULTS[name].__doc__, "tried": what, "happened": happened, "s": took})
        print(f"{took:7.1f} s  {what}: {happened}", flush=True)
        began = time.monotonic()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=1, help="of the moments and of the choice of files")
    parser.add_argument(
        "--table", type=Path, default=Path(__file__).with_suffix(".json"), help="written after each fault"
    )
    parser.add_argument("--work", type=Path, help="folder that keeps the undisturbed run")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    failed = False
    with tempfile.TemporaryDirectory() as temporary:
        folder, work = Path(temporary) / "disturbed", (given.work or Path(temporary)).resolve()
        folder.mkdir()
        try:
            calm = undisturbed(work)
            trial = Trial(calm, calm.results(), folder, given.kills, random.Random(given.seed))
            for name in given.only:
                rows = tried(trial, name)
                record(given.table, name, rows, calm.commit.read_text(encoding="utf-8"))
                failed |= any(row["happened"].startswith("FAILED") for row in rows)
        finally:
            for place in (work, folder):
                Project(place).kill()
    sys.exit(failed)


def record(table: Path, name: str, rows: list[dict[str, Any]], commit: str) -> None:
    """Put the rows of one fault into the table in place of those of an earlier trial."""
    before = json.loads(table.read_text(encoding="utf-8"))["rows"] if table.exists() else []
    kept = [row for row in before if row["id"] != name] + rows
    missing = [fault.__doc__ for key, fault in FAULTS.items() if key not in {row["id"] for row in kept}]
    content = {"commit": commit, "device": job.processor(), "not_tried": missing,
               "rows": sorted(kept, key=lambda row: list(FAULTS).index(row["id"]))}  # fmt: skip
    provenance.write_json(table, content)


if __name__ == "__main__":
    main()
