"""Plans against hand-computed times, from the figures in src/companion/throughputs.yaml."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from companion import plan, provenance, stages
from companion.errors import CompanionError
from companion.orchestrate import check_inputs
from companion.params import load_profile, profile_names

FIGURES = yaml.safe_load(Path(plan.__file__).with_name("throughputs.yaml").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_RUNS", str(tmp_path))


def row(profile, device, cores, notebook):
    return plan.plan(profile, device, cores).set_index("notebook").loc[notebook]


def test_a_detector_costs_its_passes_over_the_measured_rate():
    profile = load_profile("smoke", detection={"steps": 100, "batch_size": 8})
    rates = [FIGURES["images_per_s"][work]["tiny"]["cpu"] for work in ("detector training", "detection")]
    # Six test and two validation micrographs of 512 px give 5 x 5 crops of 128 px each, 96 px apart.
    each = 800 / rates[0] + 8 * 25 / rates[1] + FIGURES["start_s"]
    found = row(profile, "cpu", 2, "06_mask_rcnn")
    assert found["each_s"] == pytest.approx(each) and found["from"] == "measured elsewhere"
    assert (found["stages"], found["left_s"]) == (6, pytest.approx(3 * each)), "six stages on two cores: three rounds"


def test_a_gpu_runs_one_job_at_a_time_and_others_are_scaled_by_assumption():
    profile = load_profile("course")
    h100, a100 = (row(profile, device, 16, "05_generated_images") for device in ("h100", "a100"))
    passes = 10_000 * 20 / FIGURES["images_per_s"]["denoiser forward"]["96-192-256-320"]["h100"]
    assert h100["left_s"] == pytest.approx(8 * (passes + FIGURES["start_s"]))
    assert a100["each_s"] - FIGURES["start_s"] == pytest.approx(passes / FIGURES["of_h100"]["a100"])
    assert (h100["from"], a100["from"]) == ("measured elsewhere", "assumed")


def test_what_was_not_measured_has_no_time():
    found = row(load_profile("course"), "cpu", 2, "06_mask_rcnn")
    assert math.isnan(found["left_s"]) and found["from"] == "not measured"
    assert plan._rate("detector training", "tiny", "gpu", 128) != plan._rate("detector training", "tiny", "gpu", 128)


def test_a_stage_that_ran_here_tells_what_the_others_cost():
    profile = load_profile("smoke")
    first = next(s for s in stages.matrix(profile) if s.kind.name == "detector")
    provenance.write_json(first.folder / "stamp.json", {"outputs": {}, "wall_s": 100.0, "device": "CPU, 2 cores"})
    on_cpu, on_gpu = (row(profile, device, 2, "06_mask_rcnn") for device in ("cpu", "h100"))
    assert (on_cpu["each_s"], on_cpu["from"]) == (100 + FIGURES["start_s"], "this run")
    assert on_gpu["from"] == "not measured"


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_has_a_plan(name):
    found = plan.plan(load_profile(name), "h100", 2)
    assert set(found["notebook"]) == {stage.kind.notebook for stage in stages.matrix(load_profile(name))}
    assert (found["disk_mib"] > 0).all() and (found["done"] == 0).all()


def test_a_phantom_has_a_micrograph_for_every_use():
    for name in profile_names():
        if (profile := load_profile(name)).dataset == "phantom":
            check_inputs(profile)
    with pytest.raises(CompanionError, match="10 training, 6 test and 9 validation micrographs are 25"):
        check_inputs(load_profile("smoke", n_val=9))
