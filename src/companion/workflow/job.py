"""Run one notebook through papermill, whole or not at all, and stamp what it wrote. Snakemake runs it for each job."""

from __future__ import annotations

import argparse
import fcntl
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from companion import layout
from companion.config import Profile, load_profile
from companion.errors import CompanionError
from companion.provenance import atomic, write_json, write_text
from companion.workflow import freshness
from companion.workflow.freshness import DONE, ERROR, EXECUTED, STAMP

PACKAGES = ("numpy", "pandas", "scipy", "scikit-image", "scikit-learn", "torch", "torchvision", "diffusers")
WEIGHTS = ("autoencoder.safetensors", "denoiser.safetensors", "weights.safetensors")  # trainings know their own
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# Memory that one step of a training frees serves the next: given back to the system, it comes cleared page by page.
MALLOC = "glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=4294967296"
KIB_IN_MIB = 1024 ** (1 + (sys.platform == "darwin"))  # where the unit is bytes
NUMBERS = ("n_train", "seed")  # keys that notebooks take as numbers; the others are texts


def make(
    name: str, P: Profile, profile: str, keys: dict[str, str], inputs: Sequence[str], flags: Sequence[str]
) -> None:
    """Run a notebook and stamp what it wrote, unless it is fresh, or another run has made the same.

    Waits while another job makes the same stage, for instance one that outlived the run that started it. Where the
    notebook stops, that is a `CompanionError`, and the copy with the error is kept as ``failed.ipynb``.

    Parameters
    ----------
    profile : as the user named it; the notebook reads it again
    inputs, flags : folders below the working directory, a run's, that it reads, and that hold a flag once it is done;
        the shortest of these is its own
    """
    tree = Path.cwd()
    folder = tree / min(flags, key=len)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w", encoding="utf-8") as lock:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        made_from = freshness.made_from(name, P, keys, inputs, tree)
        if missing := [each for each, sha in made_from["inputs"].items() if sha is None]:
            raise CompanionError(f"{name} reads {missing[0]}, which has not been made")
        if freshness.reasons(folder, P, tree, inputs) and not _taken_over(folder, made_from, tree):
            _clear(folder)
            before = layout.Layout(P).unchanged / folder.relative_to(tree)  # what it trained fits where nothing changed
            for path in (path for name in WEIGHTS for path in before.rglob(name) if before != folder):
                (folder / path.relative_to(before)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / path.relative_to(before))
            began = time.time()
            draw(name, profile, P.dataset, keys, folder)
            if not (made := freshness.outputs(folder)):
                raise CompanionError(f"{name} has written nothing")
            write_json(folder / STAMP, {
                "notebook": name, "profile": P.name, "dataset": Path(P.dataset).name, "keys": keys, **made_from,
                "outputs": made, "flags": [os.path.relpath(tree / flag, folder) for flag in flags],
                "python": platform.python_version(),
                "packages": {package: metadata.version(package) for package in PACKAGES},
                "device": device_name(P) if freshness.trains(name) else processor(), "commit": git_commit(),
                "started": datetime.fromtimestamp(began, UTC).isoformat("T", "seconds"),
                "wall_s": round(time.time() - began, 2),
                "peak_memory_mib": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // KIB_IN_MIB,
            })  # fmt: skip
            shutil.rmtree(folder / "checkpoint", ignore_errors=True)
    for flag in flags:
        (tree / flag).mkdir(exist_ok=True)  # an input may turn out empty: a split without validation patches
        (tree / flag / DONE).touch()


def _taken_over(folder: Path, made_from: Mapping[str, Any], tree: Path) -> bool:
    """Copy the stage from another run that has made it from the same code, parameters and inputs, if there is one."""
    for other in sorted(layout.runs().glob(f"*/{tree.name}")):
        there = other / folder.relative_to(tree)
        stamp = freshness.read_stamp(there) if other != tree else None
        same = stamp and all(stamp.get(key) == value for key, value in made_from.items()) and "left_out" not in stamp
        if same and (there / EXECUTED).exists() and freshness.outputs(there) == stamp["outputs"]:
            _clear(folder)
            copy(there, folder, [EXECUTED, *stamp["outputs"]])
            print(f"taken over from {layout.shown(there)}")
            return True
    return False


def copy(stage: Path, target: Path, names: Iterable[str]) -> None:
    """Copy the stamp of a stage and the files of these names."""
    for name in (STAMP, *names):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(stage / name, target / name)


