"""Records of benchmarks: written, read again, and shown on the page on choices and speed."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ellipse_patches

from companion import measurements
from companion.errors import CompanionError
from companion.machine import enough_memory

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "benchmarks"))

ABLATIONS = {
    "setting": {"profile": "mini", "dataset": "phantom", "n_train": 4, "seeds": [1, 2], "denoiser_steps": 1200,
                "held_patches": 50},
    "real": {"auc": 0.5, "spectrum": 0.04, "kid": 0.1, "contrast": 0.13, "profile": 0.0},
}  # fmt: skip
ROW = {"auc": 0.8, "spectrum": 0.1, "kid": 1234.5, "contrast": 0.1, "profile": None, "train_s": 10.0}


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_ROOT", str(tmp_path))
    for name in ("benchmarks", "profiles", "notebooks"):
        (tmp_path / name).mkdir()
    return tmp_path / "benchmarks" / "results.jsonl"


def test_the_last_record_counts_and_says_where_it_was_made(results):
    assert measurements.last("masks") is None
    for value in (1.0, float("nan")):
        measurements.record("masks", value=value)
    measurements.record("scores", value=3.0)
    assert len(results.read_text().splitlines()) == 3
    found = measurements.last("masks")
    assert found["value"] is None  # undefined, not NaN, which is no JSON
    assert {"date", "device", "commit", "packages"} <= found.keys()


def test_what_has_not_been_measured_says_how_it_is(results):
    shown = measurements.fragments()
    assert shown.keys() == {*measurements.TABLES, "speed_gpu"}
    assert "Not measured yet: `python benchmarks/schedule.py`" in shown["choices_schedule"]
    assert "none of these has been run" in shown["speed_gpu"]


def test_processors_and_each_gpu_keep_their_own_last_record(results):
    setting = {"preset": "native", "network": "r50-fpn", "size": 256, "batch": 32}

    def detector(device, rate, **changes):
        used = {**setting, "device_type": "cpu" if device.startswith("CPU") else "cuda", **changes}
        row = {"training_images_per_s": rate, "detection_images_per_s": 900.0, "speed_against_torchvision": 2.5}
        measurements.record("detector", device=device, setting=used, measured={"4": {"batched": row}})

    detector("NVIDIA H200", 601.0)
    detector("CPU, 2 cores (x86_64)", 1.0)
    detector("CPU, 64 cores (x86_64)", 2.0)
    for rate in (401.0, 402.0):
        detector("NVIDIA H100", rate, bfloat16=True, compile=False, threads=[4, 8], warm_up=20, authors=None)
    detector("NVIDIA H100", 77.0, preset="compact", network="compact")
    shown = measurements.fragments()
    rows = re.findall(r"^\| batched\S* .*?\| (\d+) \|", shown["speed_detector"], re.MULTILINE)
    assert rows == ["2", "402", "77", "601"], "processors first, GPUs by name, of each the last"
    options = "--preset native --size 256 --batch 32 --warm-up 20 --threads 4 8 --bfloat16"
    assert f"By `python benchmarks/detector.py {options}`, on NVIDIA H100" in shown["speed_detector"]
    assert "256 px, batch 32, bfloat16.\ndetectron2 was not installed" in shown["speed_detector"]
    assert "compact, 256 px, batch 32.\n\nBy" in shown["speed_detector"], "detectron2 has no such network"
    assert shown["speed_gpu"].startswith("On a GPU (`detector.py` has been run on NVIDIA H100 and on NVIDIA H200;")
    assert "`ldm.py` has been run on none yet" in shown["speed_gpu"]


def test_the_options_of_records_are_those_of_the_benchmarks():
    from test_documented_commands import options_of

    for benchmark, names in measurements.OPTIONS.items():
        assert {f"--{name.replace('_', '-')}" for name in names} <= options_of(benchmark)


def test_rates_with_a_record_as_their_source_are_those_of_the_record():
    from companion.estimates import DETECTOR_COLUMNS

    section, found = None, 0
    for line in (ROOT / "src" / "companion" / "throughputs.yaml").read_text(encoding="utf-8").splitlines():
        section = line.strip().rstrip(":") if re.fullmatch(r"  \w[\w ]*:", line) else section
        cited = re.search(r"(\w+): .*cpu: ([\d.]+)\}.*results\.jsonl: detector, (\w+), commit (\w+), one thread", line)
        if cited:
            network, rate, backend, commit = cited.groups()
            made = measurements.last(
                "detector", lambda r, n=network, c=commit: r["setting"]["network"] == n and r["commit"].startswith(c)
            )
            assert made, f"no record of commit {commit}"
            assert float(rate) == round(made["measured"]["1"][backend][DETECTOR_COLUMNS[section]], 1)
            found += 1
    assert found == 2


def test_seeds_are_averaged_and_tables_hold_their_own_kind(results):
    twice = [{"choice": "L1 loss (paper)", "seed": 1, **ROW}, {"choice": "L1 loss (paper)", "seed": 2, **ROW}]
    twice[1] |= {"auc": 0.9, "train_s": 20.0}
    measurements.record("ablations", kind="denoiser", **ABLATIONS, measured=twice)
    measurements.record("ablations", kind="autoencoder", **ABLATIONS, measured=[{"choice": "trained here", **ROW}])
    shown = measurements.fragments()
    assert "| L1 loss (paper) | 0.85 | 0.8 to 0.9 | 0.1 | 1,234 | 0.1 | undefined | 15 |" in shown["choices_denoiser"]
    assert "trained here" not in shown["choices_denoiser"] and "trained here" in shown["choices_autoencoder"]
    assert (
        "phantom (simulated), N = 4, 1,200 steps" in shown["choices_denoiser"]
        and "2 seed(s)" in shown["choices_denoiser"]
    )


def test_an_interrupted_benchmark_goes_on_after_its_last_row(results, monkeypatch):
    calls = []

    def measure(value):
        calls.append(value)
        return {"f1_hm": value, "undefined": math.nan}

    first = measurements.finished("schedule", {"passes": 100}, lambda: measure(0.5))
    assert measurements.finished("schedule", {"passes": 100}, lambda: measure(0.7)) == first
    assert first == {"f1_hm": 0.5, "undefined": None} and calls == [0.5]
    measurements.finished("schedule", {"passes": 200}, lambda: measure(0.6))
    monkeypatch.setattr(measurements, "_code", lambda: "other code")
    assert measurements.finished("schedule", {"passes": 100}, lambda: measure(0.8))["f1_hm"] == 0.8
    assert calls == [0.5, 0.6, 0.8]
    measurements.forget("schedule")  # it is on record
    assert measurements.finished("schedule", {"passes": 100}, lambda: measure(0.9))["f1_hm"] == 0.9


def test_the_schedule_shows_the_spread_between_seeds(results):
    rows = [{"schedule": "AdamW", "passes": p, "seed": s, "f1_hm": p / 10_000 + s / 100, "train_s": 2.0}
            for p in (1200, 2400) for s in (1, 2)]  # fmt: skip
    setting = {"test_defects": 900, "preset": "binned", "network": "tiny", "size": 128, "n_train": 16, "seeds": [1, 2]}
    measurements.record("schedule", setting=setting, measured=rows)
    shown = measurements.fragments()["choices_schedule"]
    assert "| AdamW | 0.135 (0.13 to 0.14) | 0.255 (0.25 to 0.26) | 1.11 |" in shown and "lowest to highest" in shown
    measurements.record("schedule", setting={**setting, "seeds": [1]}, measured=rows[::2])
    assert "| AdamW | 0.13 | 0.25 | 1.11 |" in measurements.fragments()["choices_schedule"]


def test_every_record_of_this_version_can_be_shown():
    shown = measurements.fragments()
    for name, (benchmark, _, _) in measurements.TABLES.items():
        assert (ROOT / "benchmarks" / f"{benchmark}.py").is_file()
        rows = [line for line in shown[name].splitlines() if line.startswith("|")]
        assert len({line.replace("\\|", "").count("|") for line in rows}) <= 1, name
        assert not re.search(r"\bnan\b|None", shown[name]), name


def test_records_are_lines_of_strict_json():
    lines = (ROOT / "benchmarks" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    refuse = {"parse_constant": lambda text: pytest.fail(f"{text} is no JSON")}
    assert all(json.loads(line, **refuse)["benchmark"] for line in lines)


def test_every_ablation_changes_something_that_the_profile_accepts():
    import ablations

    from companion.config.profile import load_profile

    made = ablations.Bench(load_profile("mini"), None, None, None, None, None)
    asked = {**ablations.DENOISERS, **{f"autoencoder, {k}": v for k, v in ablations.AUTOENCODERS.items()}}
    found = {choice: made.changed(changes) for choice, changes in asked.items()}
    same = [choice for choice, sections in found.items() if sections == made.changed({})]
    assert same == ["as the profile", "autoencoder, as the profile"]


def test_the_detectors_rates_alone_and_side_by_side(results):
    setting = {"preset": "native", "network": "r50-fpn", "size": 256, "batch": 32, "device_type": "cuda"}
    row = {"training_images_per_s": 400.0, "detection_images_per_s": 900.0, "speed_against_torchvision": 2.5}
    measurements.record("detector", setting=setting, measured={"1": {"batched": row}}, side_by_side={})
    alone = measurements.fragments()["speed_detector"]
    assert "| batched | 400 | 900 | 2.5 |" in alone and "preset native, 256 px, batch 32" in alone
    assert "side by side" not in alone
    beside = {"1": {"1": 400.0, "4": 520.0}}
    measurements.record("detector", setting=setting, measured={"1": {"batched": row}}, side_by_side=beside)
    assert "| 1 | 400 |\n| 4 | 520 |" in measurements.fragments()["speed_detector"]


def test_the_detectors_benchmark_times_presets():
    import detector

    from companion.detection.presets import PRESETS

    given = argparse.Namespace(preset="compact", batch=None, compile=True, authors=False)
    found = detector.contestants(given)
    assert found["batched"] == PRESETS["compact"]
    assert found[detector.COMPILED] == PRESETS["compact"].model_copy(update={"compile": True})
    assert found["torchvision"].batch_size == PRESETS["compact"].batch_size
    given.batch = 4
    assert detector.contestants(given)["batched"].batch_size == 4


def test_the_authors_recipe_runs_in_float32_beside_bfloat16(monkeypatch):
    import detector

    from companion.detection.presets import PRESETS

    class Timed:
        def __init__(self, settings, patches, device, autocast):
            self.settings, self.autocast, self.training, self.detection = settings, autocast, [], []

        def step(self, number):
            self.training.append(2.0 if self.autocast else 3.0)

        def detect(self, number):
            self.detection.append(1.0)

    three = {"torchvision": PRESETS["native"], "detectron2": PRESETS["native"], detector.AUTHORS: PRESETS["paper"]}
    monkeypatch.setattr(detector, "contestants", lambda given: three)
    monkeypatch.setattr(detector, "Timed", Timed)
    given = argparse.Namespace(bfloat16=True, warm_up=1, steps=2)
    threads = torch.get_num_threads()
    rows = detector.measure(given, None, torch.device("cpu"), threads)
    assert [row["step_median_s"] for row in rows.values()] == [2.0, 2.0, 3.0]
    assert rows[detector.AUTHORS]["training_images_per_s"] == pytest.approx(2 / 3)


def test_what_the_page_says_of_the_schedules_cost_is_what_its_commands_cost():
    import schedule

    page = (ROOT / "book" / "choices.md").read_text(encoding="utf-8").replace("\\\n", "")
    commands = [" ".join(line.split()) for line in re.findall(r"^python benchmarks/schedule.*$", page, re.MULTILINE)]
    assert len(commands) == 2 and all(command in " ".join(schedule.__doc__.split()) for command in commands)
    said = " ".join(page.split())
    for command in commands:
        given = {option: words for option, *words in (part.split() for part in command.split("--")[1:])}
        size, enlarge = int(given["size"][0]), int(given["enlarge"][0])
        passes, seeds = sum(map(int, given["passes"])), len(given["seeds"])
        settings = schedule.schedules(given["network"][0], size, enlarge).values()
        images = passes * seeds * sum(((s.resize_px or size) / size) ** 2 for s in settings)
        assert f"{passes:,} × {seeds} ×" in said and f"= {images / 1e6:.1f} M" in said
        assert f" {images / 160 / 3600:.0f} hours" in said


def test_the_denoisers_step_is_that_of_the_package(tmp_path):
    import ldm

    from companion import geometry, params, training
    from companion.diffusion import autoencoder as autoencoders
    from companion.diffusion import train
    from companion.diffusion.denoiser import Denoiser

    torch.set_num_threads(1)
    machine = training.Compute(torch.device("cpu"), torch.float32, 7)
    patches = ellipse_patches(6, 32)
    network = autoencoders.Autoencoder(
        autoencoders.configuration(params.Autoencoder(channels=[8, 8], codes=16), (128, 30))
    )
    autoencoder = autoencoders.freeze(network)
    asked = params.Denoiser(
        stem=1, channels=[16, 16], attention_factors=[], steps=4, batch_size=3, warmup_steps=2, mask_dropout=0.3,
        defect_weight=2.0, prediction="v_prediction", loss="l2",
    )  # fmt: skip
    theirs, log = train.get_denoiser(
        patches, autoencoder, asked, machine=machine, name="test", folder=tmp_path, every=4
    )
    with machine.global_seed("test", "denoiser", "weights"):
        denoiser = Denoiser(theirs.config)
    latents = torch.stack([
        autoencoders.encode_all(autoencoder, geometry.symmetry(patches.images, code), train.ENCODE_BATCH)
        for code in patches.symmetries
    ])  # fmt: skip
    label_maps = torch.from_numpy(patches.label_maps())
    step, average = ldm.companion_training(denoiser, latents, label_maps, asked, machine, "test")
    losses = [step(i)["l2"].item() for i in range(4)]
    assert losses == log["l2"].tolist()
    ours, expected = average.module.state_dict(), theirs.state_dict()
    assert ours.keys() == expected.keys() and all(torch.equal(ours[name], expected[name]) for name in ours)


@pytest.mark.parametrize("asked", [{"sampler": "ddim", "eta": 1.0}, {"sampler": "dpm-solver++", "noise": "measured"}])
def test_latent_diffusion_is_timed_in_training_and_by_whole_images(results, monkeypatch, asked):
    import ldm

    from companion.config import profile as params, training
    from companion.diffusion import sample

    drawn, denoise = [], sample._denoise

    def watched(*arguments):
        drawn.append((arguments[5].sampler, arguments[5].steps, len(arguments[2])))
        return denoise(*arguments)

    monkeypatch.setattr(sample, "_denoise", watched)
    sampling = params.Sampling(steps=3, **asked)
    machine = training.Compute(torch.device("cpu"), torch.float32, 7)
    rows = ldm.measure("tiny", 32, 2, machine, sampling, rounds=1)
    assert all(row[way] > 0 for row in rows for way in ("reference", "companion"))
    assert drawn == [(asked["sampler"], 2, 2), (asked["sampler"], 3, 2)], (
        "warmed up, then a whole batch of the profile's"
    )
    minutes = ldm.sampling_minutes(rows)
    assert minutes[0]["companion"] == pytest.approx(10_000 / rows[-1]["companion"] / 60)
    assert ("noise put back" in minutes[0]["minutes"]) == ("noise" in asked)
    more = {"patch_px": 32, "batch": 2, "precision": "float32", "compile": False, "threads": 1, "rounds": 1}
    measurements.record("ldm", preset="tiny", profile="smoke", **more, measured=[*rows, *minutes])
    shown = measurements.fragments()["speed_diffusion"]
    assert f"| minutes: 10,000 images, {asked['sampler']}, 3 steps" in shown and "by calculation" in shown
    assert "ldm.py --preset tiny --profile smoke --batch 2 --rounds 1`" in shown


def test_what_does_not_fit_into_memory_is_undefined(results):
    import ldm

    calls = []

    def too_large():
        calls.append(1)
        raise torch.OutOfMemoryError("out of memory: tried to allocate 1 TB\nmore")

    assert math.isnan(ldm._seconds(too_large, torch.device("cpu"), 3)) and len(calls) == 1
    assert 0.01 < ldm._seconds(lambda: time.sleep(0.01), torch.device("cpu"), 3) < 1

    def too_large_in_sampling():
        with enough_memory("sampling"):
            too_large()

    assert math.isnan(ldm._seconds(too_large_in_sampling, torch.device("cpu"), 3)) and len(calls) == 2

    def refused():
        raise CompanionError("a mask of the wrong size")

    with pytest.raises(CompanionError):
        ldm._seconds(refused, torch.device("cpu"), 3)
    ran = []
    ldm._seconds(lambda: ran.append("all"), torch.device("cpu"), 2, lambda: ran.append("less"))
    assert ran == ["less", "all", "all"]
    names = ("autoencoder", "denoiser", "evaluation", "decoding", "sampling, ddim")
    rates = [{"patches per second": name, "reference": 100.0, "companion": 400.0, "times": 4.0} for name in names]
    rates[-1] |= {"reference": math.nan, "times": math.nan}
    rates[-2] |= {"reference": math.nan, "times": math.nan}
    whole, first, second = ldm.sampling_minutes(rates)
    assert math.isnan(whole["reference"]) and whole["companion"] == pytest.approx(10_000 / 400 / 60)
    assert math.isnan(first["reference"]) and second["companion"] == pytest.approx(10_000 * (201 / 400) / 60)
    setting = {"preset": "paper", "patch_px": 256, "batch": 128, "precision": "bfloat16", "compile": True, "threads": 4}
    measurements.record("ldm", **setting, measured=[*rates, whole, first, second])
    shown = measurements.fragments()["speed_diffusion"]
    assert "| decoding | undefined | 400 | undefined |" in shown and "| denoiser | 100 | 400 | 4 |" in shown
