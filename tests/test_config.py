"""Profiles: what they mean, what is refused, and how it is said."""

import pytest
from project import ROOT

from companion.config import ARMS, load_profile
from companion.errors import CompanionError


@pytest.mark.parametrize("name", [path.stem for path in (ROOT / "profiles").glob("*.yaml")])
def test_every_profile_is_valid_and_runs_each_detector_once(name):
    P = load_profile(name)
    assert P.name == P.folder == name and P.description
    detectors = [tuple(keys.values()) for keys in P.detectors()]
    assert len(detectors) == len(set(detectors)) > 0


def test_controls_run_on_the_first_split_at_their_sizes():
    P = load_profile("smoke", changes={"sizes": [10, 4], "splits": [1, 2], "controls": {"EXP+PASTE": [4], "GEN": [10]}})
    assert P.arms_at("1", 4) == ["EXP", "EXP+GEN", "EXP+PASTE"] and P.arms_at("1", 10) == ["EXP", "EXP+GEN", "GEN"]
    assert P.arms_at("2", 4) == ["EXP", "EXP+GEN"] and P.sizes == [4, 10]
    assert len(P.detectors()) == (3 + 3 + 2 + 2) * len(P.seeds)


def test_controls_that_need_the_phantom_or_a_rare_class_are_left_out_on_other_data(tmp_path):
    (tmp_path / "annotations.json").write_text('{"categories": [{"id": 1, "name": "loop"}]}')
    changes = {"controls": {"EXP+RENDER": [10], "EXP+RARE": [10], "EXP+PASTE": [10]}}
    for dataset, controls in ((None, list(changes["controls"])), (str(tmp_path), ["EXP+PASTE"])):
        assert load_profile("smoke", dataset=dataset, changes=changes).arms_at("1", 10)[2:] == controls


def test_every_arm_has_a_look_of_its_own_and_a_baseline():
    looks = [(arm.colour, arm.marker) for arm in ARMS.values()]
    assert len(looks) == len(set(looks)) and all(arm.baseline in ARMS for arm in ARMS.values())


@pytest.mark.parametrize(("content", "said"), [
    ("seedz: [1]\njobs_per_device: 0", r"(?s)2 unusable.*jobs_per_device: .*seedz: .*did you mean 'seeds'\?"),
    ("detection: {stps: 3}", r"detection.stps: no such parameter; did you mean 'steps'\?"),
    ("detection: {steps: 0}", r"detection.steps: .*greater than or equal to 1 \(given: 0\)"),
    ("detection: {steps: many}", r"steps: .*valid integer.*'many'"), ("detection: {steps: true}", "detection.steps"),
    ("sizes: []", "sizes: .*at least 1 item"), ("arms: [EXP+FILTERED]", "add EXP"),
    ("sizes: [10, 10]\narms: [EXP]", r"(?s)2 unusable.*names a value twice.*add EXP\+GEN"),
    ("controls: {EXP+PASTE: [4]}", "not among sizes"),
    ("controls: {EXP+PAST: [10]}", r"no arm 'EXP\+PAST'; did you mean 'EXP\+PASTE'"),
    ("controls: {EXP+GEN: [10]}", "among arms already"),
    ("arms: [EXP, EXP+RENDER]\ndataset: loops_316L", "not for dataset 'loops_316L'"),
    ("splits: [a/x.yaml, b/x.yaml]", "two have the name x"),
    ("splits: ['a/x y.yaml']", "rename the file"),
    ("n_test: 50", r"phantom.n_images 24: 10 training, 50 test, 0 validation and 0 fresh micrographs are 60"),
    ("studies: {bias_n_train: 4}", "not among sizes"),
    ("studies: {bias_n_train: 10}", "needs validation micrographs"),
    ("studies: {shifts: {none: {}}}", "change nothing"),
    ("patches: {size: 100}", "not a multiple of 32"),
    ("patches: {size: 1024}", "patches.size 1024: micrographs of the phantom are 512 px wide"),
    ("phantom: {class_shares: [0.5, 0.5, 0.5]}", "sum to 1.5"),
    ("phantom: {contrast: [0.5, 0.1]}", "contrast .* should rise"),
    ("phantom: {magnifications: {70kx: [0.88, 0.7]}}", "magnifications sum to 0.7"),
    ("phantom: {preset: fecra}", "preset"), ("phantom: {preset: [plain]}", "preset"), ("name: ../x", "name: .*pattern"),
    ("detection: {anchor_sizes_px: [8, [16, 32], 64]}", "more sizes on one level"),
    ("detection: {anchor_sizes_px: [8, 16]}", r"anchor_sizes_px \[8, 16\].* 3 levels"),
    ("detection: {resize_px: 100}", "multiple of 32"),
    ("detection: {backend: detectron2}", "'tiny' is not built with detectron2"),
    ("diffusion: {autoencoder: {crop_px: 30}}", "crop_px 30 is not a multiple of downsampling"),
    ("masks: {sampler: companion, repairs: [azimuth]}", "are for sampler 'authors'; 'companion' takes none"),
    ("- a list", "should be a mapping"),
    ("a: [", "not a YAML file"),
])  # fmt: skip
def test_unusable_profiles_say_what_and_where(tmp_path, content, said):
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(CompanionError, match=said) as caught:
        load_profile(tmp_path / "mine.yaml")
    assert "mine.yaml" in str(caught.value)


def test_changed_entries_name_the_folder_and_none_leaves_the_files_own():
    P = load_profile("smoke", changes={"evaluation.iou": 0.3, "detection.steps": None})
    assert P.evaluation.iou == 0.3 and P.detection == load_profile("smoke").detection
    assert P.folder == "smoke+evaluation.iou-0.3" and load_profile("smoke", changes={"seeds": None}).folder == "smoke"
    assert load_profile("smoke", changes={"studies.bias_n_train": "null"}).studies.bias_n_train is None
    with pytest.raises(CompanionError, match="name is no section"):
        load_profile("smoke", changes={"name.x": 1})


def test_a_splits_name_stands_for_a_number_or_a_file():
    P = load_profile("smoke", splits=[2, "/some/where/mine.yaml"])
    assert {name: P.split_source(name) for name in P.split_names} == {"2": 2, "mine": "/some/where/mine.yaml"}
    with pytest.raises(CompanionError, match=r"split 'mime' is not in profile smoke: did you mean 'mine'\?"):
        P.split_source("mime")
