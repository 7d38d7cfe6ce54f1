"""The table of stages: addresses, inputs, and what notebook parameters are refused."""

import json

import pytest

from companion import paths, provenance, stages
from companion.errors import CompanionError
from companion.config.profile import load_profile


def test_every_stage_comes_after_what_it_reads():
    seen = set()
    for stage in stages.matrix(load_profile("smoke")):
        assert {other.address for other, _ in stage.upstream.values()} <= seen
        seen.add(stage.address)


def test_every_kind_has_its_notebook_and_parameters_cell():
    for kind in stages.KINDS.values():
        notebook = json.loads((paths.notebooks() / f"{kind.notebook}.ipynb").read_text())
        cells = [c for c in notebook["cells"] if "parameters" in c["metadata"].get("tags", [])]
        assert len(cells) == 1, kind.notebook
        namespace = {}
        exec("".join(cells[0]["source"]), namespace)
        given = {k: v for k, v in namespace.items() if not k.startswith("__")}
        stage = stages.open_stage(kind, given)
        assert stage.profile.name == "smoke" and stage.profile.dataset == "phantom"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"splt": 1}, r"splt; did you mean 'split'\?"),
        ({"n_train": "ten"}, "n_train = 'ten'"),
        ({"n_train": 11}, "n-11/EXP/seed-1 is not in profile 'smoke'"),
        ({"arm": "EXP+GAN"}, "arm = 'EXP\\+GAN'"),
        ({"seed": True}, "seed = True"),
        ({"profile": "smoky"}, "did you mean 'smoke'"),
        ({"profile": 3}, "profile: .*valid string"),
        ({"steps": "few"}, "detection.steps: .*valid integer"),
    ],
)
def test_unusable_notebook_parameters(given, said):
    usual = {"profile": "smoke", "dataset": "phantom", "split": 1, "n_train": 10, "arm": "EXP", "seed": 1}
    with pytest.raises(CompanionError, match=said):
        stages.open_stage(stages.KINDS["detector"], {**usual, **given})


def test_a_knob_overrides_the_profile_and_none_does_not():
    usual = {"profile": "smoke", "dataset": "phantom", "split": 1, "n_train": 10, "arm": "EXP", "seed": 1}
    kind = stages.KINDS["detector"]
    assert stages.open_stage(kind, {**usual, "steps": 7}).profile.detection.steps == 7
    assert stages.open_stage(kind, {**usual, "steps": None}).profile == load_profile("smoke")


def test_begin_names_the_inputs_that_are_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_RUNS", str(tmp_path))
    with pytest.raises(CompanionError, match="have not been made; `companion run smoke"):
        stages.begin("statistics", {"profile": "smoke", "dataset": "phantom", "split": 1, "n_train": 10})
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def finished(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_RUNS", str(tmp_path))
    stage = stages.begin("micrographs", {"profile": "smoke", "dataset": "phantom", "split": 1})
    provenance.write_json(stage.folder / "train-n10" / "patches.json", {"x": 1})
    provenance.write_json(stage.folder / "test" / "patches.json", {"x": 2})
    stage.finish()
    return stage


def test_fresh_until_something_changes(finished):
    assert finished.staleness() == []
    (finished.folder / "test" / "patches.json").write_text("{}")
    assert finished.staleness() == ["outputs changed: test/patches.json"]


def test_stale_when_a_parameter_that_it_reads_changes(finished):
    def state(**changed):
        return stages.Stage(finished.kind, finished.keys, finished.profile.model_copy(update=changed)).staleness()

    assert state(n_test=5) == ["parameters changed: n_test"]
    assert state(seeds=[9]) == []


def test_an_input_is_only_the_part_that_is_read(finished):
    keys = {"split": 1, "n_train": 10}
    statistics = stages.Stage(stages.KINDS["statistics"], keys, finished.profile)
    before = statistics.input_hashes()
    assert before["train"] is not None
    provenance.write_json(finished.folder / "test" / "patches.json", {"x": 3})
    finished.finish()
    assert statistics.input_hashes() == before
    provenance.write_json(finished.folder / "train-n10" / "patches.json", {"x": 3})
    finished.finish()
    assert statistics.input_hashes() != before


def test_validation_patches_are_read_by_detectors_and_thresholds_where_there_are_any(finished):
    detector, thresholds = (
        next(s for s in stages.matrix(finished.profile) if s.kind.name == name) for name in ("detector", "thresholds")
    )
    before = [stage.input_hashes() for stage in (detector, thresholds)]
    assert not detector.holds("val") and detector.holds("test")
    provenance.write_json(finished.folder / "val" / "patches.json", {"x": 3})
    finished.finish()
    assert detector.holds("val")
    after = [stage.input_hashes() for stage in (detector, thresholds)]
    changed = [[k for k in new if new[k] != old[k]] for old, new in zip(before, after, strict=True)]
    assert changed == [["val"], ["split-1/micrographs (validation)"]]


def test_an_edited_split_file_is_a_changed_input(finished, tmp_path):
    (tmp_path / "mine.yaml").write_text("{seed: 1}")
    keys = {"split": str(tmp_path / "mine.yaml")}
    stage = stages.Stage(finished.kind, keys, finished.profile)
    before = stage.input_hashes()
    (tmp_path / "mine.yaml").write_text("{seed: 2}")
    assert stage.input_hashes() != before


def test_only_the_thresholds_read_predictions_on_validation_patches(finished):
    everything = stages.matrix(finished.profile)
    detector = next(s for s in everything if s.kind.name == "detector")
    provenance.write_json(detector.folder / "stamp.json", {"outputs": {"predictions.parquet": "a"}})
    pages = [s for s in everything if s.kind.name in ("thresholds", "significance", "errors", "claims")]
    before = {page.kind.name: page.input_hashes()[detector.address] for page in pages}
    outputs = {"predictions.parquet": "a", "predictions-val.parquet": "b"}
    provenance.write_json(detector.folder / "stamp.json", {"outputs": outputs})
    after = {page.kind.name: page.input_hashes()[detector.address] for page in pages}
    assert [name for name in after if after[name] != before[name]] == ["thresholds"]


def test_stamp_says_where_a_result_came_from(finished):
    stamp = provenance.read_stamp(finished.folder)
    assert "notebooks/01_micrographs.ipynb" in stamp["code"] and "companion/stages.py" in stamp["code"]
    assert stamp["parameters"]["n_test"] == finished.profile.n_test
    assert stamp["packages"]["numpy"] and stamp["wall_s"] >= 0 and stamp["peak_memory_mib"] > 0
