"""The pictures of a folder, by the names that labels give them: below which folder, in which letters, on whose disk."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from companion.errors import CompanionError
from companion.micrographs.images import IMAGE_SUFFIXES


def folded(name: str) -> str:
    """A file name as far as it tells: one Unicode form, lower case, forward slashes."""
    return unicodedata.normalize("NFC", name).casefold().replace("\\", "/")


def _parts(name: str, bare: bool) -> list[str]:
    parts = [part for part in folded(name).split("/") if part not in ("", ".", "..")] or [""]
    return [*parts[:-1], re.sub(r"\.(png|tiff?|jpe?g|bmp)$", "", parts[-1]) if bare else parts[-1]]


@lru_cache(maxsize=4)
def _by_last(names: tuple[str, ...], bare: bool) -> dict[str, dict[str, list[str]]]:
    """Parts of every name by the name, by their last part: of thousands of names few are looked at for each given."""
    found = defaultdict(dict)
    for name in names:
        parts = _parts(name, bare)
        found[parts[-1]][name] = parts
    return found


def meant(given: str, names: Collection[str], bare: bool = False) -> list[str]:
    """The file names that another file's name may mean: none, one, or several that fit equally well.

    Two names mean one file where one is the end of the other, folder by folder; the longest such end counts, best the
    whole name. `bare` names are compared without their suffix.
    """
    if given in names:
        return [given]
    own, ranks = _parts(given, bare), defaultdict(list)
    for name, parts in _by_last(tuple(names), bare).get(own[-1], {}).items():
        n = min(len(own), len(parts))
        if own[-n:] == parts[-n:]:
            ranks[n, len(own) == len(parts)].append(name)
    return ranks[max(ranks)] if ranks else []


def picture_files(folder: Path, without: Path | None = None) -> dict[str, Path]:
    """Picture files in a folder and below it by name from there, sorted; none that begins with a dot or is in `without`
    (where that is another folder)."""
    skipped = without if without and without != folder else None
    return {path.relative_to(folder).as_posix(): path for path in _visible(folder)
            if path.suffix.lower() in IMAGE_SUFFIXES and not (skipped and path.is_relative_to(skipped))}  # fmt: skip


Rows = Iterator[tuple[dict[str, Any], list[tuple[Any, dict[str, Any]]]]]  # see `formats`


@dataclass
class Source:
    """What is imported, and what is said of it."""

    labels: Path  # a file, or a folder with one per micrograph
    folder: Path  # of the pictures
    files: dict[str, Path]  # these, see `picture_files`
    classes: tuple[str, ...] = ()
    document: dict[str, Any] = field(default_factory=dict)  # of a COCO file, see `read_coco`
    found: list[str] = field(default_factory=list)  # problems, a line each
    notes: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))  # what was noticed -> where

    def find(self, given: str) -> str:
        """The name of the picture that a label file names, see `meant`."""
        local = unquote(given.partition("?d=")[2] or given)  # Label Studio's local files
        found = meant(local, self.files) or meant(given, self.files)
        if len(found) == 1:
            return found[0]
        if found:
            raise CompanionError(f"{' and '.join(found[:3])} could be meant; give the path below {self.folder}")
        by_last = _by_last(tuple(self.files), False)
        close = difflib.get_close_matches(_parts(given, False)[-1], by_last, n=1)
        there = f"did you mean {next(iter(by_last[close[0]]))}?" if close else f"{len(self.files)} pictures are there"
        raise CompanionError(f"missing from {self.folder} ({there})")

    def pairs(self, *suffixes: str) -> Iterator[tuple[str, Path | None]]:
        """Names of pictures with the label file of the same name but for the suffix, if any, below the folder `labels`.

        Two of one name are problems, and label files without a picture, unless both lie in one folder, where other
        files are usual. Where no picture has a label file, the folder is the wrong one.
        """
        labels = self.labels
        if not labels.is_dir():
            raise CompanionError(f"{labels} is not a folder; one with a {suffixes[0]} file per micrograph is needed")
        files = [path for path in _visible(labels) if path.suffix.lower() in suffixes]
        partners, names = defaultdict(list), defaultdict(list)
        for path in files:
            partners[_stem(path.relative_to(labels).as_posix())].append(path)
        for name in self.files:
            names[_stem(name)].append(name)
        if not partners.keys() & names.keys():
            bare = {Path(name).name for name in names}
            near = sorted({str(path.parent) for path in files if _stem(path.name) in bare})
            raise CompanionError(
                f"{labels} holds no {' or '.join(suffixes)} file with the name of any of {len(self.files)} pictures "
                f"in {self.folder}" + f"; {', '.join(near[:3])} does: give both folders of one level" * bool(near)
            )
        self.found += [f"{' and '.join(own)} share one name and would share their labels: keep one"
                       for own in names.values() if len(own) > 1]  # fmt: skip
        self.found += [f"{' and '.join(path.name for path in own)} are two label files of one micrograph: keep one"
                       for own in partners.values() if len(own) > 1]  # fmt: skip
        alone = sorted(partners.keys() - names.keys() - {"classes"})
        said = [f"{partners[key][0].name}: there is no image of that name" for key in alone]
        (self.notes["passed over"] if labels == self.folder else self.found).extend(said)
        yield from ((own[0], partners[key][0] if key in partners else None) for key, own in names.items())

    def optional(self, *suffixes: str) -> Iterator[tuple[str, Path | None]]:
        """The same, where a micrograph without a label file is an empty one."""
        for name, path in self.pairs(*suffixes):
            self.notes["without a label file, taken as empty"] += [name] * (path is None)
            yield name, path


def _stem(name: str) -> str:
    return folded(name).rpartition(".")[0]


def _visible(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*"))
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)]  # fmt: skip
