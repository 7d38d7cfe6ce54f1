"""What one stage costs before it has run: its passes through networks and its other work, over measured rates."""

from __future__ import annotations

import math
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from companion import measurements, stages
from companion.params import Profile

JUDGED = 1000  # patches of a set that quality and faithfulness look at most (diffusion.quality.MOST)
LDM_ROWS = {  # work -> row of benchmarks/ldm.py, and whose channels tell the network
    "autoencoder training": ("autoencoder, training crops", "autoencoder"),
    "denoiser training": ("denoiser, training", "denoiser"),
    "denoiser forward": ("denoiser, one evaluation in sampling", "denoiser"),
    "decoding": ("autoencoder, decoding", "denoiser"),
}
DETECTOR_COLUMNS = {"detector training": "training_images_per_s", "detection": "detection_images_per_s"}


class Passes(NamedTuple):
    """Images of `px` px that go through a network: kind of work, network, how many."""

    work: str
    network: str
    images: float
    px: int


class Rate(NamedTuple):
    """Images per second (NaN: not measured), and whether the figure rests on an assumption."""

    images_per_s: float
    assumed: bool


def seconds(stage: stages.Stage, device: str) -> tuple[float, bool]:
    """Seconds of one stage without its start (NaN where a rate was not measured), and whether any was assumed."""
    if not stage.kind.trained:
        return _analysis(stage), False
    spent, assumed = _processor(stage), False
    for work, network, images, px in passes(stage):
        if images:
            found = rate(work, network, device, px, stage.profile)
            spent, assumed = spent + images / found.images_per_s, assumed or found.assumed
    return spent, assumed and not math.isnan(spent)


def passes(stage: stages.Stage) -> list[Passes]:
    """What a stage that trains or samples sends through networks."""
    profile, size = stage.profile, stage.profile.patches.size
    tested = profile.n_test * crops(profile)
    match stage.kind.name:
        case "diffusion":
            return _generator(profile, profile.diffusion.denoiser.steps, profile.diffusion.denoiser.batch_size, size)
        case "generated":
            sampling, n = profile.sampling, profile.masks.n_patches
            # Three samplers at each number of steps, on the same masks.
            compared = min(sampling.study_patches, n)
            studied = 3 * sum(sampling.study_steps) * compared
            drawn = n if stage.keys["masks"] != "render" else 0
            decoded = drawn + 3 * len(sampling.study_steps) * compared
            return _drawn(profile, drawn * sampling.steps + studied, decoded, size)
        case "detector":
            found = tested + profile.n_val * crops(profile)
            return _detector(profile, profile.detection.steps * profile.detection.batch_size, found, size)
        case "faithfulness":
            n = profile.masks.n_patches
            every = n if n > JUDGED else 0
            return _detector(profile, 0, 2 * tested + 2 * min(n, JUDGED) + every, size)
        case _:
            return _study(stage)


