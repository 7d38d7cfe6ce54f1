"""Run one stage: its notebook through papermill, whole or not at all. Snakemake calls this once per job."""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from companion import paths, places, stages
from companion.errors import CompanionError
from companion.config.profile import Profile, load_profile
from companion.provenance import EXECUTED, STAMP, artifact_hashes, artifacts, atomic, read_stamp

KERNEL_START_S = 300  # a loaded machine, or a cluster's cold file system, takes its time over the imports
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
DONE = ".done"  # Snakemake's flag; whether a stage is fresh is told by its stamp alone

# Pictures of a training on its way cannot be drawn from the weights at its end: where one is lost, it is trained again.
DRAWN_IN_TRAINING = {"diffusion": ("grid/", "denoiser.safetensors")}


def synchronise(profile: Profile) -> dict[str, list[str] | None]:
    """Make Snakemake's flags say what the stamps say, and return `stages.states`: why each stage has to run.

    A fresh stage gets its flag, with modification times in the order of the matrix; every other flag is removed.
    So neither a copied tree nor a fresh checkout reruns anything, and nothing stale is used.
    """
    states, now = stages.states(profile), time.time()
    for order, (address, reasons) in enumerate(states.items()):
        flag = places.tree(profile) / address / DONE
        if reasons == []:
            flag.touch()
            os.utime(flag, (now - 10_000 + order, now - 10_000 + order))
        else:
            flag.unlink(missing_ok=True)
    return states


def execute(stage: stages.Stage, name_or_path: str) -> None:
    """Execute the notebook of `stage`, unless its stamp already matches, and keep the executed copy beside its output.

    Waits while another job makes the same stage, for instance one that outlived the run that started it.

    Parameters
    ----------
    name_or_path : the profile as the user named it, which the notebook reads again

    Raises
    ------
    CompanionError
        When the notebook stops; the copy with the error is kept as ``failed.ipynb``.
    """
    stage.folder.mkdir(parents=True, exist_ok=True)
    with open(stage.folder / ".lock", "w", encoding="utf-8") as lock:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        if stage.reasons_to_run() != []:
            _clear(stage)
            _papermill(stage, name_or_path)
            stamped = (read_stamp(stage.folder) or {"outputs": {}})["outputs"]
            for name in set(artifacts(stage.folder)) - set(stamped):  # of an earlier run, with other parameters
                (stage.folder / name).unlink()
    for left in ("failed.ipynb", "error.txt"):
        (stage.folder / left).unlink(missing_ok=True)
    (stage.folder / DONE).touch()


def _clear(stage: stages.Stage) -> None:
    """Remove what a killed job was writing, artifacts that are not as they were stamped, and `DRAWN_IN_TRAINING`."""
    for left in stage.folder.rglob(".tmp-*"):
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    stamp, there = read_stamp(stage.folder), artifact_hashes(stage.folder)
    stamped = stamp["outputs"] if stamp else {}
    drawn, weights = DRAWN_IN_TRAINING.get(stage.kind.name, ("", ""))
    on_its_way = drawn and (stage.folder / "checkpoint").is_dir()  # of another training: it empties `drawn` itself
    for name in (name for name, sha in there.items() if stamp and stamped.get(name) != sha):
        if not (on_its_way and name.startswith(drawn)):
            (stage.folder / name).unlink()
    if not drawn:
        return
    damaged = stamp is None and (stage.folder / STAMP).exists()  # nothing says any more what is as it was written
    if damaged or any(name.startswith(drawn) and there.get(name) != sha for name, sha in stamped.items()):
        (stage.folder / weights).unlink(missing_ok=True)


def _papermill(stage: stages.Stage, name_or_path: str) -> None:
    import papermill
    from nbclient.exceptions import DeadKernelError
    from traitlets.config import Config

    failed = stage.folder / "failed.ipynb"
    parameters = {"profile": name_or_path, "dataset": stage.profile.dataset, **stage.keys}
    if not stage.kind.keys and not stage.kind.study:
        parameters["splits"] = list(stage.profile.splits)
    try:
        with atomic(stage.folder / EXECUTED) as copy, tempfile.TemporaryDirectory(prefix="kernel-") as sockets:
            # Sockets as files: TCP ports are chosen before the kernel binds them, so that of kernels that start side by
            # side one may find its port taken and die; and a port is open to everyone who has an account.
            kernel = {"transport": "ipc", "ip": f"{sockets}/k", "connection_file": f"{sockets}/kernel.json"}
            try:
                papermill.execute_notebook(
                    stage.notebook, copy, parameters, kernel_name="python3", language="python", cwd=paths.root(),
                    progress_bar=False, autosave_cell_every=0, start_timeout=KERNEL_START_S,
                    config=Config(KernelManager=kernel),
                )  # fmt: skip
            except papermill.PapermillExecutionError:
                copy.replace(failed)
                raise
    except papermill.PapermillExecutionError as error:
        if error.ename == CompanionError.__name__:
            raise CompanionError(error.evalue) from None
        raise CompanionError(
            f"{stage.kind.notebook} stopped in cell {error.exec_count}: {error.ename}: {error.evalue}. "
            f"The executed copy is {failed}"
        ) from None
    except (DeadKernelError, RuntimeError) as error:
        raise CompanionError(
            f"{stage.kind.notebook}: the kernel ended before the notebook did: {error}. The system may have killed it "
            "for memory; run fewer jobs at a time (--cores), or give the machine more"
        ) from None


def main(arguments: list[str]) -> int:
    """``python -m companion.execute PROFILE DATASET SPLITS ADDRESS``: what the Snakefile runs; SPLITS by commas."""
    name, dataset, splits, address = arguments
    profile = load_profile(name, dataset=dataset, splits=[parse_split(text) for text in splits.split(",")])
    stage = next(s for s in stages.matrix(profile) if s.address == address)
    # For notebooks that set no number of threads themselves: sums of several threads differ in their last bits.
    os.environ |= dict.fromkeys(THREADS, str(profile.threads))
    try:
        execute(stage, name)
    except CompanionError as error:
        with atomic(stage.folder / "error.txt") as file:
            file.write_text(f"{error}\n", encoding="utf-8")
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parse_split(text: str) -> int | str:
    """'2' -> 2; anything else is the path of a split file, which must exist.

    Raises
    ------
    CompanionError
        When it is neither.
    """
    if text.isdecimal():
        return int(text)
    if not Path(text).is_file():
        raise CompanionError(f"--split {text}: neither a number nor an existing split file (YAML)")
    return str(Path(text).resolve())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
