"""A copy of the project that may be disturbed, for `faults.py`: started, killed, copied, damaged, compared."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from companion import provenance
from companion.workflow import freshness

PROJECT = Path(__file__).resolve().parents[1]
AT_WORK = ".tmp-*.ipynb"  # what a notebook is executed into
MEASURED_HOURS = "C12"  # the claim whose value is the time that a run took
TIMES = ("started", "wall_s", "peak_memory_mib", "commit")


@dataclass(frozen=True)
class Project:
    """A copy of the project with the profile `faults`; everything that a run reads and writes lies below `root`."""

    root: Path

    @property
    def tree(self) -> Path:
        return self.root / "runs" / "faults" / "phantom"

    def start(self, until: str = "") -> subprocess.Popen[str]:
        """Begin `companion run`; come back at once, or when a file named as `until` says lies in the run's tree."""
        command = [sys.executable, "-m", "companion.cli", "run", "faults"]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("COMPANION")}
        given = {**kept, "COMPANION_ROOT": str(self.root), "PYTHONPATH": str(self.root / "src")}
        process = subprocess.Popen(command, cwd=self.root, env=given, text=True, start_new_session=True,
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
        while until and not any(self.tree.rglob(until)):
            if process.poll() is not None:
                raise SystemExit(f"{self.root} ended before there was a {until}: {process.stdout.read()}")
            time.sleep(0.1)
        return process

    def run(self) -> tuple[int, str]:
        """Exit code and what was said, of `companion run` left to its end."""
        process = self.start()
        said, _ = process.communicate()
        return process.returncode, said.strip()

    def kill(self) -> None:
        """SIGKILL for all that works below `root`: the command, Snakemake, papermill and the kernels."""
        while alive := self.processes():
            for process in alive:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(0.1)

    def processes(self) -> list[psutil.Process]:
        # Of another user's process, or a zombie, the environment is None.
        found = ((p, (p.info["environ"] or {}).get("COMPANION_ROOT", "")) for p in psutil.process_iter(["environ"]))
        return [process for process, root in found if Path(root).is_relative_to(self.root)]

    def stamps(self) -> list[Path]:
        return sorted(self.tree.rglob(freshness.STAMP))

    def results(self) -> dict[str, str]:
        """File -> hash of every artifact, and of every stamp without its times; without the hours in the claims."""
        found = {}
        for stage, stamp in freshness.stamps(self.tree).items():
            made = freshness.outputs(self.tree / stage)
            if "claims.json" in made:
                rows = json.loads((self.tree / stage / "claims.json").read_text(encoding="utf-8"))["claims"]
                kept = [{**row, "commit": None} for row in rows if row["id"] != MEASURED_HOURS]
                made["claims.json"] = stamp["outputs"]["claims.json"] = provenance.hash_value(kept)
            made[freshness.STAMP] = provenance.hash_value({k: v for k, v in stamp.items() if k not in TIMES})
            found |= {f"{stage}/{name}": sha for name, sha in made.items()}
        return found

    def copy(self, root: Path, *without: str) -> "Project":
        """This project elsewhere, with what it has made but for folders of the names `without`."""
        shutil.copytree(self.root, root, ignore=shutil.ignore_patterns("__pycache__", ".snakemake", *without))
        return Project(root)


def undisturbed(folder: Path) -> Project:
    """The project with the tiny profile, run once."""
    calm = Project(folder / "calm")
    for name in ("src", "notebooks", "weights", "profiles"):
        shutil.copytree(PROJECT / name, calm.root / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "Snakefile", calm.root)
    shutil.copy(Path(__file__).with_name("faults.yaml"), calm.root / "profiles")
    began = time.monotonic()
    code, said = calm.run()
    if code != 0:
        raise SystemExit(f"the undisturbed run failed: {said}")
    print(f"undisturbed: {time.monotonic() - began:.1f} s", flush=True)
    return calm


def flip(path: Path) -> None:
    """Turn one bit of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 4
    path.write_bytes(content)


def _foreign(path: Path) -> None:
    path.write_bytes(b"PK\x03\x04 of another program " * 20)
    path.with_name(f"foreign{path.suffix}").write_bytes(b"not of this run")


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "a bit flipped": flip, "emptied": lambda path: path.write_bytes(b""),
    "replaced by a foreign file, another one beside it": _foreign, "deleted": Path.unlink,
}  # fmt: skip
