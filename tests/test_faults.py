"""What makes a run survive, piece by piece, and the harness that tries it whole (benchmarks/faults.py)."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from companion import execute, fragments, provenance, stages, training
from companion.micrographs import registry
from companion.errors import CompanionError
from companion.config.profile import load_profile
from companion.config.phantom import Phantom

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))
import faults  # noqa: E402

# --- stamps ---------------------------------------------------------------------------------------------------


def open_micrographs() -> stages.Stage:
    return stages.begin("micrographs", {"profile": "smoke", "dataset": "phantom", "split": 1})


def test_a_file_of_an_earlier_run_is_not_stamped(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_RUNS", str(tmp_path))
    for name in ("kept.json", "old.json", "foreign.bin"):
        provenance.write_json(open_micrographs().folder / name, 1)
    stage = open_micrographs()
    provenance.write_json(stage.folder / "kept.json", 1)  # equal bytes, but written by this run
    stage.finish()
    assert list(provenance.read_stamp(stage.folder)["outputs"]) == ["kept.json"]
    assert stage.staleness() == ["outputs changed: foreign.bin, old.json"]


def test_code_that_is_edited_while_a_stage_runs_makes_it_stale(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_RUNS", str(tmp_path))
    stage = open_micrographs()
    before = stages.Stage.code
    monkeypatch.setattr(stages.Stage, "code", lambda self: {**before(self), "companion/geometry.py": "edited"})
    provenance.write_json(stage.folder / "a.json", 1)
    stage.finish()
    assert stage.staleness() == ["code changed: companion/geometry.py"]


def test_the_executed_copy_of_an_earlier_run_goes_with_the_new_stamp(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_RUNS", str(tmp_path))
    stage = open_micrographs()
    (stage.folder / provenance.EXECUTED).write_text("{}")
    provenance.write_json(stage.folder / "a.json", 1)
    stage.finish()
    assert not (stage.folder / provenance.EXECUTED).exists()


# --- checkpoints and weights ----------------------------------------------------------------------------------


def train(folder: Path, stop_at: int | None = None) -> tuple[torch.nn.Linear, list[int]]:
    torch.manual_seed(1)
    layer, seen = torch.nn.Linear(2, 1), []
    optimizer = torch.optim.AdamW(layer.parameters())

    def step(i: int) -> dict[str, float]:
        if i == stop_at:
            raise KeyboardInterrupt
        seen.append(i)
        loss = layer(torch.full((1, 2), float(i))).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": loss.item()}

    training.fit(step, {"layer": layer, "optimizer": optimizer}, steps=10, folder=folder, identity="x", every=4)
    return layer, seen


@pytest.mark.parametrize("damage", [name for name in faults.DAMAGES if name != "deleted"])
def test_a_damaged_checkpoint_is_not_continued(damage, tmp_path):
    whole, _ = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", stop_at=9)
    faults.DAMAGES[damage](tmp_path / "broken" / training.CHECKPOINT / "state.safetensors")
    again, seen = train(tmp_path / "broken")
    assert seen[0] == 0
    assert torch.equal(again.weight, whole.weight)


@pytest.mark.parametrize("place", [0.05, 0.3, 0.9])
def test_a_flipped_bit_anywhere_in_weights_is_seen(place, tmp_path):
    path = tmp_path / "weights.safetensors"
    training.save_state({"w": torch.arange(64.0), "n": torch.tensor(3)}, path, {"identity": "x", "log": [1.5, None]})
    assert training.is_finished(path, "x")
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    assert not training.is_finished(path, "x")


def test_weights_that_are_taken_over_count_as_written(tmp_path):
    path = tmp_path / "weights.safetensors"
    training.save_state({"w": torch.ones(2, dtype=torch.bfloat16)}, path, {"identity": "x"})
    os.utime(path, (1, 1))
    before = provenance.signature(path)
    assert not training.is_finished(path, "y") and provenance.signature(path) == before
    assert training.is_finished(path, "x") and provenance.signature(path) != before


# --- disks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device"),
    ],
)
def test_a_full_disk_is_one_message_and_leaves_the_old_file(error, tmp_path):
    path = tmp_path / "a.json"
    provenance.write_json(path, 1)
    with pytest.raises(CompanionError, match=r"a\.json could not be written: No space left"), provenance.atomic(path):
        raise error
    assert json.loads(path.read_text()) == 1 and list(tmp_path.iterdir()) == [path]


def test_another_error_stays_what_it_is(tmp_path):
    with pytest.raises(ValueError, match="shape"), provenance.atomic(tmp_path / "a.npy"):
        raise ValueError("shape")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_every_kind_of_file_says_that_the_disk_is_full(tmp_path):
    import numpy as np
    import pandas as pd

    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    values = np.random.default_rng(0).normal(size=100_000)
    try:
        for write in (
            lambda: provenance.write_array(tmp_path / "a.npy", values),
            lambda: provenance.write_table(tmp_path / "a.parquet", pd.DataFrame({"a": values})),
            lambda: provenance.write_json(tmp_path / "a.json", list(values)),
            lambda: training.save_state({"a": torch.from_numpy(values)}, tmp_path / "a.safetensors", {}),
        ):
            with pytest.raises(CompanionError, match="No space left on device"):
                write()
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_damaged_phantom_is_rendered_again(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    small = Phantom(preset="easy", n_images=2, size_px=64)
    profile = load_profile("smoke").model_copy(update={"phantom": small})
    folder = registry.obtain(profile)
    before = provenance.artifact_hashes(folder)
    image = next((folder / "images").iterdir())
    faults.DAMAGES["a bit flipped"](image)
    assert provenance.artifact_hashes(folder) != before
    assert provenance.artifact_hashes(registry.obtain(profile)) == before


# --- the harness ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", faults.DAMAGES)
def test_damages_damage(name, tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(range(200)))
    faults.DAMAGES[name](path)
    assert not path.exists() or path.read_bytes() != bytes(range(200))


@pytest.fixture
def finished(tmp_path):
    project = faults.Project(tmp_path / "calm")
    claims = [{"id": "C1", "ours": "yes", "commit": "a"}, {"id": "C12", "ours": "0.1 h"}]
    provenance.write_json(project.tree / "claims" / "claims.json", {"claims": claims})
    stamp = {"outputs": {"claims.json": "1"}, "code": {"a": "1"}, "wall_s": 1.0}
    provenance.write_json(project.tree / "claims" / "stamp.json", stamp)
    provenance.write_json(project.tree / "sizes" / "sizes.json", 1)
    return project


def test_times_do_not_count_and_everything_else_does(finished, tmp_path):
    trial = faults.Trial(finished, finished.results(), tmp_path, 1, faults.random.Random(1))
    other = finished.copy(tmp_path / "other")
    claims = [{"id": "C1", "ours": "yes", "commit": "b"}, {"id": "C12", "ours": "0.2 h"}]
    provenance.write_json(other.tree / "claims" / "claims.json", {"claims": claims})
    stamp = {"outputs": {"claims.json": "2"}, "code": {"a": "1"}, "wall_s": 2.0}
    provenance.write_json(other.tree / "claims" / "stamp.json", stamp)
    assert trial.verdict(other, (0, "")) == "all 3 artifacts and stamps as undisturbed"
    assert trial.verdict(other, (1, "no")).startswith("FAILED: exit code 1")
    provenance.write_json(other.tree / "sizes" / "foreign.json", 1)
    assert trial.verdict(other, (0, "")) == "FAILED: 1 artifacts differ, for instance sizes/foreign.json"


@pytest.mark.parametrize(
    ("code", "said", "good"),
    [(2, "error: disk: No space left", True), (1, "error: disk: No space left", False), (0, "", False),
     (2, "Traceback\nerror: No space left", False), (2, "error: something else", False)],
)  # fmt: skip
def test_a_refusal_is_one_clear_message(code, said, good):
    assert faults.refused((code, said), "No space left").startswith("FAILED") is not good


def test_all_that_belongs_to_a_run_is_killed(tmp_path):
    project = faults.Project(tmp_path)
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    place = {**os.environ, "COMPANION_ROOT": str(tmp_path)}
    process = subprocess.Popen([sys.executable, "-c", script], env=place, start_new_session=True)
    while len(project.processes()) < 2:
        pass
    project.kill()
    assert process.wait() == -9 and project.processes() == []


def test_the_table_says_what_happened_and_what_was_not_tried(tmp_path):
    path = tmp_path / "faults.json"
    assert "Nothing has been tried" in fragments.faults_table(path)
    rows = [{"id": "disk", "fault": "Disk full", "tried": "a | b", "happened": "refused", "s": 1.0}]
    faults.record(path, "disk", rows, "abc")
    table = fragments.faults_table(path)
    assert "| Disk full | a \\| b | refused |" in table
    assert "Not tried yet: Killed at random moments;" in table and "read-only" not in table
    faults.record(path, "killed", [{**rows[0], "id": "killed", "tried": "SIGKILL"}], "abc")
    faults.record(path, "disk", [{**rows[0], "happened": "FAILED: exit code 1"}], "abc")
    assert [row["id"] for row in json.loads(path.read_text())["rows"]] == ["killed", "disk"]
    assert "FAILED" in fragments.faults_table(path) and "| refused |" in fragments.faults_table(path)


@pytest.mark.parametrize(
    ("lost", "kept"), [("grid/0000100.npy", False), ("figures/grid.png", True), ("stamp.json", False)]
)
def test_what_was_drawn_in_training_has_it_trained_again_once_lost(lost, kept, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_RUNS", str(tmp_path))
    keys = {"split": 1, "n_train": 10, "generator": 1}
    stage = stages.Stage(stages.KINDS["diffusion"], keys, load_profile("smoke"))
    names = ("denoiser.safetensors", "grid/0000100.npy", "grid/0000200.npy", "figures/grid.png")
    for name in names:
        provenance.write_json(stage.folder / name, name)
    provenance.write_json(stage.folder / provenance.STAMP, {"outputs": provenance.artifact_hashes(stage.folder)})
    if lost == provenance.STAMP:
        (stage.folder / lost).write_text("{")
    else:
        (stage.folder / lost).unlink()
    execute._clear(stage)
    assert (stage.folder / "denoiser.safetensors").exists() is kept
    assert (stage.folder / "grid/0000200.npy").exists()


def test_pictures_of_a_training_on_its_way_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_RUNS", str(tmp_path))
    keys = {"split": 1, "n_train": 10, "generator": 1}
    stage = stages.Stage(stages.KINDS["diffusion"], keys, load_profile("smoke"))
    provenance.write_json(stage.folder / "grid/0000100.npy", "of the training that was stamped")
    provenance.write_json(stage.folder / provenance.STAMP, {"outputs": provenance.artifact_hashes(stage.folder)})
    provenance.write_json(stage.folder / "grid/0000100.npy", "of one with other parameters")
    provenance.write_json(stage.folder / "checkpoint/progress.json", {})
    execute._clear(stage)
    assert (stage.folder / "grid/0000100.npy").exists()
    (stage.folder / "checkpoint/progress.json").unlink()
    (stage.folder / "checkpoint").rmdir()
    execute._clear(stage)
    assert not (stage.folder / "grid/0000100.npy").exists(), "damaged, as nothing is on its way"


def test_a_job_has_the_threads_of_its_profile(monkeypatch):
    seen = {}
    for name in execute.THREADS:
        monkeypatch.setenv(name, "7")  # of the machine
    monkeypatch.setattr(execute, "execute", lambda stage, name: seen.update(execute.os.environ))
    assert execute.main(["smoke", "phantom", "1", "split-1/micrographs"]) == 0
    assert {seen[name] for name in execute.THREADS} == {str(load_profile("smoke").threads)}
