"""The pictures of a folder, by the names that labels give them: below which folder, in which letters, on whose disk."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from companion.errors import CompanionError
from companion.micrographs.images import IMAGE_SUFFIXES

Notes = dict[str, list[str]]  # what was noticed -> where


def folded(name: str) -> str:
    """A file name as far as it tells: one Unicode form, lower case, forward slashes."""
    return unicodedata.normalize("NFC", name).casefold().replace("\\", "/")


class Pictures:
    """Picture files in a folder and below it (files that begin with a dot, and those below `without`, left out).

    Attributes
    ----------
    files : paths by name below the folder, sorted
    """

    def __init__(self, folder: Path, without: Path | None = None) -> None:
        self.folder, skipped = folder, without if without and without != folder else None
        paths = [path for path in _visible(folder) if path.suffix.lower() in IMAGE_SUFFIXES]
        paths = [path for path in paths if not (skipped and path.is_relative_to(skipped))]
        self.files = {path.relative_to(folder).as_posix(): path for path in paths}
        self._ending: dict[str, list[str]] = defaultdict(list)
        for name in self.files:
            parts = folded(name).split("/")
            for k in range(len(parts)):
                self._ending["/".join(parts[k:])].append(name)

    def find(self, given: str) -> str:
        """The file that a label file names: of what it says as much of the path as there is here decides."""
        if given in self.files:
            return given
        text = unquote(given.partition("?d=")[2] or given)  # Label Studio's local files
        parts = [part for part in re.split(r"[\\/]", folded(text)) if part not in ("", ".", "..")]
        for wanted in ("/".join(parts[k:]) for k in range(len(parts))):
            if len(found := self._ending.get(wanted, [])) == 1:
                return found[0]
            if found:
                exact = [name for name in found if folded(name) == folded(given)]
                if len(exact) == 1:
                    return exact[0]
                raise CompanionError(f"{' and '.join(found[:3])} could be meant; give the path below {self.folder}")
        close = difflib.get_close_matches(parts[-1] if parts else "", self._ending, n=1)
        there = f"did you mean {self._ending[close[0]][0]}?" if close else f"{len(self.files)} pictures are there"
        raise CompanionError(f"missing from {self.folder} ({there})")

    def pairs(
        self, labels: Path, suffixes: tuple[str, ...], found: list[str], notes: Notes
    ) -> Iterator[tuple[str, Path | None]]:
        """Names of pictures with the label file of the same name but for the suffix, if any, below the folder `labels`.

        Two of one name are problems, and label files without a picture, unless both lie in one folder, where other
        files are usual. Where no picture has a label file, the folder is the wrong one.
        """
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
        found += [f"{' and '.join(own)} share one name and would share their labels: keep one"
                  for own in names.values() if len(own) > 1]  # fmt: skip
        found += [f"{' and '.join(path.name for path in own)} are two label files of one micrograph: keep one"
                  for own in partners.values() if len(own) > 1]  # fmt: skip
        for key in partners.keys() - names.keys() - {"classes"}:
            said = f"{partners[key][0].name}: there is no image of that name"
            if labels == self.folder:
                notes["passed over"].append(said)
            else:
                found.append(said)
        yield from ((own[0], partners[key][0] if key in partners else None) for key, own in names.items())


def _stem(name: str) -> str:
    return folded(name).rpartition(".")[0]


def _visible(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*"))
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)]  # fmt: skip
