"""Plans against hand-computed times, from the figures in src/companion/throughputs.yaml."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import yaml

from companion import estimates, measurements, plan, provenance, stages
from companion.errors import CompanionError
from companion.orchestrate import check_inputs
from companion.config.profile import load_profile, profile_names

FIGURES = yaml.safe_load(Path(plan.__file__).with_name("throughputs.yaml").read_text(encoding="utf-8"))


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_RUNS", str(tmp_path))
    monkeypatch.setattr(measurements, "results", lambda: tmp_path / "results.jsonl")  # none but what a test records


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


def test_the_detectors_figure_is_that_of_its_backend_and_size():
    paper = load_profile("paper")  # 100,000 steps of 2 at 800 px; 22 test micrographs of 5 x 5 crops
    rates, h200 = FIGURES["images_per_s"]["detector training"], FIGURES["of_h100"]["h200"]
    native = rates["r50-fpn"]["h100"] * (256 / 800) ** 2
    found = row(paper, "h200", 16, "06_mask_rcnn")
    assert found["from"] == "assumed"
    assert found["each_s"] - FIGURES["start_s"] == pytest.approx((200_000 + 550) / native / h200)
    theirs = load_profile("paper", detection={**paper.detection.model_dump(), "backend": "detectron2"})
    found = row(theirs, "h100", 16, "06_mask_rcnn")["each_s"] - FIGURES["start_s"]
    assert found == pytest.approx((200_000 + 550) / rates["r50-fpn in detectron2"]["h100"])


def test_generated_images_are_drawn_decoded_studied_and_judged():
    profile = load_profile("course")
    n10 = next(s for s in stages.matrix(profile) if s.kind.name == "generated")
    counted = {p.work: p.images for p in estimates.passes(n10)}
    # 10,000 images of 20 steps; three samplers at 5, 10, 20 and 50 steps on 256 masks.
    assert counted == {"denoiser forward": 200_000 + 3 * 85 * 256, "decoding": 10_000 + 12 * 256}
    rate, cores = FIGURES["images_per_s"]["denoiser forward"]["96-192-256-320"]["h100"], FIGURES["processor_s"]
    # N = 10: 250 crops in four symmetries are 1,000 training patches, each compared in four symmetries, 1/16 Mpx each.
    looked = 1000 + 1000 + 200 + 550  # generated, painted, decoded, held out
    judged = (looked + 1000) / 16 * cores["judged"] + 1000**2 * cores["resampled"] + cores["figures"]
    nearest = 4000 * (looked + 10_550) * cores["compared"] + 6 * 4000 / 16 * cores["reduced"]
    made = 10_000 / 16 * (cores["noised"] + cores["painted"])
    found, assumed = estimates.seconds(n10, "h100")
    assert found == pytest.approx(sum(counted.values()) / rate + judged + nearest + made)
    assert assumed, "decoding was not measured"


def test_a_gpu_runs_one_job_at_a_time_and_others_are_scaled_by_assumption():
    profile = load_profile("course")
    h100, a100, h200 = (row(profile, device, 16, "04_latent_diffusion") for device in ("h100", "a100", "h200"))
    trained = 10_000 * 64 / FIGURES["images_per_s"]["denoiser training"]["96-192-256-320"]["h100"]
    assert h100["left_s"] == pytest.approx(6 * (trained + FIGURES["start_s"]))
    for found, device in ((a100, "a100"), (h200, "h200")):
        assert found["each_s"] - FIGURES["start_s"] == pytest.approx(trained / FIGURES["of_h100"][device])
    assert (h100["from"], a100["from"], h200["from"]) == ("measured elsewhere", "assumed", "assumed")


def test_detectors_side_by_side_need_the_cores_and_share_the_gpu():
    profile = load_profile("course", jobs_per_device=4)  # four threads each
    kind = next(s.kind for s in stages.matrix(profile) if s.kind.name == "detector")
    assert [plan.side_by_side(profile, kind, "h100", cores) for cores in (2, 8, 16, 64)] == [1, 2, 4, 4]
    alone, shared = (row(p, "h100", 16, "06_mask_rcnn") for p in (load_profile("course"), profile))
    start = FIGURES["start_s"]
    assert shared["each_s"] - start == pytest.approx(4 * (alone["each_s"] - start))
    assert alone["left_s"] - shared["left_s"] == pytest.approx((56 - 14) * start), "only the starts overlap"
    assert (
        row(profile, "h100", 16, "04_latent_diffusion")["left_s"]
        == row(load_profile("course"), "h100", 16, "04_latent_diffusion")["left_s"]
    )


def test_analysis_grows_with_its_data():
    smoke, course = load_profile("smoke"), load_profile("course")
    line = FIGURES["seconds"]["micrographs"]
    found = row(course, "h100", 4, "01_micrographs")["each_s"] - FIGURES["start_s"]
    assert found == pytest.approx(line["base"] + 132 * line["each"]), "132 micrographs of 1 Mpx"
    for notebook in ("02_mask_statistics", "03_mask_simulation", "07_thresholds", "12_errors"):
        assert row(course, "h100", 4, notebook)["each_s"] > row(smoke, "cpu", 2, notebook)["each_s"]


def test_studies_and_faithfulness_are_counted():
    profile = load_profile("smoke", extensions={
        "studies": ["bias", "feedback", "shift"], "seeds": [1, 2], "image_px": 192, "patch_px": 64, "n_val": 2,
        "n_test": 5, "n_generated": 32, "denoiser_steps": 25, "denoiser_batch": 8, "sampling_steps": 8,
        "detector_steps": 40, "detector_batch": 4, "annotators": [{"miss": 0.4}],
    })  # fmt: skip
    named = {s.kind.name: s for s in stages.matrix(profile)}
    counted = {name: [p.images for p in estimates.passes(named[name])] for name in ("bias", "feedback", "shift")}
    # autoencoder, denoiser training, forward, decoding, detector training, detection; nine patches of a micrograph
    assert counted["bias"] == [0, 2 * 200, 2 * 256, 2 * 32, 8 * 160, 8 * 7 * 9], "two annotators, two arms, two seeds"
    assert counted["feedback"] == [0, 200, 6 * 256, 6 * 32, 6 * 160, 6 * 7 * 9], "three rounds of two seeds"
    assert counted["shift"] == [0, 200, 256, 32, 4 * 160, 4 * (2 + 4 * 5) * 9], "four test domains"
    assert [p.images for p in estimates.passes(named["faithfulness"])] == [0, 2 * 150 + 2 * 256]


def test_the_disk_holds_a_checkpoint_while_stages_are_left():
    profile = load_profile("course")
    weights = FIGURES["million_parameters"]["96-192-256-320"] * 4e6 / 2**20
    # Six denoisers; of one in training its weights, their average and two moments, in two versions.
    assert row(profile, "h100", 4, "04_latent_diffusion")["disk_mib"] == pytest.approx((6 + 8) * weights)


def test_a_record_of_this_device_and_network_counts_before_the_file(tmp_path, monkeypatch):
    root = tmp_path / "project"
    for name in ("benchmarks", "profiles", "notebooks"):
        (root / name).mkdir(parents=True)
    profile = load_profile("paper")
    monkeypatch.setenv("COMPANION_ROOT", str(root))
    plain = plan_rate("detector training", "r50-fpn", "h100", 256, profile)
    rows = {"batched": {"training_images_per_s": 640.0, "detection_images_per_s": 1000.0}}
    record = {"benchmark": "detector", "device": "NVIDIA H100 80GB HBM3", "measured": {"1": rows}}
    ldm = [{"patches per second": "denoiser, training", "reference": 1.0, "companion": 77.0}]
    lines = [
        {**record, "setting": {"network": "r50-fpn", "size": 128}},
        {**record, "setting": {"network": "tiny", "size": 128}},
        {"benchmark": "ldm", "device": "NVIDIA H100 80GB HBM3", "preset": "paper", "patch_px": 256, "measured": ldm},
    ]
    measurements.results().write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert plain == (160, True)
    assert plan_rate("detector training", "r50-fpn", "h100", 256, profile) == (160.0, False), (
        "640 at a quarter the area"
    )
    assert plan_rate("detection", "r50-fpn", "h100", 128, profile) == (1000.0, False)
    assert plan_rate("detector training", "r50-fpn", "a100", 128, profile) == (pytest.approx(0.61 * 640), True)
    assert plan_rate("denoiser training", "256-512-512-512-1024", "h100", 256, profile) == (77.0, False)
    assert plan_rate("denoiser forward", "256-512-512-512-1024", "h100", 256, profile)[0] == 5190


def plan_rate(*asked):
    return tuple(estimates.rate(*asked))


def test_presets_of_the_figures_are_those_of_the_package():
    from companion.diffusion.presets import PRESETS

    named = {
        name: {"denoiser": "-".join(map(str, p.denoiser.channels)),
               "autoencoder": "-".join(map(str, p.autoencoder.channels))}
        for name, p in PRESETS.items()
    }  # fmt: skip
    assert FIGURES["presets"] == named


def test_what_was_not_measured_has_no_time():
    found = row(load_profile("course"), "cpu", 2, "06_mask_rcnn")
    assert math.isnan(found["left_s"]) and found["from"] == "not measured"
    assert math.isnan(estimates.rate("detector training", "tiny", "gpu", 128, load_profile("course")).images_per_s)


def test_a_stage_that_ran_here_tells_what_the_others_cost():
    profile = load_profile("smoke")
    first = next(s for s in stages.matrix(profile) if s.kind.name == "detector")
    provenance.write_json(first.folder / "stamp.json", {"outputs": {}, "wall_s": 100.0, "device": "CPU, 2 cores"})
    on_cpu, on_gpu = (row(profile, device, 2, "06_mask_rcnn") for device in ("cpu", "h100"))
    assert (on_cpu["each_s"], on_cpu["from"]) == (100 + FIGURES["start_s"], "this run")
    assert on_gpu["from"] == "not measured"


@pytest.mark.parametrize("name", profile_names())
def test_every_profile_has_a_plan(name):
    assert ("cpu", *FIGURES["of_h100"]) == plan.DEVICES
    found = plan.plan(load_profile(name), "h100", 2)
    assert set(found["notebook"]) == {stage.kind.notebook for stage in stages.matrix(load_profile(name))}
    assert (found["disk_mib"] > 0).all() and (found["done"] == 0).all()


def test_a_phantom_has_a_micrograph_for_every_use():
    for name in profile_names():
        if (profile := load_profile(name)).dataset == "phantom":
            check_inputs(profile)
    with pytest.raises(CompanionError, match="10 training, 6 test and 9 validation micrographs are 25"):
        check_inputs(load_profile("smoke", n_val=9))
