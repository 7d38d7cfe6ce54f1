"""What a run will cost before it is started: jobs, hours and disk, from measured throughputs and from what is done."""

from __future__ import annotations

import shutil
import subprocess

import pandas as pd

from companion import estimates, paths, provenance, stages
from companion.config.profile import Profile

DEVICES = ("cpu", "h100", "h200", "a100", "v100")
States = dict[str, list[str] | None]  # of `stages.states`


def plan(profile: Profile, device: str, cores: int, states: States | None = None) -> pd.DataFrame:
    """What is done and what is left, one row per kind of notebook, in the order of the run.

    Parameters
    ----------
    device : one of `DEVICES`; where networks are trained. Everything else runs on processor cores.
    cores : processor cores for all jobs together
    states : of `stages.states`, where they are known already: finding them reads every file of the run

    Returns
    -------
    notebook, stages, done, each_s (seconds of one stage, their mean, NaN where nothing was measured), left_s (elapsed
    time of those that are left), disk_mib (of all its stages, and while they run of their checkpoints), from ("this
    run", "measured elsewhere", "assumed" or "not measured")
    """
    states = stages.states(profile) if states is None else states
    kinds: dict[str, list[stages.Stage]] = {}
    for stage in stages.matrix(profile):
        kinds.setdefault(stage.kind.name, []).append(stage)
    rows = []
    for members in kinds.values():
        kind, left = members[0].kind, [s for s in members if states[s.address] != []]
        together = min(side_by_side(profile, kind, device, cores), len(members))
        stamps = [stamp for s in members if (stamp := provenance.read_stamp(s.folder))]
        same = [s["wall_s"] for s in stamps if not kind.trained or s["device"].startswith("CPU") == (device == "cpu")]
        if same:  # as it was then, with as many jobs side by side
            times, source = [sum(same) / len(same)] * len(members), "this run"
        else:
            found = [estimates.seconds(stage, device) for stage in members]
            # Rates are those of a whole GPU, which detectors side by side share.
            shared = together if kind.trained and device != "cpu" else 1
            times = [shared * spent for spent, _ in found]
            source = "assumed" if any(assumed for _, assumed in found) else "measured elsewhere"
        cost = {s.address: t + estimates.figures()["start_s"] for s, t in zip(members, times, strict=True)}
        each = sum(cost.values()) / len(cost)
        rounds = -(-len(left) // together)
        rest = rounds * sum(cost[s.address] for s in left) / len(left) if left else 0.0
        disk = sum(_mib(s) for s in members) + (together * estimates.checkpoint_mib(members[0]) if left else 0.0)
        source = source if each == each else "not measured"
        rows.append((kind.notebook, len(members), len(members) - len(left), each, rest, disk, source))
    columns = ["notebook", "stages", "done", "each_s", "left_s", "disk_mib", "from"]
    return pd.DataFrame(rows, columns=columns)


def side_by_side(profile: Profile, kind: stages.Kind, device: str, cores: int) -> int:
    """Jobs of one kind at a time: each has `threads` cores, and on a GPU only detectors share it."""
    room = max(1, cores // profile.threads)
    if not kind.trained or device == "cpu":
        return room
    return min(room, profile.jobs_per_device) if kind.name == "detector" else 1


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


def _mib(stage: stages.Stage) -> float:
    """Disk of one stage: as it lies there, else as estimated."""
    if provenance.read_stamp(stage.folder):
        return sum(p.stat().st_size for p in stage.folder.rglob("*") if p.is_file()) / 2**20
    return estimates.mib(stage)
