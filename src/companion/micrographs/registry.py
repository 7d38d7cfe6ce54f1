"""Data sets by name: rendered here, or downloaded when asked for, with licence, citation and checksums.

Downloads go to ``.downloads/<name>`` in the data cache, file by file, each there only when its checksum is right. The
data set appears when it is whole.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pooch
import yaml

from companion import layout
from companion.config.phantom import Phantom
from companion.errors import CompanionError, nearest
from companion.micrographs.coco import read_coco
from companion.micrographs.dataset import ANNOTATIONS
from companion.micrographs.importers import fitting_size, import_dataset
from companion.phantom.render import render_dataset
from companion.provenance import code_hashes, hash_value, write_json

RECORD = "doi:10.6084/m9.figshare.27281400/"
# nm per px at a width of 1024 px, by the magnification in the file name (the paper's microscope).
MAGNIFICATIONS = {"70kx": 0.8805, "100kx": 0.8691, "300kx": 0.4785, "500kx": 0.2832}


def entries() -> dict[str, dict[str, str]]:
    """Title, licence, citation and source of every registered data set, by name."""
    return yaml.safe_load(Path(__file__).with_name("registry.yaml").read_text(encoding="utf-8"))


def obtain(dataset: str, phantom: Phantom, root_seed: int) -> Path:
    """Folder of a data set, by its registered name or its path; downloads nothing.

    The phantom is rendered once per settings, `root_seed` and code; a registered set that is not in the cache is made
    from ``COMPANION_DATA_MIRROR`` when that is set.
    """
    if dataset == "phantom":
        return _rendered(phantom, root_seed)
    if dataset not in _FETCHED and len(Path(dataset).parts) == 1 and not Path(dataset).is_dir():
        known = nearest(dataset, ["phantom", *_FETCHED])
        raise CompanionError(f"dataset '{dataset}': {known} (or give the path of a folder)")
    if dataset not in _FETCHED:
        return Path(dataset)
    if not (layout.data_cache() / dataset / ANNOTATIONS).is_file() and layout.data_mirror() is None:
        raise CompanionError(
            f"data set {dataset} is not in {layout.data_cache()}: run `companion data fetch {dataset}`"
        )
    return fetch(dataset)


def _rendered(phantom: Phantom, root_seed: int) -> Path:
    """The phantom's folder as it is, or made; of several processes that make it at once the first one's stays."""
    code = code_hashes("from companion.phantom import render")
    code = {k: v for k, v in code.items() if k.startswith("companion/phantom/") or k.endswith("geometry.py")}
    cache, name = layout.data_cache(), hash_value([phantom.model_dump(mode="json"), root_seed, code])[:12]
    folder = cache / f"phantom-{name}"
    if not (folder / ANNOTATIONS).is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".phantom-") as scratch:
            render_dataset(phantom, root_seed, Path(scratch) / "made")
            with contextlib.suppress(OSError):  # another process was first
                (Path(scratch) / "made").rename(folder)
    return folder


def fetch(name: str) -> Path:
    """Download a registered data set (from ``COMPANION_DATA_MIRROR`` if set) and convert it; its folder in the cache.

    Where a file cannot be had, whole ones stay for the next try; there is no partial data set.
    """
    if name not in _FETCHED:
        raise CompanionError(f"data set '{name}' is not one to download: {nearest(name, _FETCHED)}")
    folder, mirror = layout.data_cache() / name, layout.data_mirror()
    if (folder / ANNOTATIONS).is_file():
        return folder
    downloads, place = layout.data_cache() / ".downloads" / name, f"mirror {mirror}" if mirror else "network"
    try:
        files = _files(name, downloads)
        for file in files.registry:
            if mirror:
                files.urls[file] = str(mirror / name / file)
            files.fetch(file, downloader=(lambda source, to, _: shutil.copyfile(source, to)) if mirror else None)
    except (OSError, ValueError) as error:  # those of requests are OSErrors, a wrong checksum is a ValueError
        raise CompanionError(
            f"{name}: a file could not be had from the {place}: {error}. Files that are whole are kept in {downloads}; "
            f"run `companion data fetch {name}` again, or set COMPANION_DATA_MIRROR to a folder that holds {name}/"
        ) from None
    _FETCHED[name](downloads, folder, {"name": name, **entries()[name], "simulated": False})
    shutil.rmtree(downloads)
    return folder


def _files(name: str, downloads: Path) -> pooch.Pooch:
    """What is downloaded: the files of the list beside this module, else those of the record; of a mirror all there."""
    files, listed = pooch.create(path=downloads, base_url=RECORD), Path(__file__).with_name(f"{name}.txt")
    if listed.is_file():
        files.load_registry(listed)
    elif (mirror := layout.data_mirror()) is None:
        files.load_registry_from_doi()
    else:
        files.registry = {path.name: None for path in sorted((mirror / name).iterdir()) if path.is_file()}
    return files


def _import_loops(downloads: Path, folder: Path, card: dict[str, Any]) -> None:
    """What was published lacks the pixel size: the field of view is 200 nm over 512 px."""
    import_dataset("coco", downloads / "images", downloads / ANNOTATIONS, None, 200 / 512, folder, card=card)


def _import_fecral(downloads: Path, folder: Path, card: dict[str, Any]) -> None:
    """Where the record holds one COCO file and the images that it names; else it stays for `companion data import`."""
    for archive in sorted(downloads.rglob("*.zip")):
        shutil.unpack_archive(archive, archive.with_suffix(""))
    paths = sorted(downloads.rglob("*.json"))
    if len(paths) != 1:
        raise CompanionError(
            f"{downloads} holds {len(paths)} JSON files ({', '.join(path.name for path in paths)}); one was expected. "
            "The files are there: use `companion data import --format coco` on the one you want"
        )
    document = read_coco(paths[0])
    for image in document["images"]:
        with contextlib.suppress(CompanionError):
            size = fitting_size(image["file_name"], MAGNIFICATIONS) * 1024 / image.get("width", 1024)
            image.setdefault("pixel_size_nm", size)
    write_json(paths[0], document)
    import_dataset("coco", downloads, paths[0], None, None, folder, card=card)


_FETCHED = {"loops_316L": _import_loops, "fecral": _import_fecral}
