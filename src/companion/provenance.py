"""Where a result came from: hashes, stamps and writes that are either whole or absent."""

from __future__ import annotations

import ast
import errno
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from companion import paths
from companion.errors import CompanionError

STAMP = "stamp.json"
EXECUTED = "notebook.ipynb"  # the executed copy beside it
PACKAGES = ("numpy", "pandas", "scipy", "scikit-image", "torch", "torchvision", "diffusers", "statsmodels")
_REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
_SOURCE = Path(__file__).resolve().parent


# --- atomic artifacts ---------------------------------------------------------------------------------------


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary file beside `path`; on success it is flushed to disk and renamed to `path`.

    Whatever interrupts the writing, `path` holds the old content or the new one, never half of either.
    """
    with _refusals(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-", suffix=path.suffix)
        os.close(handle)
    temporary = Path(name)
    try:
        with _refusals(path):
            yield temporary
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """A full disk or a missing permission as one message."""
    try:
        yield
    except Exception as error:
        # Some writers tell of a full disk in words of their own, or only that fewer bytes were written.
        full = "No space left" in str(error) or (isinstance(error, OSError) and is_full(path))
        if not full and getattr(error, "errno", None) not in _REFUSED:
            raise
        reason = os.strerror(errno.ENOSPC) if full else error.strerror
        raise CompanionError(f"{path} could not be written: {reason}") from error


def is_full(path: Path) -> bool:
    """Whether the disk that holds `path`, which need not exist, has no room to speak of."""
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(existing).free < 64 * 1024


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder beside `folder`; on success it takes the place of `folder`, which is whole until then."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".tmp-"))
    temporary.chmod(0o755)
    try:
        yield temporary
        if folder.exists():
            before = temporary.with_name(f"{temporary.name}-before")
            folder.rename(before)
            temporary.rename(folder)
            shutil.rmtree(before)
        else:
            temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; keys keep their order, undefined numbers (NaN) become null."""
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as parquet, atomically and without its index; equal tables give equal bytes.

    Values of micrographs hardly repeat: without dictionaries zstd makes a third less of them than the default does.
    """
    with atomic(path) as temporary:
        table.to_parquet(temporary, index=False, compression="zstd", use_dictionary=False)


def write_array(path: Path, array: np.ndarray) -> None:
    """Write an array as .npy, atomically."""
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array, allow_pickle=False)


def plain(value: Any) -> Any:
    """`value` in JSON's own types; undefined numbers (NaN, infinity) become None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


# --- hashes -------------------------------------------------------------------------------------------------


def hash_file(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_value(value: Any) -> str:
    """sha256 of a JSON-like value, independent of the order of keys."""
    return hashlib.sha256(json.dumps(plain(value), sort_keys=True).encode()).hexdigest()


def hash_notebook(path: Path) -> str:
    """sha256 of a notebook's cells (type and source): outputs and execution counts do not count."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return hash_value([[cell["cell_type"], "".join(cell["source"])] for cell in cells])


def code_hashes(*modules: str) -> dict[str, str]:
    """sha256 of every package file that `modules` (dotted names) import, directly or not."""
    found: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        path = _module_path(waiting.pop())
        key = path.relative_to(_SOURCE.parent).as_posix() if path else ""
        if path is None or key in found:
            continue
        found[key] = hash_file(path)
        waiting += _imports(path.read_text(encoding="utf-8"))
    return dict(sorted(found.items()))


def notebook_imports(path: Path) -> list[str]:
    """Package modules that a notebook's code cells import."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return _imports("\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!"))))


@lru_cache(maxsize=256)
def _imports(source: str) -> list[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            # `from companion.micrographs import patches` may name a module or a function of the package.
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] == _SOURCE.name]


def _module_path(name: str) -> Path | None:
    base = _SOURCE.parent.joinpath(*name.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


# --- stamps -------------------------------------------------------------------------------------------------


def artifacts(folder: Path) -> list[str]:
    """Names of the artifacts in `folder`: every file but its stamp, notebook copies and working files."""
    names = (path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file())
    return [name.as_posix() for name in names if not _is_working_file(name)]


def artifact_hashes(folder: Path) -> dict[str, str]:
    """Name -> sha256 of the artifacts in `folder`."""
    return {name: hash_file(folder / name) for name in artifacts(folder)}


def signature(path: Path) -> tuple[int, int]:
    """Inode and modification time [ns]: differ once a file has been written again, with equal content too."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def _is_working_file(path: Path) -> bool:
    return path.name in (STAMP, EXECUTED, "failed.ipynb", "error.txt") or any(
        part.startswith(".") or part == "checkpoint" for part in path.parts
    )


def read_stamp(folder: Path) -> dict[str, Any] | None:
    """The stamp in `folder`; None where there is none or it is not readable."""
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return stamp if isinstance(stamp, dict) and "outputs" in stamp else None


def environment() -> dict[str, Any]:
    """Versions, device and commit for a stamp."""
    return {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": device_name(),
        "commit": git_commit(),
    }


def device_name() -> str:
    """The accelerator that torch uses if torch is loaded, else the processor."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return str(torch.cuda.get_device_name())
    return f"CPU, {os.cpu_count()} cores ({platform.machine()})"


def git_commit() -> str | None:
    """Commit of the project folder, with '+' when tracked files differ from it; None outside git."""
    try:
        command = ["git", "-C", str(paths.root()), "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
