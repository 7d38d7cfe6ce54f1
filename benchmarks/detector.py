"""How fast the detector is, the backends side by side: ``python benchmarks/detector.py [--preset native]``.

Every backend trains the same network from the same weights on the same batches of phantom patches, the making of the
batches included; they take turns, so that whatever else the machine does meets them alike. detectron2 takes part
where it is installed and builds the network. ``--authors`` adds the authors' recipe: detectron2, batch 2 at 800 px, in
float32 with TF32, whatever the precision of the others; float32 is TF32 on a GPU for all, as in a run. The table is
printed last and appended to ``benchmarks/results.jsonl``.

On a GPU (everything is timed, and compiled, once for each number after ``--threads``)::

    python benchmarks/detector.py --preset native --size 256 --batch 64 --bfloat16 --compile --authors --threads 4

Whether seeds train faster side by side than one after the other (``jobs_per_device`` of a profile) says::

    python benchmarks/detector.py --preset compact --size 256 --bfloat16 --compile --threads 4 --processes 4
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from companion.micrographs.cutting import cut_patches
from companion.micrographs.dataset import load_dataset
from companion.micrographs.patches import Patches
from companion.detection.model import build
from companion.detection.presets import PRESETS
from companion.detection.recipes import recipe
from companion.detection.train import optimizer_of
from companion.measurements import record
from companion.config.profile import Detection
from companion.config.phantom import Phantom
from companion.phantom.render import render_dataset
from companion.training import set_learning_rate

SEED = 1
COMPILED = "batched, compiled"
AUTHORS = "authors' recipe"


def phantom_patches(size: int) -> Patches:
    """Patches of four phantom micrographs."""
    with tempfile.TemporaryDirectory() as folder:
        render_dataset(Phantom(n_images=4), SEED, Path(folder) / "set")
        dataset = load_dataset(Path(folder) / "set")
        return cut_patches(dataset, [m.file_name for m in dataset.micrographs], size, size // 2, 0.25, range(8))[0]


@dataclass
class Timed:
    """A backend with its optimiser and the seconds that its training steps and detections took."""

    settings: Detection
    patches: Patches
    device: torch.device
    autocast: bool
    training: list[float] = field(default_factory=list)
    detection: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(SEED)
        self.detector = build(self.settings, len(self.patches.classes))
        self.detector.network.to(self.device)
        if self.settings.compile:
            self.detector.compile()
        self.recipe = recipe(
            "EXP", {"real": self.patches}, batch_size=self.settings.batch_size, generated_share=0, root_seed=SEED,
            names=("benchmark",),
        )  # fmt: skip
        self.optimizer = optimizer_of(self.detector, self.settings)
        # The preset's peak would make a network without warm-up diverge; the time of a step does not depend on it.
        set_learning_rate(self.optimizer, 0.1 * self.settings.learning_rate)

    def step(self, number: int) -> None:
        began = self._now()
        batch = self.recipe.batch(number, self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            losses = self.detector.losses(batch)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()
        self.training.append(self._now() - began)

    def detect(self, number: int) -> None:
        images = self.recipe.batch(number).images
        began = self._now()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            self.detector.detect(images)
        self.detection.append(self._now() - began)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def contestants(given: argparse.Namespace) -> dict[str, Detection]:
    """Settings of every backend that can run here, by the name of its row."""
    common = PRESETS[given.preset].model_copy(update={"batch_size": given.batch} if given.batch else {})
    rows = {"torchvision": {"backend": "torchvision"}, "batched": {}}
    if given.compile:
        rows[COMPILED] = {"compile": True}
    made = {name: common.model_copy(update=changes) for name, changes in rows.items()}
    if common.network == "r50-fpn" and importlib.util.find_spec("detectron2"):
        made["detectron2"] = common.model_copy(update={"backend": "detectron2"})
        if given.authors:
            made[AUTHORS] = PRESETS["paper"].model_copy(update={"backend": "detectron2"})
    return made


def measure(given: argparse.Namespace, patches: Patches, device: torch.device, threads: int) -> dict[str, dict]:
    """Times of every backend, by name."""
    torch.set_num_threads(threads)
    timed = {
        name: Timed(s, patches, device, given.bfloat16 and name != AUTHORS) for name, s in contestants(given).items()
    }
    for number in range(given.warm_up + given.steps):
        for backend in timed.values():
            backend.step(number)
    for number in range(given.steps + 1):
        for backend in timed.values():
            backend.detect(number)
    rows = {}
    theirs = [t / timed["torchvision"].settings.batch_size for t in timed["torchvision"].training[given.warm_up :]]
    for name, backend in timed.items():
        steps, found = backend.training[given.warm_up :], backend.detection[1:]
        per_image = [t / backend.settings.batch_size for t in steps]
        rows[name] = {
            "step_median_s": statistics.median(steps), "step_fastest_s": min(steps),
            "training_images_per_s": 1 / statistics.median(per_image),
            "detection_images_per_s": backend.settings.batch_size / statistics.median(found),
            # Step by step, so that a neighbour that slows both does not count.
            "speed_against_torchvision": statistics.median(t / o for t, o in zip(theirs, per_image, strict=True)),
        }  # fmt: skip
    return rows


def side_by_side(given: argparse.Namespace, threads: int) -> dict[str, float]:
    """Training rates in images per second of the fastest backend: one process alone, and K at once in sum."""
    rates = {}
    for count in (1, given.processes):
        command = [sys.executable, __file__, *sys.argv[1:], "--threads", str(threads), "--rate-alone"]
        running = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(count)
        ]
        for process in running:  # all have warmed up (and compiled) before any is timed
            if process.stdout.readline().strip() != "ready":
                raise SystemExit(f"one of {count} trainings side by side stopped before its first timed step")
        for process in running:
            process.stdin.write("go\n")
            process.stdin.flush()
        rates[str(count)] = sum(json.loads(process.communicate()[0]) for process in running)
    return rates


def rate_alone(given: argparse.Namespace, patches: Patches, device: torch.device) -> None:
    """Say "ready", wait for a line, train as long as all do, and print images per second."""
    torch.set_num_threads(given.threads[0])
    settings = contestants(given)
    timed = Timed(settings.get(COMPILED, settings["batched"]), patches, device, given.bfloat16)
    for number in range(given.warm_up):
        timed.step(number)
    print("ready", flush=True)
    sys.stdin.readline()
    timed.training.clear()
    for number in range(given.warm_up, given.warm_up + given.steps):
        timed.step(number)
    print(json.dumps(timed.settings.batch_size * given.steps / sum(timed.training)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny", choices=PRESETS)
    parser.add_argument("--size", type=int, default=128, help="side of a patch, px")
    parser.add_argument("--batch", type=int, help="patches per step; without it the preset's")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each backend")
    parser.add_argument(
        "--warm-up", type=int, default=20, help="untimed steps, after which proposals are worth sampling"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--compile", action="store_true", help="also time the compiled backend")
    parser.add_argument("--authors", action="store_true", help="also time batch 2 at 800 px in detectron2")
    parser.add_argument("--processes", type=int, default=1, help="also time so many trainings side by side")
    parser.add_argument("--rate-alone", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as `training.compute` does
    patches = phantom_patches(given.size)
    if given.rate_alone:
        rate_alone(given, patches, device)
        return
    if PRESETS[given.preset].network == "r50-fpn" and not importlib.util.find_spec("detectron2"):
        print("detectron2 is not installed: its rows are missing", flush=True)
    measured = {str(n): measure(given, patches, device, n) for n in given.threads}
    beside = {str(n): side_by_side(given, n) for n in given.threads} if given.processes > 1 else {}
    preset = PRESETS[given.preset]
    del given.rate_alone
    setting = {**vars(given), "network": preset.network, "batch": given.batch or preset.batch_size}
    made = record(
        "detector", setting={**setting, "device_type": device.type}, measured=measured, side_by_side=beside
    )  # fmt: skip
    precision = "bfloat16" if given.bfloat16 else "float32"
    print(f"{given.preset}, {given.size} px, batch {setting['batch']}, {precision}, {made['device']}")
    head = f"{'threads':<9}{'backend':<19}{'step, median':>14}{'fastest':>10}{'training':>16}{'detection':>16}"
    print(f"{head}{'to torchvision':>16}")
    for threads, rows in measured.items():
        for name, row in rows.items():
            print(
                f"{threads:<9}{name:<19}{row['step_median_s']:>12.3f} s{row['step_fastest_s']:>8.3f} s"
                f"{row['training_images_per_s']:>9.1f} img/s{row['detection_images_per_s']:>10.1f} img/s"
                f"{row['speed_against_torchvision']:>14.2f} x"
            )
    for threads, rates in beside.items():
        for count, rate in rates.items():
            print(f"{threads} thread(s), {count} training(s) side by side: {rate:.1f} img/s in sum")


if __name__ == "__main__":
    main()
