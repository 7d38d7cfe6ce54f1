"""How fast the detector is, the backends side by side: ``python benchmarks/detector.py [--network r50-fpn]``.

Every backend trains the same network from the same weights on the same batches of phantom patches; they take turns,
so that whatever else the machine does meets them alike. detectron2 takes part where it is installed and builds the
network. The table is printed last and appended to ``benchmarks/results.jsonl``.

On a GPU::

    python benchmarks/detector.py --network r50-fpn --size 256 --batch 64 --bfloat16 --compile --authors
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import tempfile
import time
from pathlib import Path

import torch

from companion.data.cutting import cut_patches
from companion.data.dataset import load_dataset
from companion.data.patches import Patches
from companion.detection.model import build
from companion.detection.recipes import recipe
from companion.measurements import record
from companion.params import Detection
from companion.params_phantom import Phantom
from companion.phantom.render import render_dataset

SEED = 1
COMPILED = "batched, compiled"


def phantom_patches(size: int) -> Patches:
    """Patches of four phantom micrographs."""
    with tempfile.TemporaryDirectory() as folder:
        render_dataset(Phantom(n_images=4), SEED, Path(folder) / "set")
        dataset = load_dataset(Path(folder) / "set")
        return cut_patches(dataset, [m.file_name for m in dataset.micrographs], size, size // 2, 0.25, range(8))[0]


class Timed:
    """A backend with its optimiser and the times of its steps."""

    def __init__(
        self, settings: Detection, patches: Patches, device: torch.device, autocast: bool, compiled: bool
    ) -> None:
        torch.manual_seed(SEED)
        self.device, self.autocast, self.batch_size = device, autocast, settings.batch_size
        self.detector = build(settings, len(patches.classes))
        self.detector.network.to(device)
        if compiled:
            self.detector.compile()
        self.recipe = recipe(
            "EXP", {"real": patches}, batch_size=settings.batch_size, generated_share=0, root_seed=SEED,
            names=("benchmark",),
        )  # fmt: skip
        self.optimizer = torch.optim.AdamW(self.detector.network.parameters(), lr=1e-3, fused=True)
        self.training: list[float] = []
        self.detection: list[float] = []

    def step(self, number: int) -> None:
        batch = self.recipe.batch(number)
        began = self._now()
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            losses = self.detector.losses(batch.to(self.device))
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
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
    sizes = [8, 16, 32] if given.network != "r50-fpn" else [8, 16, 32, 64, 128]
    common = Detection(network=given.network, anchor_sizes_px=sizes, batch_size=given.batch)
    rows = {"torchvision": {"backend": "torchvision"}, "batched": {}}
    if given.compile:
        rows[COMPILED] = {}
    if given.network == "r50-fpn" and importlib.util.find_spec("detectron2"):
        rows["detectron2"] = {"backend": "detectron2"}
        if given.authors:
            rows["authors' recipe"] = {"backend": "detectron2", "batch_size": 2, "resize_px": 800}
    return {name: common.model_copy(update=changes) for name, changes in rows.items()}


def measure(given: argparse.Namespace, patches: Patches, device: torch.device, threads: int) -> dict[str, dict]:
    """Times of every backend, by name."""
    torch.set_num_threads(threads)
    timed = {
        name: Timed(s, patches, device, given.bfloat16, name == COMPILED) for name, s in contestants(given).items()
    }
    for number in range(given.warm_up + given.steps):
        for backend in timed.values():
            backend.step(number)
    for number in range(given.steps + 1):
        for backend in timed.values():
            backend.detect(number)
    rows = {}
    for name, backend in timed.items():
        steps, found = backend.training[given.warm_up :], backend.detection[1:]
        per_image = [t / backend.batch_size for t in steps]
        theirs = [t / given.batch for t in timed["torchvision"].training[given.warm_up :]]
        rows[name] = {
            "step_median_s": statistics.median(steps), "step_fastest_s": min(steps),
            "training_images_per_s": 1 / statistics.median(per_image),
            "detection_images_per_s": backend.batch_size / statistics.median(found),
            # Step by step, so that a neighbour that slows both does not count.
            "speed_against_torchvision": statistics.median(t / o for t, o in zip(theirs, per_image, strict=True)),
        }  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="tiny", choices=["tiny", "compact", "r50-fpn"])
    parser.add_argument("--size", type=int, default=128, help="side of a patch, px")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each backend")
    parser.add_argument(
        "--warm-up", type=int, default=20, help="untimed steps, after which proposals are worth sampling"
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--bfloat16", action="store_true")
    parser.add_argument("--compile", action="store_true", help="also time the compiled backend")
    parser.add_argument("--authors", action="store_true", help="also time batch 2 at 800 px in detectron2")
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    patches = phantom_patches(given.size)
    measured = {str(n): measure(given, patches, device, n) for n in given.threads}
    made = record("detector", setting={**vars(given), "device_type": device.type}, measured=measured)
    precision = "bfloat16" if given.bfloat16 else "float32"
    print(f"{given.network}, {given.size} px, batch {given.batch}, {precision}, {made['device']}")
    head = f"{'threads':<9}{'backend':<19}{'step, median':>14}{'fastest':>10}{'training':>16}{'detection':>16}"
    print(f"{head}{'to torchvision':>16}")
    for threads, rows in measured.items():
        for name, row in rows.items():
            print(
                f"{threads:<9}{name:<19}{row['step_median_s']:>12.3f} s{row['step_fastest_s']:>8.3f} s"
                f"{row['training_images_per_s']:>9.1f} img/s{row['detection_images_per_s']:>10.1f} img/s"
                f"{row['speed_against_torchvision']:>14.2f} x"
            )


if __name__ == "__main__":
    main()
