"""The registry: the cache, the mirror, and what goes wrong on the way."""

import hashlib
import shutil

import pooch
import pytest
from test_micrographs import make_dataset

from companion.config.phantom import Phantom
from companion.errors import CompanionError
from companion.micrographs import registry
from companion.micrographs.dataset import load_dataset

SMALL = Phantom(n_images=2, size_px=64)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "cache"))
    monkeypatch.delenv("COMPANION_DATA_MIRROR", raising=False)
    return tmp_path / "cache"


def test_the_phantom_is_rendered_whole_and_once_per_settings_and_root_seed(cache, monkeypatch):
    folder = registry.obtain("phantom", SMALL, 1)
    assert len(load_dataset(folder).micrographs) == 2
    (folder / "mark").touch()
    assert registry.obtain("phantom", SMALL, 1) == folder and (folder / "mark").exists()
    assert registry.obtain("phantom", Phantom(n_images=2, size_px=64, wedge=0.1), 1) != folder
    assert registry.obtain("phantom", SMALL, 2) != folder
    before = set(cache.iterdir())

    def stopped(phantom, seed, target):
        (target / "images").mkdir(parents=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "render_dataset", stopped)
    with pytest.raises(KeyboardInterrupt):
        registry.obtain("phantom", SMALL, 3)
    assert set(cache.iterdir()) == before


def test_a_path_is_used_as_it_is_and_downloads_are_never_implicit(cache, tmp_path):
    assert registry.obtain(str(tmp_path / "mine"), SMALL, 1) == tmp_path / "mine"
    for call, message in (
        (lambda: registry.obtain("loops_316L", SMALL, 1), r"run `companion data fetch loops_316L`"),
        (lambda: registry.obtain("loops_316l", SMALL, 1), r"did you mean 'loops_316L'"),
        (lambda: registry.fetch("fecrals"), r"did you mean 'fecral'"),
        (lambda: registry.fetch("phantom"), r"'phantom' is not one to download"),
    ):
        with pytest.raises(CompanionError, match=message):
            call()
    assert not cache.exists()


def test_every_entry_states_licence_and_citation(tmp_path):
    assert list(registry.entries()) == ["phantom", "loops_316L", "fecral"]
    assert all(entry["licence"] and entry["citation"] and entry["source"] for entry in registry.entries().values())
    files = registry._files("loops_316L", tmp_path)
    assert len(files.registry) == 17 and all(checksum.startswith("sha256:") for checksum in files.registry.values())
    assert all("19e9c46d731e525fd80270d9bb602a6e94e92e70" in url for url in files.urls.values())


@pytest.fixture
def made(cache, tmp_path, monkeypatch):
    """A registered data set 'made', whose files lie in this folder; its network does not exist."""
    source = tmp_path / "source" / "made"
    source.mkdir(parents=True)
    make_dataset(source, n=2)
    names = ["annotations.json", "images/m1.png", "images/m2.png"]
    checksums = {name: f"md5:{hashlib.md5((source / name).read_bytes()).hexdigest()}" for name in names}

    files = pooch.create(cache / ".downloads" / "made", "http://127.0.0.1:9/", registry=checksums)
    monkeypatch.setattr(registry, "_files", lambda *_: files)
    monkeypatch.setitem(registry._FETCHED, "made", lambda here, to, card: shutil.copytree(here, to))
    known = {**registry.entries(), "made": {"licence": "MIT"}}
    monkeypatch.setattr(registry, "entries", lambda: known)
    return source


def test_the_mirror_serves_what_the_network_would_and_nothing_else(cache, made, monkeypatch):
    with pytest.raises(CompanionError, match=r"from the network: .*set COMPANION_DATA_MIRROR"):
        registry.fetch("made")  # nobody answers
    monkeypatch.setenv("COMPANION_DATA_MIRROR", str(made.parent))
    wrong = made / "images" / "m2.png"
    right = wrong.read_bytes()
    wrong.write_bytes(right[:-1])
    with pytest.raises(CompanionError, match=r"(?s)made: a file could not be had from the mirror .*m2.png.*known hash"):
        registry.fetch("made")
    wrong.unlink()
    with pytest.raises(CompanionError, match=r"mirror .*No such file or directory: .*made/images/m2.png"):
        registry.fetch("made")
    assert not (cache / "made").exists() and (cache / ".downloads" / "made" / "images" / "m1.png").is_file()
    wrong.write_bytes(right)
    assert registry.obtain("made", SMALL, 1) == cache / "made"
    assert len(load_dataset(cache / "made").micrographs) == 2
    assert not (cache / ".downloads" / "made").exists()


def test_fecral_is_imported_from_the_files_of_its_record(cache, tmp_path, monkeypatch):
    make_dataset(tmp_path / "set", n=2)
    mirror = tmp_path / "mirror"
    monkeypatch.setenv("COMPANION_DATA_MIRROR", str(mirror))
    with pytest.raises(CompanionError, match=r"fecral: a file could not be had .*No such file"):
        registry.fetch("fecral")
    (mirror / "fecral").mkdir(parents=True)
    (mirror / "fecral" / "read.me").write_text("just text")
    with pytest.raises(CompanionError, match=r"holds 0 JSON files .* `companion data import"):
        registry.fetch("fecral")
    assert (cache / ".downloads" / "fecral" / "read.me").read_text() == "just text" and not (cache / "fecral").exists()
    shutil.make_archive(str(mirror / "fecral" / "data"), "zip", tmp_path / "set")
    dataset = load_dataset(registry.fetch("fecral"))
    assert dataset.name == "fecral" and len(dataset.micrographs) == 2 and dataset.classes == ("loop", "dot")
    assert "figshare" in dataset.card["citation"]
