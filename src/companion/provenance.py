"""Where a result came from: hashes of code and files, and writes that are either whole or absent."""

from __future__ import annotations

import ast
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from companion.errors import CompanionError

_REFUSED = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
_SOURCE = Path(__file__).resolve().parent
# No part of a result: declarations (values are hashed with what reads them), where files lie, and what messages say.
_NO_RESULT = tuple(_SOURCE / name for name in ("config", "layout.py", "errors.py"))


# --- atomic files -------------------------------------------------------------------------------------------


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


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; keys keep their order, undefined numbers (NaN) become null."""
    write_text(path, json.dumps(plain(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


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


def hash_arrays(*arrays: np.ndarray) -> str:
    """sha256 over the bytes, shapes and types of arrays: the identity of training data."""
    found = hashlib.sha256()
    for array in arrays:
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).data)
    return found.hexdigest()


def hash_code(source: str) -> str:
    """sha256 of what a source text does: its syntax tree, without docstrings; comments and layout do not count."""
    return _analyse(source)[0]


def code_hashes(source: str, name: str = "", without: Iterable[str] = ()) -> dict[str, str]:
    """Hashes of a source text (as `name`, where given) and of every package file that it imports, directly or not.

    Parameters
    ----------
    without : names of files that do not count, e.g. ``["plots.py"]``
    """
    own, imported = _analyse(source)
    found, waiting = {name: own} if name else {}, list(imported)
    while waiting:
        path = _module_path(waiting.pop())
        if path is None or path.name in without or any(path.is_relative_to(each) for each in _NO_RESULT):
            continue
        key = path.relative_to(_SOURCE.parent).as_posix()
        if key not in found:
            found[key], imported = _module(path, path.stat().st_mtime_ns)
            waiting += imported
    return dict(sorted(found.items()))


@lru_cache(maxsize=1024)
def _module(path: Path, _modified: int) -> tuple[str, tuple[str, ...]]:
    return _analyse(path.read_text(encoding="utf-8"))


@lru_cache(maxsize=1024)
def _analyse(source: str) -> tuple[str, tuple[str, ...]]:
    """Hash of a source text's syntax tree, and the package modules that it imports.

    Written out here, and not as `ast.dump` has it, since that differs between versions of Python.
    """
    told: list[str] = []
    names: list[str] = []

    def tell(value: Any) -> None:
        if isinstance(value, list):
            told.append("[")
            for each in value:
                tell(each)
            told.append("]")
        elif not isinstance(value, ast.AST):
            told.append(repr(value))
        else:
            told.append(type(value).__name__)
            if isinstance(value, ast.Import):
                names.extend(alias.name for alias in value.names)
            elif isinstance(value, ast.ImportFrom) and value.level == 0 and value.module:
                # `from companion.masks import spatial` may name a module or a function of the package.
                names.extend([value.module, *(f"{value.module}.{alias.name}" for alias in value.names)])
            for field in value._fields:
                part = getattr(value, field, None)
                if field == "body" and isinstance(part, list) and part and _is_text(part[0]):
                    part = part[1:]  # a docstring
                if part not in (None, []) and field not in ("kind", "type_comment", "type_params"):
                    told.append(field)
                    tell(part)

    tell(ast.parse(source))
    imports = tuple(name for name in names if name.split(".")[0] == _SOURCE.name)
    return hashlib.sha256("\n".join(told).encode()).hexdigest(), imports


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _module_path(name: str) -> Path | None:
    base = _SOURCE.parent.joinpath(*name.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)
