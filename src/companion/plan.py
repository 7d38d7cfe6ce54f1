"""What a run will cost before it is started: jobs, hours and disk, from measured throughputs and from what is done."""

from __future__ import annotations

import shutil
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from companion import paths, provenance, stages
from companion.params import Profile

DEVICES = ("cpu", "h100", "a100", "v100")


def plan(profile: Profile, device: str, cores: int) -> pd.DataFrame:
    """What is done and what is left, one row per kind of notebook, in the order of the run.

    Parameters
    ----------
    device : one of `DEVICES`; where networks are trained. Everything else runs on processor cores.
    cores : processor cores for all jobs together

    Returns
    -------
    notebook, stages, done, each_s (seconds of one stage, NaN where nothing was measured), left_s (elapsed time of
    those that are left), disk_mib (of all its stages), from ("this run", "measured elsewhere", "assumed" or
    "not measured")
    """
    states = stages.states(profile)
    kinds: dict[str, list[stages.Stage]] = {}
    for stage in stages.matrix(profile):
        kinds.setdefault(stage.kind.name, []).append(stage)
    rows = []
    for members in kinds.values():
        kind, done = members[0].kind, [s for s in members if states[s.address] == []]
        # A GPU is shared by one job at a time; a job on the CPU has `threads` cores.
        side_by_side = 1 if kind.trained and device != "cpu" else max(1, cores // profile.threads)
        stamps = [stamp for s in members if (stamp := provenance.read_stamp(s.folder))]
        same = [s["wall_s"] for s in stamps if not kind.trained or s["device"].startswith("CPU") == (device == "cpu")]
        each = sum(same) / len(same) if same else _seconds(members[0], device)
        source = "this run" if same else _source(members[0], device) if each == each else "not measured"
        each += _figures()["start_s"]
        left = len(members) - len(done)
        rounds = -(-left // min(side_by_side, len(members)))
        rows.append((kind.notebook, len(members), len(done), each, rounds * each if left else 0.0,
                     sum(_mib(s) for s in members), source))  # fmt: skip
    columns = ["notebook", "stages", "done", "each_s", "left_s", "disk_mib", "from"]
    return pd.DataFrame(rows, columns=columns)


def device_here(profile: Profile) -> str:
    """Where this machine trains the networks of a profile: one of `DEVICES`, or "gpu" for a GPU of another make."""
    if profile.device == "cpu" or shutil.which("nvidia-smi") is None:
        return "cpu"
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout.lower()
    return next((name for name in DEVICES if name in listed), "gpu" if listed.startswith("gpu") else "cpu")


def free_mib() -> float:
    """Free space where results go, MiB."""
    folder = paths.runs()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free / 2**20


def _seconds(stage: stages.Stage, device: str) -> float:
    """Seconds of one stage from measured throughputs; NaN where there is none for its network on this device."""
    profile, kind = stage.profile, stage.kind.name
    if not stage.kind.trained:
        return float(_figures()["seconds"].get(kind, float("nan")))
    diffusion, detection, size = profile.diffusion, profile.detection, profile.patches.size
    denoiser = _network(diffusion.denoiser.channels)
    match kind:
        case "diffusion":
            passes = diffusion.denoiser.steps * diffusion.denoiser.batch_size
            trained_here = diffusion.autoencoder.weights is None  # of an autoencoder's training nothing is measured
            return float("nan") if trained_here else passes / _rate("denoiser training", denoiser, device, size)
        case "generated":
            passes = profile.masks.n_patches * profile.sampling.steps
            return passes / _rate("denoiser forward", denoiser, device, size)
        case "detector":
            side = detection.resize_px or size
            training = (
                detection.steps * detection.batch_size / _rate("detector training", detection.network, device, side)
            )
            found = _rate("detection", detection.network, device, side)
            # Finding defects is seconds on a GPU, where it has not been measured.
            return training + ((profile.n_test + profile.n_val) * _crops(profile) / found if found == found else 0)
        case _:
            return float("nan")


def _source(stage: stages.Stage, device: str) -> str:
    """ "assumed" for what rests on an assumption of the figures' file."""
    network = _figures()["images_per_s"]["detector training"].get(stage.profile.detection.network, {})
    assumed = device in ("a100", "v100") or (stage.kind.name == "detector" and network.get("assumed"))
    return "assumed" if stage.kind.trained and assumed else "measured elsewhere"


def _rate(work: str, network: str, device: str, size: int) -> float:
    row = _figures()["images_per_s"][work].get(network, {})
    share = _figures()["of_h100"].get(device)
    rate = row.get(device) if share is None else share * row["h100"] if "h100" in row else None
    return rate * (row["px"] / size) ** 2 if rate else float("nan")


def _mib(stage: stages.Stage) -> float:
    """Disk of one stage: as it lies there, else its arrays and weights."""
    if provenance.read_stamp(stage.folder):
        return sum(p.stat().st_size for p in stage.folder.rglob("*") if p.is_file()) / 2**20
    profile, millions = stage.profile, _figures()["million_parameters"]
    patch = profile.patches.size**2 / 2**20  # one array of uint8
    match stage.kind.name:
        case "micrographs":
            return 2 * patch * _crops(profile) * (sum(profile.sizes) + profile.n_test + profile.n_val)
        case "masks":
            return patch * profile.masks.n_patches
        case "generated":
            return 2 * patch * profile.masks.n_patches
        case "diffusion":
            return millions.get(_network(profile.diffusion.denoiser.channels), 0) * 4e6 / 2**20
        case "detector":
            return millions[profile.detection.network] * 4e6 / 2**20
        case _:
            return 1.0


def _crops(profile: Profile) -> int:
    """Patches per micrograph of the phantom; other data sets are taken to be like it."""
    cut = profile.patches
    return (max(0, profile.phantom.size_px - cut.size) // cut.test_stride + 1) ** 2


def _network(channels: list[int]) -> str:
    return "-".join(map(str, channels))


@lru_cache(maxsize=1)
def _figures() -> dict[str, Any]:
    return yaml.safe_load(Path(__file__).with_name("throughputs.yaml").read_text(encoding="utf-8"))
