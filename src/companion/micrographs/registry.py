"""Data sets by name: rendered here, or downloaded when asked for, with licence, citation and checksums.

Downloads go to ``.downloads/<name>`` in the data cache, file by file, each there only when its checksum is right. The
data set appears when it is whole.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import pooch
import yaml

from companion import layout
from companion.config.phantom import Phantom
from companion.errors import CompanionError, nearest
from companion.micrographs.dataset import ANNOTATIONS, load_dataset, read_coco
from companion.micrographs.importers import import_record
from companion.phantom.render import render_dataset
from companion.provenance import code_hashes, hash_value, write_json

RECORD = "doi:10.6084/m9.figshare.27281400/"


@dataclass(frozen=True)
class Entry:
    """What ``registry.yaml`` says of a data set."""

    name: str
    title: str
    licence: str
    citation: str
    source: str


def entries() -> tuple[Entry, ...]:
    """Every registered data set."""
    rows = yaml.safe_load(Path(__file__).with_name("registry.yaml").read_text(encoding="utf-8"))
    return tuple(Entry(name, **row) for name, row in rows.items())


def obtain(dataset: str, phantom: Phantom, root_seed: int) -> Path:
    """Folder of a data set; renders the phantom once per settings, root seed and code, downloads nothing.

    A registered set that is not in the cache is made from ``COMPANION_DATA_MIRROR`` when that is set.

    Parameters
    ----------
    dataset : registered name, or path of a data set folder
    phantom, root_seed : what the phantom is rendered with; other data do not look at them

    Raises
    ------
    CompanionError
        The data set is unknown or has not been fetched.
    """
    if dataset == "phantom":
        code = code_hashes("from companion.phantom import render")
        code = {k: v for k, v in code.items() if k.startswith("companion/phantom/") or k.endswith("geometry.py")}
        name = hash_value([phantom.model_dump(mode="json"), root_seed, code])[:12]
        folder = layout.data_cache() / f"phantom-{name}"
        return _once(folder, lambda made: render_dataset(phantom, root_seed, made))
    if dataset not in _FETCHED:
        if len(Path(dataset).parts) == 1 and not Path(dataset).is_dir():
            known = nearest(dataset, ["phantom", *_FETCHED])
            raise CompanionError(f"dataset '{dataset}': {known} (or give the path of a folder)")
        return Path(dataset)
    if not (layout.data_cache() / dataset / ANNOTATIONS).is_file() and layout.data_mirror() is None:
        raise CompanionError(
            f"data set {dataset} has not been downloaded to {layout.data_cache()}: run `companion data fetch {dataset}`"
            ", or set COMPANION_DATA_MIRROR to a folder that holds it"
        )
    return fetch(dataset)


def fetch(name: str) -> Path:
    """Download a registered data set (from ``COMPANION_DATA_MIRROR`` if set) and convert it to the one format.

    Returns
    -------
    its folder in the data cache

    Raises
    ------
    CompanionError
        Unknown name, no network, a file that is not there or of another checksum, a full disk. Whole files stay for
        the next try; there is no partial data set.
    """
    if name not in _FETCHED:
        raise CompanionError(f"data set '{name}' is not one to download: {nearest(name, _FETCHED)}")
    (list_files, convert), folder, mirror = _FETCHED[name], layout.data_cache() / name, layout.data_mirror()
    if (folder / ANNOTATIONS).is_file():
        return folder
    downloads, place = layout.data_cache() / ".downloads" / name, f"mirror {mirror}" if mirror else "network"
    try:
        files = list_files(downloads)
        for file in files.registry:
            if mirror:
                files.urls[file] = str(mirror / name / file)
            files.fetch(file, downloader=_copy if mirror else None)
    except (OSError, ValueError) as error:  # those of requests are OSErrors, a wrong checksum is a ValueError
        raise CompanionError(
            f"{name}: a file could not be had from the {place}: {error}. Files that are whole are kept in {downloads}; "
            f"run `companion data fetch {name}` again, or set COMPANION_DATA_MIRROR to a folder that holds {name}/"
        ) from None
    card = {**asdict(next(entry for entry in entries() if entry.name == name)), "simulated": False}
    made = _once(folder, lambda target: convert(downloads, target, card))
    shutil.rmtree(downloads, ignore_errors=True)
    return made


def _copy(source: str, target: str, _pooch: object) -> None:
    """What pooch calls instead of a download from a mirror; it checks the copy as it checks a download."""
    shutil.copyfile(source, target)


def _once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder` as it is, or made whole; of several processes that make it at once the first one's stays."""
    if (folder / ANNOTATIONS).is_file():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as scratch:
            made = Path(scratch) / folder.name
            make(made)
            load_dataset(made)
            try:
                made.rename(folder)
            except OSError:
                if not (folder / ANNOTATIONS).is_file():
                    raise
    except OSError as error:
        raise CompanionError(f"{folder} could not be written: {error.strerror or error}") from None
    return folder


def _loops_files(downloads: Path) -> pooch.Pooch:
    files = pooch.create(path=downloads, base_url="")
    files.load_registry(Path(__file__).with_name("loops_316L.txt"))
    return files


def _convert_loops(downloads: Path, folder: Path, card: dict) -> None:
    """Adds what the published annotations lack: the pixel size (field of view 200 nm over 512 px) and a card."""
    document = read_coco(downloads / ANNOTATIONS)
    document["images"] = [{**image, "pixel_size_nm": 200 / 512} for image in document["images"]]
    document["info"]["dataset_card"] = card
    shutil.copytree(downloads / "images", folder / "images")
    write_json(folder / ANNOTATIONS, document)


def _fecral_files(downloads: Path) -> pooch.Pooch:
    """The record's own list of files, read when the data set is fetched; of a mirror all that is there."""
    files = pooch.create(path=downloads, base_url=RECORD)
    if (mirror := layout.data_mirror()) is None:
        files.load_registry_from_doi()
    elif not (mirror / "fecral").is_dir():
        raise CompanionError(f"fecral: the mirror {mirror} has no folder fecral with the files of the record")
    else:
        files.registry = {path.name: None for path in sorted((mirror / "fecral").iterdir()) if path.is_file()}
    return files


_FETCHED = {"loops_316L": (_loops_files, _convert_loops), "fecral": (_fecral_files, import_record)}