def _study(stage: stages.Stage) -> list[Passes]:
    profile, own = stage.profile, stage.profile.extensions
    size, seeds = own.patch_px, len(own.seeds)
    each = (own.image_px // size) ** 2  # patches of a micrograph
    generators, pools, detectors, tests = {
        "bias": (1 + len(own.annotators), 1 + len(own.annotators), 2 * seeds * (1 + len(own.annotators)), 1),
        "feedback": (1, 3 * seeds, 3 * seeds, 1),
        "shift": (1, 1, 2 * seeds, 1 + len(own.shifts)),
    }[stage.kind.name]
    found = detectors * (own.n_val + tests * own.n_test) * each
    drawn = pools * own.n_generated
    return [
        *_generator(profile, generators * own.denoiser_steps, own.denoiser_batch, size, generators),
        *_drawn(profile, drawn * own.sampling_steps, drawn, size),
        *_detector(profile, detectors * own.detector_steps * own.detector_batch, found, size),
    ]


def _generator(profile: Profile, steps: int, batch: int, size: int, networks: int = 1) -> list[Passes]:
    auto = profile.diffusion.autoencoder
    trained = 0 if auto.weights else networks * auto.steps * auto.batch_size
    return [
        Passes("autoencoder training", _name(auto.channels), trained, auto.crop_px),
        Passes("denoiser training", _name(profile.diffusion.denoiser.channels), steps * batch, size),
    ]


def _drawn(profile: Profile, forward: float, decoded: float, size: int) -> list[Passes]:
    network = _name(profile.diffusion.denoiser.channels)
    return [Passes("denoiser forward", network, forward, size), Passes("decoding", network, decoded, size)]


def _detector(profile: Profile, trained: float, found: float, size: int) -> list[Passes]:
    settings = profile.detection
    network = f"{settings.network} in detectron2" if settings.backend == "detectron2" else settings.network
    side = settings.resize_px or size
    return [Passes("detector training", network, trained, side), Passes("detection", network, found, side)]


def rate(work: str, network: str, device: str, px: int, profile: Profile) -> Rate:
    """Images of side `px` per second that a network works through on a device.

    A record in benchmarks/results.jsonl counts before throughputs.yaml; a GPU that neither knows is scaled from the
    H100.
    """
    share = figures()["of_h100"].get(device)
    for name, factor in ((device, 1.0), *([("h100", share)] if share else [])):
        row, recorded = figures()["images_per_s"][work].get(network, {}), _recorded(work, network, name, profile)
        if found := recorded or ((row[name], row["px"]) if name in row else None):
            assumed = name != device or (recorded is None and row.get("assumed", False))
            return Rate(factor * found[0] * (found[1] / px) ** 2, assumed)
    return Rate(math.nan, False)


def _recorded(work: str, network: str, device: str, profile: Profile) -> tuple[float, int] | None:
    """(images per second, side) of the newest record of this network on this device."""

    def here(record: measurements.Record) -> bool:
        return device in str(record["device"]).lower()

    if work in DETECTOR_COLUMNS:
        base, _, other = network.partition(" in ")
        found = measurements.last("detector", lambda r: here(r) and r["setting"]["network"] == base)
        backend = other or profile.detection.backend
        compiled = profile.detection.compile and f"{backend}, compiled"
        for rows in [] if found is None else [found["measured"].get(str(profile.threads)), *found["measured"].values()]:
            for name in (compiled, backend):
                if rows and name in rows:
                    return rows[name][DETECTOR_COLUMNS[work]], found["setting"]["size"]
        return None
    row, part = LDM_ROWS[work]
    named = [name for name, own in figures()["presets"].items() if own[part] == network]
    found = measurements.last("ldm", lambda r: here(r) and r["preset"] in named)
    rows = [] if found is None else [r["companion"] for r in found["measured"] if r.get("patches per second") == row]
    return (rows[0], found["patch_px"]) if found and rows else None


def crops(profile: Profile) -> int:
    """Patches per micrograph of the phantom; other data sets are taken to be like it."""
    cut = profile.patches
    return (max(0, profile.phantom.size_px - cut.size) // cut.test_stride + 1) ** 2


def training_patches(profile: Profile, n_train: int) -> int:
    """Training patches of `n_train` micrographs, in all their symmetries."""
    cut = profile.patches
    side = max(0, profile.phantom.size_px - cut.size) // cut.train_stride + 1
    return n_train * side**2 * len(cut.symmetries)


def _processor(stage: stages.Stage) -> float:
    """Seconds of processor cores in a stage that trains or samples."""
    profile, each = stage.profile, figures()["processor_s"]
    mpx = profile.patches.size**2 / 2**20
    n, tested = profile.masks.n_patches, profile.n_test * crops(profile)
    few = min(n, JUDGED)
    phantom = profile.dataset == "phantom"
    match stage.kind.name:
        case "generated":
            train = training_patches(profile, stage.keys["n_train"])
            known = train * len(profile.patches.symmetries)
            # Judged: generated, decoded, held-out and training patches, and painted ones. Copies: every image again.
            looked = few * (1 + phantom) + min(200, train) + min(tested, JUDGED)
            compared = known * (looked + n + tested) * each["compared"] + (5 + phantom) * known * mpx * each["reduced"]
            judged = (looked + min(train, JUDGED)) * mpx * each["judged"] + few**2 * each["resampled"] + each["figures"]
            return compared + judged + n * mpx * (each["noised"] + phantom * each["painted"])
        case "faithfulness":
            return mpx * (tested * each["noised"] + phantom * few * each["painted"])
        case "bias" | "feedback" | "shift":
            own = profile.extensions
            sets = {"bias": 1 + len(own.annotators), "feedback": 1, "shift": 1 + len(own.shifts)}[stage.kind.name]
            return sets * (own.n_train + own.n_val + own.n_test) * own.image_px**2 / 2**20 * each["drawn"]
        case _:
            return 0.0


def _analysis(stage: stages.Stage) -> float:
    """Seconds of a stage that trains nothing; NaN where its notebook has not been measured."""
    profile, line = stage.profile, figures()["seconds"].get(stage.kind.name)
    if line is None:
        return math.nan
    micrograph = profile.phantom.size_px**2 / 2**20
    sizes = {
        "micrographs": lambda: profile.phantom.n_images * micrograph,  # Mpx
        "training": lambda: stage.keys["n_train"] * micrograph,  # Mpx
        "masks": lambda: profile.masks.n_patches * profile.patches.size**2 / 2**20,  # Mpx
        # Patches, each by each detector.
        "predicted": lambda: _detectors(profile) * (profile.n_test + profile.n_val) * crops(profile),
    }
    return line["base"] + (line["each"] * sizes[line["of"]]() if "of" in line else 0.0)


def _detectors(profile: Profile) -> int:
    return sum(stage.kind.name == "detector" for stage in stages.matrix(profile))


def mib(stage: stages.Stage) -> float:
    """Disk of one finished stage [MiB]: its arrays and weights."""
    profile, patch = stage.profile, stage.profile.patches.size**2 / 2**20  # MiB of one array of uint8
    match stage.kind.name:
        case "micrographs":
            trained = sum(training_patches(profile, n) for n in profile.sizes)
            return 2 * patch * (trained + (profile.n_test + profile.n_val) * crops(profile))
        case "masks":
            return patch * profile.masks.n_patches
        case "generated":
            return 2 * patch * profile.masks.n_patches
        case "diffusion" | "detector":
            return weights_mib(stage)
        case _:
            return 1.0


def weights_mib(stage: stages.Stage) -> float:
    """Weights that a stage trains [MiB]; of an unknown denoiser 0."""
    network = stage.profile.detection.network
    if stage.kind.name != "detector":
        network = _name(stage.profile.diffusion.denoiser.channels)
    return figures()["million_parameters"].get(network, 0) * 4e6 / 2**20


def checkpoint_mib(stage: stages.Stage) -> float:
    """What a stage keeps on the disk while it runs [MiB], and removes when it ends.

    A training's weights, both moments of AdamW and, of a denoiser, the averaged weights; generated images so far.
    While a checkpoint is written, the one before it is there, too.
    """
    match stage.kind.name:
        case "diffusion" | "bias" | "feedback" | "shift":
            return 2 * 4 * weights_mib(stage)
        case "detector":
            return 2 * 3 * weights_mib(stage)
        case "generated":
            return stage.profile.masks.n_patches * stage.profile.patches.size**2 / 2**20
        case _:
            return 0.0


def _name(channels: list[int]) -> str:
    return "-".join(map(str, channels))


@lru_cache(maxsize=1)
def figures() -> dict[str, Any]:
    """src/companion/throughputs.yaml."""
    return yaml.safe_load(Path(__file__).with_name("throughputs.yaml").read_text(encoding="utf-8"))
