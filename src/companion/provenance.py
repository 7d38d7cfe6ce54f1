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


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give a temporary file beside `path`; on success it is flushed to disk and renamed to `path`.

    Whatever interrupts the writing, `path` holds the old content or the new one, never half of either. A full disk or
    a missing permission is one message.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".tmp-", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
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
    """Give an empty folder beside `folder`; on success it takes the place of `folder`, by two renames."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".tmp-"))
    temporary.chmod(0o755)
    try:
        yield temporary
        before = temporary.with_name(f"{temporary.name}-before")
        if folder.exists():
            folder.rename(before)
        temporary.rename(folder)
        shutil.rmtree(before, ignore_errors=True)
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
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value


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


def code_hashes(source: str, name: str = "", without: Iterable[str] = ()) -> dict[str, str]:
    """Hashes of a source text (as `name`, where given) and of every package file that it imports, directly or not.

    They are of syntax trees without docstrings: comments and layout do not count.

    Parameters
    ----------
    without : names of files that do not count, e.g. ``["plots.py"]``
    """
    own, imported = _analyse(source)
    found, waiting = {name: own} if name else {}, list(imported)
    while waiting:
        base = _SOURCE.parent.joinpath(*waiting.pop().split("."))
        path = next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)
        if path is None or path.name in without or any(path.is_relative_to(each) for each in _NO_RESULT):
            continue
        key = path.relative_to(_SOURCE.parent).as_posix()
        if key not in found:
            found[key], imported = _analyse(path.read_text(encoding="utf-8"))
            waiting += imported
    return dict(sorted(found.items()))


@lru_cache(maxsize=1024)
def _analyse(source: str) -> tuple[str, list[str]]:
    """Hash of a source text's syntax tree, and the package modules that it imports."""
    tree, names = ast.parse(source), []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            # `from companion.masks import spatial` may name a module or a function of the package.
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        match getattr(node, "body", None):
            case [ast.Expr(ast.Constant(str())), *_] as body:
                del body[0]  # a docstring
    return hashlib.sha256(_written(tree).encode()).hexdigest(), [n for n in names if n.split(".")[0] == _SOURCE.name]


def _written(value: Any) -> str:
    """A syntax tree as text; `ast.dump` would differ between versions of Python."""
    if isinstance(value, list):
        return f"[{' '.join(map(_written, value))}]"
    if not isinstance(value, ast.AST):
        return repr(value)
    parts = {field: getattr(value, field, None) for field in value._fields}
    told = (
        f"{field}={_written(part)}" for field, part in parts.items()
        if part not in (None, []) and field not in ("kind", "type_comment", "type_params")
    )  # fmt: skip
    return f"{type(value).__name__}({' '.join(told)})"
