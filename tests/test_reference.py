"""Bundles: what is refused, what is installed; and the committed reference against the code that reads it."""

from __future__ import annotations

import io
import json
import os
import shutil
import tempfile
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest

from companion import provenance, reference, stages
from companion.book import told_stale
from companion.errors import CompanionError
from companion.config.profile import load_profile

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project folder in which bundles can be installed."""
    for name in ("profiles", "notebooks"):
        shutil.copytree(ROOT / name, tmp_path / "project" / name)
    monkeypatch.setenv("COMPANION_ROOT", str(tmp_path / "project"))
    monkeypatch.delenv("COMPANION_RUNS", raising=False)
    return tmp_path / "project"


@pytest.fixture
def packed(root: Path, tmp_path: Path) -> Path:
    """A bundle of two files."""
    folder = tmp_path / "bundle"
    provenance.write_json(folder / "split-1" / "micrographs" / "stamp.json", {"outputs": {}})
    provenance.write_array(folder / "split-1" / "n-10" / "EXP+GEN" / "small.npy", np.arange(3))
    write_manifest(folder)
    return folder


def write_manifest(folder: Path, **changed: object) -> None:
    files = {p.relative_to(folder).as_posix(): provenance.hash_file(p) for p in reference._regular_files(folder)}
    content = {"profile": "smoke", "dataset": "phantom", "splits": [1], "files": files}
    provenance.write_json(folder / "manifest.json", {**content, **changed})


def test_a_whole_bundle_is_installed_as_it_is_and_replaces_an_older_one(packed: Path, root: Path) -> None:
    for _ in range(2):
        target = reference.unbundle(packed)
        assert target == root / "results" / "reference" / "smoke" / "phantom"
        assert {p.relative_to(target).as_posix(): p.read_bytes() for p in target.rglob("*") if p.is_file()} == {
            p.relative_to(packed).as_posix(): p.read_bytes() for p in packed.rglob("*") if p.is_file()
        }
        (packed / "split-1" / "micrographs" / "stamp.json").write_text('{"outputs": {"a": "b"}}')
        write_manifest(packed)
    assert reference.find().folder == target and reference.find().profile.name == "smoke"


def flip(folder: Path) -> None:
    path = folder / "split-1" / "micrographs" / "stamp.json"
    path.write_bytes(path.read_bytes().replace(b"outputs", b"inputs_"))


def link(folder: Path) -> None:
    (folder / "split-1" / "link.json").symlink_to("/etc/hostname")


def link_in_place(folder: Path) -> None:
    path = folder / "split-1" / "micrographs" / "stamp.json"
    shutil.move(path, folder.parent / "elsewhere.json")
    path.symlink_to(folder.parent / "elsewhere.json")


def linked_folder(folder: Path) -> None:
    shutil.move(folder / "split-1", folder.parent / "elsewhere")
    (folder / "split-1").symlink_to(folder.parent / "elsewhere")


def pickled(folder: Path) -> None:
    np.save(folder / "split-1" / "n.npy", np.array([{}], dtype=object), allow_pickle=True)
    write_manifest(folder)


def listed(name: str):
    def change(folder: Path) -> None:
        provenance.write_json(folder / "manifest.json", {
            "profile": "smoke", "dataset": "phantom", "splits": [1], "files": {name: "0" * 64},
        })  # fmt: skip

    return change


def extra(name: str):
    def change(folder: Path) -> None:
        (folder / "split-1" / name).write_text("x")

    return change


def extra_and_listed(name: str):
    def change(folder: Path) -> None:
        (folder / "split-1" / name).write_text("x")
        write_manifest(folder)

    return change


def big(folder: Path) -> None:
    with open(folder / "split-1" / "large.json", "wb") as file:
        file.truncate(reference.FILE_LIMIT + 1)
    write_manifest(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (flip, "not what was packed.*stamp.json"),
        (link, "link.json: a link"),
        (link_in_place, "stamp.json: a link"),
        (linked_folder, "split-1: a link"),
        (pickled, "not what was packed.*n.npy"),
        (listed("../outside.json"), "outside.json: not a relative path"),
        (listed("/etc/outside.json"), "outside.json: not a relative path"),
        (listed("a//b.json"), "not a relative path"),
        (listed(".git/hooks.json"), "not a relative path"),
        (listed("weights.pkl"), "weights.pkl: not one of .json"),
        (listed("gone.json"), "gone.json: missing"),
        (extra("surprise.json"), "surprise.json: not in the manifest"),
        (extra_and_listed("run.py"), "run.py: not one of .json"),
        (lambda folder: write_manifest(folder, dataset="../.."), "data set '../..'"),
        (lambda folder: write_manifest(folder, files={}), "unusable"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "is not a bundle"),
        (lambda folder: (folder / "manifest.json").unlink(), "is not a bundle"),
        (big, "large.json: 15.0 MiB"),
    ],
)  # fmt: skip
def test_what_is_not_as_it_was_packed_changes_nothing(packed: Path, root: Path, change, said: str) -> None:
    target = reference.unbundle(packed)
    before = {p: p.read_bytes() for p in target.rglob("*") if p.is_file()}
    change(packed)
    with pytest.raises(CompanionError, match=f"(?s){said}"):
        reference.unbundle(packed)
    assert {p: p.read_bytes() for p in (root / "results").rglob("*") if p.is_file()} == before


@pytest.fixture
def finished(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[stages.Stage]:
    """A run that counts as complete and fresh, with one small and one large array in each stage."""
    everything = stages.matrix(load_profile("smoke"))
    for stage in everything:
        provenance.write_json(stage.folder / "summary.json", stage.keys)
        provenance.write_array(stage.folder / "small.npy", np.zeros(10, np.uint8))
        provenance.write_array(stage.folder / "large.npy", np.zeros(reference.ARRAY_LIMIT + 1, np.uint8))
        (stage.folder / "notebook.ipynb").write_text(
            '{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}'
        )
        outputs = provenance.artifact_hashes(stage.folder)
        provenance.write_json(stage.folder / "stamp.json", {"outputs": outputs})
    monkeypatch.setattr(stages, "states", lambda profile: {stage.address: [] for stage in stages.matrix(profile)})
    return everything


def test_a_bundle_leaves_large_arrays_behind_and_says_so(finished: list[stages.Stage], tmp_path: Path) -> None:
    profile = load_profile("smoke")
    written = {p.relative_to(tmp_path / "b").as_posix() for p in reference.bundle(profile, "smoke", tmp_path / "b")}
    detector, micrographs = "split-1/n-10/EXP+GEN/seed-1", "split-1/micrographs"
    assert {f"{detector}/{name}" for name in ("summary.json", "small.npy", "stamp.json", "notebook.ipynb")} <= written
    assert f"{detector}/large.npy" not in written and f"{micrographs}/small.npy" not in written
    assert "split-1/n-10/EXP+GEN/seed-2/notebook.ipynb" not in written, "no page shows it"
    assert provenance.read_stamp(tmp_path / "b" / detector)["left_out"] == ["large.npy"]
    reference.unbundle(tmp_path / "b")


def course_files() -> dict[str, dict[str, bytes]]:
    """Files of each kind of stage in the course profile, at the sizes that they have there.

    A detector writes 20 predictions for each of 22 x 25 test patches (mini's wrote 15), a fifth of them at scores from
    0.5 (mini's a seventh), a mask is 100 bytes long where mini's are 40 in patches of half the side, pictures are half
    as large again as mini's, and noise cannot be packed.
    """
    rng, patch = np.random.default_rng(1), 256

    def parquet(n: int, floats: int, **columns: object) -> bytes:
        table = pd.DataFrame({"patch": np.sort(rng.integers(0, n, n)), **columns})
        drawn = {f"x{k}": rng.random(n).astype(np.float32) * patch for k in range(floats)}
        with tempfile.TemporaryDirectory() as folder:
            provenance.write_table(Path(folder) / "t", table.assign(**drawn))
            return (Path(folder) / "t").read_bytes()

    def array(*shape: int) -> bytes:
        made = io.BytesIO()
        np.save(made, rng.integers(0, 256, shape, dtype=np.uint8))
        return made.getvalue()

    masks = np.array([rng.bytes(12).hex()[:24].encode() * 4 + b"%d" % n for n in range(11_000)], object)
    large, defects = array(reference.ARRAY_LIMIT + 1), 10_000 * 4
    patches = {"instances.npy": large, "table.parquet": parquet(defects, 4), "index.parquet": parquet(10_000, 0)}
    pictures = {f"figures/{k}.{kind}": rng.bytes(400 << 10) for k in "abcdefgh" for kind in ("png", "svg")}
    few = {"sample/images.npy": array(16, patch, patch), "sample/instances.npy": array(16, patch, patch)}
    grids = {f"grid/{step:07d}.npy": array(5, patch, patch) for step in range(500, 10_500, 500)}
    small = {**pictures, "summary.json": b'{"n": 1}'}
    return {
        "micrographs": small | {f"train-n{n}/{name}": data for n in (10, 50, 100) for name, data in patches.items()},
        "statistics": {**small, "statistics.parquet": parquet(defects, 9)},
        "masks": {**small, **patches, "drawn.parquet": parquet(defects, 5)},
        "diffusion": {**small, **grids, "log.parquet": parquet(10_000, 2), "denoiser.safetensors": large},
        "generated": {**small, **patches, **few, "images.npy": large, "copies.parquet": parquet(10_000, 4)},
        "detector": {**small, "log.parquet": parquet(2000, 7), "weights.safetensors": large,
                     "predictions.parquet": parquet(11_000, 4, label=rng.integers(1, 4, 11_000), mask=masks,
                                                    score=rng.random(11_000).astype(np.float32) / 1.6)},
    }  # fmt: skip


def test_the_course_fits_into_a_bundle(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile, files = load_profile("course"), course_files()
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("x" * (3 << 19))])  # 1.5 MiB of pictures
    everything = stages.matrix(profile)
    for stage in everything:
        for name, data in files.get(stage.kind.name, {"summary.json": b"{}"}).items():
            (stage.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (stage.folder / name).write_bytes(data)
        nbformat.write(notebook, stage.folder / "notebook.ipynb")
        told = {
            "outputs": provenance.artifact_hashes(stage.folder),
            "code": {f"companion/{k}.py": "0" * 64 for k in range(60)},
        }
        provenance.write_json(stage.folder / "stamp.json", told)
    monkeypatch.setattr(stages, "states", lambda profile: {stage.address: [] for stage in everything})
    written = reference.bundle(profile, "course", tmp_path / "b")
    assert sum(path.stat().st_size for path in written) <= reference.TOTAL_LIMIT
    names = {p.relative_to(tmp_path / "b").as_posix() for p in written}
    assert sum(name.endswith("predictions.parquet") for name in names) == 56, "of every detector"
    assert sum(name.endswith("log.parquet") for name in names) == 56 + 6
    # What pages read of stages that are not made again: the front page, notebook 10 and notebook 11.
    assert {n for n in names if "sample/" in n} == {
        f"split-1/n-100/generator-1/generated-plain/sample/{part}.npy" for part in ("images", "instances")
    }
    assert sum(name.endswith("/table.parquet") for name in names) == 8, "of the simulated masks"
    assert sum(name.endswith("/index.parquet") for name in names) == 8, "of the generated patches"
    # The figure of notebook 4 draws 4 of the 20 grids: the 1st, 7th, 14th (round(12.67) from 0) and last.
    drawn = sorted(n.rpartition("/")[2] for n in names if "/grid/" in n)
    assert drawn == ["0000500.npy", "0003500.npy", "0007000.npy", "0010000.npy"]


def test_a_bundle_leaves_masks_behind_that_no_page_looks_at(finished: list[stages.Stage], tmp_path: Path) -> None:
    stage = next(s for s in finished if s.kind.name == "detector")
    table = pd.DataFrame({"patch": [0, 0, 1], "score": [0.9, 0.5, 0.49], "mask": [b"a", b"b", b"c"]})
    provenance.write_table(stage.folder / "predictions.parquet", table)
    stamp = {**provenance.read_stamp(stage.folder), "outputs": provenance.artifact_hashes(stage.folder)}
    provenance.write_json(stage.folder / "stamp.json", {**stamp, "code": stage.code(), "parameters": stage.parameters,
                                                        "inputs": stage.input_hashes()})  # fmt: skip
    assert stage.staleness() == []
    reference.bundle(load_profile("smoke"), "smoke", tmp_path / "b")
    installed = reference.unbundle(tmp_path / "b") / stage.address
    assert pd.read_parquet(installed / "predictions.parquet")["mask"].tolist() == [b"a", b"b", None]
    with reference.runs_in(reference.installed()):
        assert stage.staleness() == [], "what was left out is no change"
        provenance.write_table(installed / "predictions.parquet", table.assign(score=0.5))
        assert stage.staleness() == ["outputs changed: predictions.parquet"]


def test_a_reference_of_another_version_of_its_profile_is_not_drawn_again(finished, tmp_path: Path) -> None:
    reference.bundle(load_profile("smoke"), "smoke", tmp_path / "b")
    installed = reference.unbundle(tmp_path / "b")
    gone = next(stage.address for stage in finished if stage.kind.name == "diffusion")
    shutil.rmtree(installed / gone)
    found = reference.Reference(load_profile("smoke"), "smoke", installed)
    with reference.runs_in(tmp_path / "again"), pytest.raises(CompanionError, match=f"(?s)another version.*{gone}"):
        reference.redraw(found, 1)
    assert not (tmp_path / "again").exists(), "nothing is half drawn"


def test_a_bundle_above_the_limits_names_its_largest_files(finished, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(reference, "TOTAL_LIMIT", 1000)
    with pytest.raises(CompanionError, match=r"(?s)above the limits.*stamp\.json"):
        reference.bundle(load_profile("smoke"), "smoke", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_a_bundle_is_refused_where_it_would_overwrite_or_tell_tales(finished, root: Path, tmp_path: Path) -> None:
    profile = load_profile("smoke")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(CompanionError, match="is not a bundle"):
        reference.bundle(profile, "smoke", tmp_path / "mine")
    with pytest.raises(CompanionError, match="put the file into"):
        reference.bundle(profile, str(tmp_path / "own.yaml"), tmp_path / "b")
    provenance.write_json(finished[0].folder / "summary.json", {"from": str(root / "data")})
    with pytest.raises(CompanionError, match=r"(?s)name a folder of this machine.*micrographs/summary\.json"):
        reference.bundle(profile, "smoke", tmp_path / "b")


# --- what is committed ---------------------------------------------------------------------------------------


def redrawn(file: str) -> list[tuple[Path, Path]]:
    """(committed, computed again by `make book`) of a file, for every installed reference."""
    found = sorted((ROOT / "results" / "reference").glob(f"*/*/{file}"))
    if not found:
        pytest.skip("no reference run is committed")
    again = [ROOT / "_build" / "reference" / p.relative_to(ROOT / "results" / "reference") for p in found]
    pairs = [(a, b) for a, b in zip(found, again, strict=True) if b.is_file()]
    if not pairs:
        assert os.environ.get("COMPANION_REQUIRE_BOOK") != "1", "`make book` draws the reference again"
        pytest.skip("the reference has not been drawn again: `make book`")
    return pairs


def test_stale_trainings_of_a_reference_are_told() -> None:
    why = "code changed: companion/diffusion/train.py"
    states = {"diffusion": [why], "detector": [why, "reads diffusion"], "claims": ["reads detector"], "masks": []}
    said = told_stale(states, ["claims"])
    assert said.splitlines() == [
        "the other 3 as they were run, 2 of them STALE: their pages say so", f"  2 stages: {why}"
    ]  # fmt: skip
    assert told_stale(states | {"diffusion": [], "detector": []}, ["claims"]).endswith(
        "3 as they were run, none of them stale"
    )


@pytest.mark.parametrize("table", ["thresholds/scores", "sizes/sizes", "errors/errors", "errors/average_precision"])
def test_the_code_of_now_gives_the_scores_that_are_committed(table: str) -> None:
    for committed, again in redrawn(f"{table}.parquet"):
        pd.testing.assert_frame_equal(pd.read_parquet(again), pd.read_parquet(committed), rtol=1e-6)


def test_the_code_of_now_gives_the_verdicts_that_are_committed() -> None:
    for committed, again in redrawn("claims/claims.json"):
        rows = [json.loads(path.read_text(encoding="utf-8"))["claims"] for path in (committed, again)]
        for before, now in zip(*rows, strict=True):
            assert (now["id"], now["verdict"]) == (before["id"], before["verdict"])
            if before["value"] is not None:
                assert now["value"] == pytest.approx(before["value"], rel=1e-6), now["id"]


def test_what_is_committed_is_what_its_manifest_lists() -> None:
    for manifest in (ROOT / "results" / "reference").glob("*/*/manifest.json"):
        listed = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        found = {p.relative_to(manifest.parent).as_posix(): p for p in reference._regular_files(manifest.parent)}
        assert {name: provenance.hash_file(path) for name, path in found.items()} == listed