def _clear(folder: Path) -> None:
    """Remove what an earlier run left, but for what a training goes on from: checkpoints and (by identity) weights."""
    for path in sorted(folder.rglob("*"), reverse=True):
        if path.is_dir():
            with suppress(OSError):
                path.rmdir()
        elif path.name not in (".lock", *WEIGHTS) and "checkpoint" not in path.parts:
            path.unlink()


def draw(name: str, profile: str, dataset: str, keys: Mapping[str, str], folder: Path) -> None:
    """Execute a notebook; its executed copy goes to `folder`, what it writes where `Layout` says."""
    import papermill
    from nbclient.exceptions import DeadKernelError
    from traitlets.config import Config

    given = {key: int(value) if key in NUMBERS else value for key, value in keys.items()}
    with atomic(folder / EXECUTED) as copy, tempfile.TemporaryDirectory(prefix="kernel-") as sockets:
        # Sockets as files: TCP ports are chosen before the kernel binds them, so that of kernels that start side by
        # side one may find its port taken and die; and a port is open to everyone who has an account.
        kernel = {"transport": "ipc", "ip": f"{sockets}/k", "connection_file": f"{sockets}/kernel.json"}
        paths = [str(path).replace("{", "{{").replace("}", "}}") for path in (layout.notebook(name), copy)]
        try:
            papermill.execute_notebook(
                *paths, {"profile": profile, "dataset": dataset, **given}, kernel_name="python3", language="python",
                cwd=layout.root(), progress_bar=False, autosave_cell_every=0, config=Config(KernelManager=kernel),
                start_timeout=300,  # s: a loaded machine, or a cluster's cold file system, imports slowly
                # torch makes a million objects that stay: to look through them at imports and at the end takes seconds
                extra_arguments=["--IPKernelApp.exec_lines=import gc; gc.set_threshold(100_000)"],
                shutdown_kernel="immediate",
            )  # fmt: skip
        except papermill.PapermillExecutionError as error:
            shutil.copyfile(copy, failed := folder / "failed.ipynb")
            if error.ename == CompanionError.__name__:
                raise CompanionError(error.evalue) from None
            where = f"{name} stopped in cell {error.exec_count}"
            raise CompanionError(f"{where}: {error.ename}: {error.evalue}. The executed copy is {failed}") from None
        except (DeadKernelError, RuntimeError) as error:
            raise CompanionError(
                f"{name}: the kernel ended before the notebook did: {error}. The system may have killed it for memory; "
                "run fewer jobs at a time (--cores), or give the machine more"
            ) from None


def processor() -> str:
    """The processor, as stamps name it."""
    return f"CPU, {os.cpu_count()} cores ({platform.machine()})"


def device_name(P: Profile) -> str:
    """Where the networks of a profile run on this machine, taken from its driver: torch without CUDA is not noticed."""
    if P.device.name == "cpu" or shutil.which("nvidia-smi") is None:
        return processor()
    asked = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split("\n")[0] or processor()


def git_commit() -> str | None:
    """Commit of the project folder, with '+' when tracked files differ from it; None outside git."""
    command = ["git", "-C", str(layout.root()), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    with suppress(OSError, subprocess.SubprocessError):
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip() or None
    return None


def main() -> int:
    """``python -m companion.workflow.job NOTEBOOK key=value… --inputs FLAG… --outputs FLAG…``, in the run's folder."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    for option in ("notebook", "--profile", "--dataset"):
        parser.add_argument(option)
    parser.add_argument("keys", nargs="*")
    parser.add_argument("--inputs", nargs="*", default=[])
    parser.add_argument("--outputs", nargs="+")
    given = parser.parse_intermixed_args()
    inputs, flags = ([str(Path(flag).parent) for flag in some] for some in (given.inputs, given.outputs))
    error_file = Path(min(flags, key=len), ERROR)
    error_file.unlink(missing_ok=True)
    try:
        P = load_profile(given.profile, dataset=given.dataset)
        # For notebooks that set no number of threads themselves: sums of several threads differ in their last bits.
        os.environ |= {"GLIBC_TUNABLES": MALLOC, **os.environ, **dict.fromkeys(THREADS, str(P.device.threads))}
        keys = dict(text.split("=", 1) for text in given.keys)
        make(given.notebook, P, given.profile, keys, inputs, flags)
    except CompanionError as error:
        write_text(error_file, f"{error}\n")
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        write_text(error_file, f"{type(error).__name__}: {error}\n")
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
