"""The registry: the cache, the mirror, and what goes wrong on the way."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import threading
import time
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from companion import provenance
from companion.micrographs import download, registry
from companion.micrographs.dataset import load_dataset
from companion.errors import CompanionError
from companion.config.profile import load_profile
from companion.config.phantom import Phantom


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "cache"))
    monkeypatch.delenv("COMPANION_DATA_MIRROR", raising=False)
    return tmp_path / "cache"


def small(**changes):
    return load_profile("smoke").model_copy(update={"phantom": Phantom(n_images=2, size_px=64, **changes)})


def test_the_phantom_is_rendered_once_per_set_of_parameters(cache, monkeypatch):
    folder = registry.obtain(small())
    assert len(load_dataset(folder).micrographs) == 2
    before = (folder / "annotations.json").stat().st_mtime_ns
    assert registry.obtain(small()) == folder
    assert (folder / "annotations.json").stat().st_mtime_ns == before
    assert registry.obtain(small(wedge=0.1)) != folder
    assert registry.obtain(small().model_copy(update={"root_seed": 1})) != folder


def test_of_two_processes_that_render_at_once_the_first_stays(cache, monkeypatch):
    from companion.phantom import render

    real, folder = render.render_dataset, None

    def slower(parameters, seed, target):
        nonlocal folder
        monkeypatch.setattr(render, "render_dataset", real)
        folder = registry.obtain(small())  # the other process finishes first
        (folder / "first").touch()
        real(parameters, seed, target)

    monkeypatch.setattr(render, "render_dataset", slower)
    assert registry.obtain(small()) == folder
    assert (folder / "first").exists()
    assert [p.name for p in cache.iterdir()] == [folder.name]


def test_an_interrupted_rendering_leaves_nothing(cache, monkeypatch):
    from companion.phantom import render

    def interrupted(parameters, seed, target):
        (target / "images").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(render, "render_dataset", interrupted)
    with pytest.raises(KeyboardInterrupt):
        registry.obtain(small())
    assert not list(cache.iterdir())


def test_a_full_disk_is_one_clear_error(cache, monkeypatch):
    from companion.phantom import render

    def full(parameters, seed, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(render, "render_dataset", full)
    with pytest.raises(CompanionError, match=r"could not be written: No space left on device"):
        registry.obtain(small())
    assert not list(cache.iterdir())


def test_a_path_is_used_as_it_is_and_downloads_are_never_implicit(cache, tmp_path):
    profile = load_profile("smoke", dataset=str(tmp_path / "mine"))
    assert registry.obtain(profile) == tmp_path / "mine"
    with pytest.raises(CompanionError, match=r"run `companion data fetch loops_316L`"):
        registry.obtain(load_profile("smoke", dataset="loops_316L"))
    with pytest.raises(CompanionError, match=r"did you mean 'loops_316L'"):
        registry.obtain(load_profile("smoke", dataset="loops_316l"))
    with pytest.raises(CompanionError, match=r"did you mean 'fecral'"):
        registry.fetch("fecrals")
    with pytest.raises(CompanionError, match=r"is not downloaded"):
        registry.fetch("phantom")
    assert not cache.exists()


def test_every_entry_states_licence_and_citation():
    assert [entry.name for entry in registry.entries()] == ["phantom", "loops_316L", "fecral"]
    assert all(entry.licence and entry.citation and entry.source for entry in registry.entries())
    assert len(registry._loops_files()) == 17


def _mirror(folder, monkeypatch, contents):
    """A mirror with the given files, registered as a data set named 'made'."""
    for name, content in contents.items():
        (folder / "made" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "made" / name).write_bytes(content)
    files = tuple(
        registry.File(name, f"http://nowhere.invalid/{name}", f"sha256:{hashlib.sha256(content).hexdigest()}")
        for name, content in contents.items()
    )

    def convert(downloads, target):
        for name in contents:
            with provenance.atomic(target / name) as temporary:
                temporary.write_bytes((downloads / name).read_bytes())

    entry = registry.Entry("made", "made", "MIT", "none", "here", lambda: files, convert)
    monkeypatch.setitem(registry._ENTRIES, "made", entry)
    monkeypatch.setenv("COMPANION_DATA_MIRROR", str(folder))


def _contents(tmp_path):
    from test_data import make_dataset

    make_dataset(tmp_path, n=2)
    return {p.relative_to(tmp_path).as_posix(): p.read_bytes() for p in sorted(tmp_path.rglob("*.*")) if p.is_file()}


def test_the_mirror_serves_what_the_network_would(cache, tmp_path, monkeypatch):
    _mirror(tmp_path / "mirror", monkeypatch, _contents(tmp_path / "made"))
    folder = registry.obtain(load_profile("smoke", dataset="made"))
    assert folder == cache / "made" and len(load_dataset(folder).micrographs) == 2
    assert not (cache / ".downloads" / "made").exists()


def test_a_wrong_or_missing_file_of_the_mirror_leaves_no_data_set(cache, tmp_path, monkeypatch):
    _mirror(tmp_path / "mirror", monkeypatch, _contents(tmp_path / "made"))
    wrong = tmp_path / "mirror" / "made" / "images" / "m2.png"
    right = wrong.read_bytes()
    wrong.write_bytes(right[:-1])
    with pytest.raises(CompanionError, match=r"is not the registered file"):
        registry.fetch("made")
    wrong.unlink()
    with pytest.raises(CompanionError, match=r"the mirror .* has no made/images/m2.png"):
        registry.fetch("made")
    assert not (cache / "made").exists()
    wrong.write_bytes(right)
    assert registry.fetch("made") == cache / "made"


# --- over the network: a local server that can misbehave ------------------------------------------------------


class Server:
    """Serves `files` by path, from a byte on where `ranges`; `faults` maps a path to slow, truncated or wrong."""

    def __init__(self):
        self.files, self.faults, self.requested, self.ranges, self.sent = {}, {}, [], True, {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                path = self.path.split("?")[0].lstrip("/")
                outer.requested.append(path)
                fault = outer.faults.get(path)
                if path not in outer.files:
                    return self.send_error(404)
                body = outer.files[path]
                asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
                start = int(asked[1]) if asked and outer.ranges else 0
                if start >= len(body):
                    return self.send_error(416)
                self.send_response(206 if start else 200)
                if start:
                    self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
                body = body[start:]
                outer.sent[path] = len(body)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if fault == "slow":
                    time.sleep(1.0)
                if fault == "wrong":
                    body = bytes(len(body))
                self.wfile.write(body[: len(body) // 2] if fault == "truncated" else body)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(registry, "TIMEOUT_S", 0.3)
    made = Server()
    thread = threading.Thread(target=made.http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.http.shutdown()
    made.http.server_close()
    thread.join()


@pytest.fixture
def served(cache, server, tmp_path, monkeypatch):
    """A registered data set whose files lie on the server."""
    _mirror(tmp_path / "mirror", monkeypatch, _contents(tmp_path / "made"))
    monkeypatch.delenv("COMPANION_DATA_MIRROR")
    entry = registry._ENTRIES["made"]
    files = tuple(registry.File(f.name, f"{server.url}/{f.name}", f.checksum) for f in entry.files())
    monkeypatch.setitem(registry._ENTRIES, "made", replace(entry, files=lambda: files))
    server.files = {f.name: (tmp_path / "mirror" / "made" / f.name).read_bytes() for f in files}
    return server


def test_a_data_set_is_fetched_over_the_network_once(cache, served):
    assert registry.fetch("made") == cache / "made"
    assert len(load_dataset(cache / "made").micrographs) == 2
    assert sorted(served.requested) == sorted(served.files)
    registry.fetch("made")
    assert len(served.requested) == len(served.files)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("slow", r"could not be downloaded: .*timed out"),
        ("truncated", r"could not be downloaded: .*IncompleteRead"),
        ("wrong", r"is not the registered file"),
        ("missing", r"could not be downloaded: 404"),
    ],
)
def test_what_goes_wrong_is_said_and_the_next_try_continues(cache, served, fault, message):
    broken = "images/m2.png"
    kept = served.files[broken]
    if fault == "missing":
        del served.files[broken]
    served.faults[broken] = fault
    with pytest.raises(CompanionError, match=message):
        registry.fetch("made")
    assert not (cache / "made").exists()
    files = [p.name for p in (cache / ".downloads" / "made").rglob("*") if p.is_file()]
    assert ("m2.png.part" in files) == (fault in ("slow", "truncated"))  # what has arrived of it
    arrived = [name for name in files if name != "m2.png.part"]
    assert arrived and "m2.png" not in arrived and not [name for name in arrived if name.startswith("tmp")]
    served.faults.clear()
    served.files[broken] = kept
    before = len(served.requested)
    assert registry.fetch("made") == cache / "made"
    again = served.requested[before:]
    assert broken in again and len(again) == len(served.files) - len(arrived)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_cut_midway_is_continued_where_the_server_can(cache, served, ranges, monkeypatch):
    monkeypatch.setattr(download, "CHUNK", 256)
    broken = "images/m2.png"
    whole = len(served.files[broken])
    served.faults[broken], served.ranges = "truncated", ranges
    with pytest.raises(CompanionError, match=r"IncompleteRead.*What has arrived is kept"):
        registry.fetch("made")
    part = cache / ".downloads" / "made" / f"{broken}.part"
    arrived = part.stat().st_size
    assert arrived == whole // 2 // 256 * 256 > 0
    served.faults.clear()
    assert registry.fetch("made") == cache / "made"
    assert served.sent[broken] == (whole - arrived if ranges else whole)
    assert (cache / "made" / broken).read_bytes() == served.files[broken]


@pytest.mark.parametrize("kept", ["half", "longer"])
def test_a_part_that_is_not_of_this_file_is_downloaded_again(cache, served, kept):
    broken = "images/m2.png"
    whole = len(served.files[broken])
    part = cache / ".downloads" / "made" / f"{broken}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(bytes(whole // 2 if kept == "half" else whole + 5))
    assert registry.fetch("made") == cache / "made"
    assert served.requested.count(broken) == 2 and served.sent[broken] == whole
    assert (cache / "made" / broken).read_bytes() == served.files[broken]


def test_no_network_is_one_clear_error(cache, served):
    served.http.server_close()
    served.http.shutdown()
    with pytest.raises(CompanionError, match=r"could not be downloaded.*COMPANION_DATA_MIRROR"):
        registry.fetch("made")
    assert not (cache / "made").exists()


def test_fecral_reads_the_file_list_of_its_record(cache, server, tmp_path, monkeypatch):
    from test_data import make_dataset

    make_dataset(tmp_path / "set", n=2)
    archive = shutil.make_archive(str(tmp_path / "data"), "zip", tmp_path / "set")
    body = (tmp_path / "data.zip").read_bytes()
    listing = [{"name": "data.zip", "download_url": f"{server.url}/f/1", "computed_md5": hashlib.md5(body).hexdigest()}]
    server.files = {"files": json.dumps(listing).encode(), "f/1": body}
    monkeypatch.setattr(registry, "FIGSHARE", f"{server.url}/files")
    folder = registry.fetch("fecral")
    dataset = load_dataset(folder)
    assert dataset.name == "fecral" and len(dataset.micrographs) == 2 and dataset.classes == ("loop", "dot")
    assert "figshare" in dataset.card["citation"] and archive
    for answer, message in ((b"[1]", r"did not answer with a list"), (b"<html>", r"could not be read")):
        shutil.rmtree(folder, ignore_errors=True)
        server.files["files"] = answer
        with pytest.raises(CompanionError, match=message):
            registry.fetch("fecral")
    assert not folder.exists()


def test_a_record_laid_out_otherwise_stays_for_the_importer(cache, server, monkeypatch):
    body = b"just text"
    listing = [{"name": "read.me", "download_url": f"{server.url}/f", "computed_md5": hashlib.md5(body).hexdigest()}]
    server.files = {"files": json.dumps(listing).encode(), "f": body}
    monkeypatch.setattr(registry, "FIGSHARE", f"{server.url}/files")
    with pytest.raises(CompanionError, match=r"holds 0 COCO files .* `companion data import"):
        registry.fetch("fecral")
    assert (cache / ".downloads" / "fecral" / "read.me").read_bytes() == body
    assert not (cache / "fecral").exists()
