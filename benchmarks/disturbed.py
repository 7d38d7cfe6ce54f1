"""A copy of the project that may be disturbed, for `faults.py`: started, killed, copied, compared."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from companion import provenance
from companion.workflow import freshness, job

PROJECT = Path(__file__).resolve().parents[1]
MEASURED_HOURS = "C12"  # the claim whose value is the time that a run took
TIMES = ("started", "wall_s", "peak_memory_mib", "commit")


@dataclass(frozen=True)
class Project:
    """A copy of the project that may be disturbed; everything that a run reads and writes lies below `root`."""

    root: Path
    profile: str = "faults"

    @property
    def tree(self) -> Path:
        return self.root / "runs" / self.profile / "phantom"

    @property
    def settings(self) -> Path:
        return self.root / "profiles" / f"{self.profile}.yaml"

    @property
    def commit(self) -> Path:
        """Names the commit that the code was copied from."""
        return self.root / "commit"

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "companion.cli", "run", self.profile]
        kept = {name: value for name, value in os.environ.items() if not name.startswith("COMPANION")}
        given = {**kept, "COMPANION_ROOT": str(self.root), "PYTHONPATH": str(self.root / "src")}
        return subprocess.Popen(command, cwd=self.root, env=given, text=True, start_new_session=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip

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
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                root = process.environ().get("COMPANION_ROOT", "")
                if Path(root).is_relative_to(self.root) and process.status() != "zombie":
                    found.append(process)
        return found

    def results(self) -> dict[str, str]:
        """File -> hash of every artifact, and of every stamp without its times; without the hours in the claims."""
        found = {}
        for path in sorted(self.tree.rglob(freshness.STAMP)):
            stage = path.parent.relative_to(self.tree)
            found |= {f"{stage}/{name}": sha for name, sha in freshness.outputs(path.parent).items()}
            stamp = json.loads(path.read_text(encoding="utf-8"))
            stamp["outputs"].pop("claims.json", None)
            kept = {name: value for name, value in stamp.items() if name not in TIMES}
            found[path.relative_to(self.tree).as_posix()] = provenance.hash_value(kept)
        claims = self.tree / "claims" / "claims.json"
        if claims.exists():
            rows = json.loads(claims.read_text(encoding="utf-8"))["claims"]
            kept = [{k: v for k, v in row.items() if k != "commit"} for row in rows if row["id"] != MEASURED_HOURS]
            found["claims/claims.json"] = provenance.hash_value(kept)
        return found

    def copy(self, root: Path) -> Project:
        """This project elsewhere, with what it has made."""
        shutil.copytree(self.root, root, ignore=shutil.ignore_patterns("__pycache__", ".snakemake"))
        return replace(self, root=root)

    def fresh(self, root: Path) -> Project:
        """This project elsewhere, before its first run."""
        project = self.copy(root)
        for made in ("runs", "data"):
            shutil.rmtree(root / made, ignore_errors=True)
        return project


def undisturbed(folder: Path) -> Project:
    """The project with the tiny profile, run once; taken from `folder` if it is finished there."""
    calm = Project(folder / "calm")
    if not calm.root.exists():
        (calm.root / "benchmarks").mkdir(parents=True)
        for name in ("src", "notebooks", "weights"):
            shutil.copytree(
                PROJECT / name, calm.root / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
            )
        shutil.copy(PROJECT / "Snakefile", calm.root)
        calm.commit.write_text(job.git_commit() or "none", encoding="utf-8")
        shutil.copytree(PROJECT / "profiles", calm.settings.parent)
        shutil.copy(Path(__file__).with_name("faults.yaml"), calm.settings)
    began = time.monotonic()
    code, said = calm.run()
    while "another run" in said:  # of a trial that began at the same time
        time.sleep(5)
        code, said = calm.run()
    if code != 0:
        raise SystemExit(f"the undisturbed run failed: {said}")
    print(f"undisturbed: {time.monotonic() - began:.1f} s")
    return calm
