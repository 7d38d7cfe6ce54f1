"""Data sets by name: rendered here, or downloaded when asked for, with licence, citation and checksums.

Downloads go to ``.downloads/<name>`` in the data cache, file by file, each there only when its checksum is right. An
interrupted download continues where it stopped, within a file where the server can. The data set appears when it is
whole.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from companion import paths, provenance
from companion.micrographs.dataset import ANNOTATIONS, load_dataset
from companion.micrographs.download import TIMEOUT_S, download, is_file
from companion.errors import CompanionError, nearest
from companion.config.profile import Profile

HASHES = ".hashes.json"  # of a rendered data set: one that is damaged is rendered again
_CREME = (
    "https://raw.githubusercontent.com/ai-atoms/creme/19e9c46d731e525fd80270d9bb602a6e94e92e70/data/ds25s/fov200nm/"
)
FIGSHARE = "https://api.figshare.com/v2/articles/27281400/files"


@dataclass(frozen=True)
class File:
    """One file of a download: its name here, address, and checksum as ``algorithm:hexadecimal``."""

    name: str
    url: str
    checksum: str


@dataclass(frozen=True)
class Entry:
    """A data set of the registry. `files` lists what to download; `convert` turns that into the one format."""

    name: str
    title: str
    licence: str
    citation: str
    source: str
    files: Callable[[], tuple[File, ...]] | None = None
    convert: Callable[[Path, Path], None] | None = None


_LOOPS_IMAGES = {
    1: "6a983e62f51bd8ea03f53349a64b492698a27f395f696c02e4e6f0cff8f3b586",
    2: "82b54df167ff1bdef0ed1baab909740b70202410098a42a5c94c00bd74948c84",
    3: "c6a41c77666fe95bfc1367d79591ecd0b2a1c2519d1da11a5c495c9839b4f110",
    4: "10bfe928b7ca673a79b43d173acfd9e23feeddc5af6acb68b48aba13ed8f3efd",
    5: "c6395af24d859b42a396794b63c536b5526c010f3547078d48bf8dcad0f6c2e2",
    6: "7cf924f7ece563e7bea1523bf23062b6b0a154a6e6fd05512c6e553c8fe130d0",
    7: "a2916403cbc90294adcb59d5802c5c3b7e78f08bae596eedb7dc4293d1566a72",
    8: "fce7293f111931d9c3c1c8482a891c42f2dd66eb871965de13b9ed073f78c596",
    9: "a926f89b420c52986fd281febadb82b92edb037c8082963cbaa901fcc8822d5b",
    10: "30dc92cbe2a21e0368584a4e44dbe8b2268528e21745f7e222529008a6ccce3b",
    11: "165fc2376f5f09e6988237908af3d0095585bfdcb178788444a2d2dc42ce8e07",
    12: "99195bca4276110d61d6dfbf31e95fe9d3e93ce010cf45926180be3c1830ecdd",
    13: "b83ba067ce4f53d8432d1085a041ddc4eae347b8ba37c8f49dca27ea684b255a",
    14: "b3b73f4b607b75dd0f9649968e19f2f0000d9bfad218c42a106f9a6aab22fc62",
    15: "7a18c9896e114cc258c8ed2afb56c4d6a7de04f65af2209e151000d9430f1462",
    16: "a2cbd1b3d4b316028085e4c820566faf0229f5f22579c822486fb92438a1126c",
}
_LOOPS_ANNOTATIONS = "e0e92d52ec5efae36679bfd8dfcd301fbae13fefdec8f04f1cab4710dea5ee4f"


def entries() -> tuple[Entry, ...]:
    """Every registered data set."""
    return tuple(_ENTRIES.values())


def obtain(profile: Profile) -> Path:
    """Folder of a profile's data set; renders the phantom, downloads nothing.

    A registered set that is not in the cache is made from ``COMPANION_DATA_MIRROR`` when that is set.

    Raises
    ------
    CompanionError
        The data set is unknown or has not been fetched.
    """
    given = Path(profile.dataset)
    if profile.dataset == "phantom":
        return _phantom(profile)
    if profile.dataset not in _ENTRIES:
        if len(given.parts) == 1 and not given.is_dir():
            raise CompanionError(
                f"dataset '{profile.dataset}': {nearest(profile.dataset, _ENTRIES)} (or give the path of a folder)"
            )
        return given
    folder = paths.data_cache() / profile.dataset
    if (folder / ANNOTATIONS).is_file():
        return folder
    if paths.data_mirror() is None:
        raise CompanionError(
            f"data set {profile.dataset} has not been downloaded to {folder}: run `companion data fetch "
            f"{profile.dataset}`, or set COMPANION_DATA_MIRROR to a folder that holds it"
        )
    return fetch(profile.dataset)


def fetch(name: str) -> Path:
    """Download a registered data set (from ``COMPANION_DATA_MIRROR`` if set) and convert it to the one format.

    Returns
    -------
    its folder in the data cache

    Raises
    ------
    CompanionError
        Unknown name, no network, a file that is not there, cut short or of another checksum, a full disk. What
        has arrived stays for the next try; there is no partial data set.
    """
    if name not in _ENTRIES:
        raise CompanionError(f"data set '{name}': {nearest(name, _ENTRIES)}")
    entry, folder = _ENTRIES[name], paths.data_cache() / name
    if entry.files is None or entry.convert is None:
        raise CompanionError(f"data set {name} is not downloaded: {entry.source}")
    if (folder / ANNOTATIONS).is_file():
        return folder
    downloads, convert = paths.data_cache() / ".downloads" / name, entry.convert
    try:
        for file in entry.files():
            _download(entry, file, downloads)
    except OSError as error:
        raise CompanionError(f"{name}: {downloads} could not be written: {error.strerror or error}") from None
    made = _once(folder, lambda temporary: convert(downloads, temporary))
    shutil.rmtree(downloads, ignore_errors=True)
    return made


def _phantom(profile: Profile) -> Path:
    from companion.phantom.difficulty import difficulty
    from companion.phantom.render import render_dataset

    code = provenance.code_hashes("companion.phantom.render")
    code = {k: v for k, v in code.items() if k.startswith("companion/phantom/") or k.endswith("geometry.py")}
    stated = difficulty(profile.phantom)  # on the card: once measured, it is rendered with it
    key = provenance.hash_value([profile.phantom.model_dump(mode="json"), profile.root_seed, code, stated])[:12]
    folder = paths.data_cache() / f"phantom-{key}"

    def render(temporary: Path) -> None:
        render_dataset(profile.phantom, profile.root_seed, temporary)
        provenance.write_json(temporary / HASHES, provenance.artifact_hashes(temporary))

    if folder.is_dir() and not _as_rendered(folder):
        shutil.rmtree(folder)
    return _once(folder, render)


def _as_rendered(folder: Path) -> bool:
    try:
        return json.loads((folder / HASHES).read_text(encoding="utf-8")) == provenance.artifact_hashes(folder)
    except (OSError, ValueError):
        return False


def _once(folder: Path, make: Callable[[Path], None]) -> Path:
    """`folder` as it is, or made whole; of several processes that make it at once the first one's stays."""
    if (folder / ANNOTATIONS).is_file():
        return folder
    own = folder.with_name(f".{folder.name}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
    try:
        with provenance.atomic_folder(own) as temporary:
            make(temporary)
            load_dataset(temporary)
        try:
            own.rename(folder)
        except OSError:
            if not (folder / ANNOTATIONS).is_file():
                raise
    except OSError as error:
        raise CompanionError(f"{folder} could not be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(own, ignore_errors=True)
    return folder


def _download(entry: Entry, file: File, folder: Path) -> None:
    target = folder / file.name
    if is_file(target, file.checksum):
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    mirror = paths.data_mirror()
    if mirror is not None:
        source = mirror / entry.name / file.name
        if not source.is_file():
            raise CompanionError(f"{entry.name}: the mirror {mirror} has no {entry.name}/{file.name}")
        if not is_file(source, file.checksum):
            raise CompanionError(f"{entry.name}: {source} is not the registered file ({file.checksum})")
        with provenance.atomic(target) as temporary:
            shutil.copyfile(source, temporary)
        return
    from requests import RequestException
    from urllib3.exceptions import HTTPError

    try:
        download(file.url, file.checksum, target, TIMEOUT_S)
    except CompanionError as error:
        raise CompanionError(f"{entry.name}: {error}") from None
    except (RequestException, HTTPError) as error:
        raise CompanionError(
            f"{entry.name}: {file.url} could not be downloaded: {error}. What has arrived is kept; run "
            f"`companion data fetch {entry.name}` again, or set COMPANION_DATA_MIRROR to a folder that holds the files"
        ) from None


# --- loops_316L ---------------------------------------------------------------------------------------------


def _loops_files() -> tuple[File, ...]:
    images = [File(f"images/{n}.png", f"{_CREME}imgs/{n}.png", f"sha256:{h}") for n, h in _LOOPS_IMAGES.items()]
    return (*images, File(ANNOTATIONS, f"{_CREME}clean.json", f"sha256:{_LOOPS_ANNOTATIONS}"))


def _convert_loops(downloads: Path, folder: Path) -> None:
    """Adds what the published annotations lack: the pixel size (field of view 200 nm over 512 px) and a card."""
    document = json.loads((downloads / ANNOTATIONS).read_text(encoding="utf-8"))
    document["images"] = [{**image, "pixel_size_nm": 200 / 512} for image in document["images"]]
    document["info"]["dataset_card"] = _card("loops_316L")
    shutil.copytree(downloads / "images", folder / "images", dirs_exist_ok=True)
    provenance.write_json(folder / ANNOTATIONS, document)


# --- fecral -------------------------------------------------------------------------------------------------


def _fecral_files() -> tuple[File, ...]:
    """The record's own list of files, read when the data set is fetched."""
    import requests

    if (mirror := paths.data_mirror()) is not None:
        listing = mirror / "fecral" / "files.json"
        if not listing.is_file():
            raise CompanionError(f"fecral: the mirror {mirror} has no fecral/files.json (the record's file list)")
        record = json.loads(listing.read_text(encoding="utf-8"))
    else:
        try:
            answer = requests.get(FIGSHARE, params={"page_size": 1000}, timeout=TIMEOUT_S)
            answer.raise_for_status()
            record = answer.json()
        except (requests.RequestException, ValueError) as error:
            raise CompanionError(f"fecral: the file list at {FIGSHARE} could not be read: {error}") from None
    try:
        return tuple(File(Path(f["name"]).name, f["download_url"], f"md5:{f['computed_md5']}") for f in record)
    except (KeyError, TypeError):
        raise CompanionError(f"fecral: {FIGSHARE} did not answer with a list of files: {str(record)[:200]}") from None


def _convert_fecral(downloads: Path, folder: Path) -> None:
    """Unpacks the archives and imports the one COCO file among them."""
    from companion.micrographs.importers import import_record

    import_record(downloads, folder, _card("fecral"))


def _card(name: str) -> dict[str, Any]:
    entry = _ENTRIES[name]
    return {"name": entry.name, "title": entry.title, "source": entry.source, "licence": entry.licence,
            "citation": entry.citation, "simulated": False}  # fmt: skip


_ENTRIES = {
    entry.name: entry
    for entry in (
        Entry(
            "phantom",
            title="Simulated FeCrAl STEM bright-field micrographs with exact truth",
            licence="CC-BY-4.0",
            citation="this companion",
            source="rendered by companion.phantom whenever it is needed",
        ),
        Entry(
            "loops_316L",
            title="Dislocation loops in irradiated 316L steel, in-situ TEM bright field, 16 micrographs",
            licence="MIT",
            citation="C. A. F. Salvador, T. Bylik, M.-C. Marinica, High-throughput analysis of dislocation loops in "
            "irradiated metals using Mask R-CNN, Micron (2025)",
            source="https://github.com/ai-atoms/creme, data/ds25s/fov200nm at commit 19e9c46d731e",
            files=_loops_files,
            convert=_convert_loops,
        ),
        Entry(
            "fecral",
            title="STEM bright-field micrographs of irradiated FeCrAl: the paper's data",
            licence="see the record",
            citation="doi:10.6084/m9.figshare.27281400",
            source="https://doi.org/10.6084/m9.figshare.27281400",
            files=_fecral_files,
            convert=_convert_fecral,
        ),
    )
}
