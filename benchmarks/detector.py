"""How fast the detector is, the backends side by side: ``python benchmarks/detector.py [--network r50-fpn]``.

Every backend trains the same network from the same weights on the same batches of phantom patches; they take turns,
so that whatever else the machine does meets them alike. Prints a table and appends it to ``benchmarks/results.jsonl``.
detectron2 takes part where it is installed and builds the network.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from companion import provenance
from companion.data.cutting import cut_patches
from companion.data.dataset import load_dataset
from companion.data.patches import Patches
from companion.detection.model import Detector, build
from companion.detection.recipes import Recipe, recipe
from companion.params import Detection
from companion.params_phantom import Phantom
from companion.phantom.render import render_dataset

SEED = 1


def phantom_patches(size: int) -> Patches:
    """Patches of four phantom micrographs."""
    with tempfile.TemporaryDirectory() as folder:
        render_dataset(Phantom(n_images=4), SEED, Path(folder) / "set")
        dataset = load_dataset(Path(folder) / "set")
        return cut_patches(dataset, [m.file_name for m in dataset.micrographs], size, size // 2, 0.25, range(8))[0]


class Timed:
    """A backend with its optimiser and the times of its steps."""

    def __init__(self, detector: Detector, device: torch.device, autocast: bool) -> None:
        self.detector, self.device, self.autocast = detector, device, autocast
        detector.network.to(device)
        self.optimizer = torch.optim.AdamW(detector.network.parameters(), lr=1e-3, fused=True)
        self.training: list[float] = []
        self.detection: list[float] = []

    def step(self, made: Recipe, number: int) -> None:
        batch = made.batch(number)
        began = self._now()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            losses = self.detector.losses(batch.to(self.device))
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.training.append(self._now() - began)

    def detect(self, made: Recipe, number: int) -> None:
        images = made.batch(number).images
        began = self._now()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            self.detector.detect(images)
        self.detection.append(self._now() - began)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="tiny", choices=["tiny", "compact", "r50-fpn"])
    parser.add_argument("--size", type=int, default=128, help="side of a patch, px")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each backend")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bfloat16", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    sizes = [8, 16, 32] if given.network != "r50-fpn" else [8, 16, 32, 64, 128]
    patches = phantom_patches(given.size)
    made = recipe(
        "EXP", {"real": patches}, batch_size=given.batch, generated_share=0, root_seed=SEED, names=("benchmark",)
    )
    backends = ["torchvision", "batched"]
    if given.network == "r50-fpn" and importlib.util.find_spec("detectron2"):
        backends.append("detectron2")
    timed = {}
    for name in backends:
        torch.manual_seed(SEED)
        settings = Detection(backend=name, network=given.network, anchor_sizes_px=sizes, batch_size=given.batch)
        timed[name] = Timed(build(settings, len(patches.classes)), device, given.bfloat16)
    warm_up = 20  # steps after which there are proposals worth sampling
    for number in range(warm_up + given.steps):
        for backend in timed.values():
            backend.step(made, number)
    for number in range(given.steps):
        for backend in timed.values():
            backend.detect(made, number)
    print(f"{given.network}, {given.size} px, batch {given.batch}, {device.type}, {torch.get_num_threads()} thread(s)")
    print(f"{'backend':<14}{'step, median':>14}{'fastest':>10}{'training':>16}{'detection':>16}{'to torchvision':>16}")
    rows = {}
    for name, backend in timed.items():
        steps, found = backend.training[warm_up:], backend.detection
        rows[name] = {
            "step_median_s": statistics.median(steps), "step_fastest_s": min(steps),
            "training_images_per_s": given.batch / statistics.median(steps),
            "detection_images_per_s": given.batch / statistics.median(found),
        }  # fmt: skip
        # Step by step, so that a neighbour that slows both does not count.
        pairs = zip(timed["torchvision"].training[warm_up:], steps, strict=True)
        rows[name]["speed_against_torchvision"] = statistics.median(theirs / ours for theirs, ours in pairs)
        row = rows[name]
        print(
            f"{name:<14}{row['step_median_s']:>12.3f} s{row['step_fastest_s']:>8.3f} s"
            f"{row['training_images_per_s']:>9.1f} img/s{row['detection_images_per_s']:>10.1f} img/s"
            f"{row['speed_against_torchvision']:>14.2f} x"
        )
    record = {"benchmark": "detector", "date": time.strftime("%Y-%m-%d"), **provenance.environment(),
              "setting": {**vars(given), "device_type": device.type}, "measured": rows}  # fmt: skip
    with open(Path(__file__).with_name("results.jsonl"), "a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
