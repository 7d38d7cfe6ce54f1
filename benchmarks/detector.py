"""How fast the detector is, beside the libraries' own: ``python benchmarks/detector.py PATCHES [--profile reference]``.

PATCHES is a patches folder of a run, e.g. ``runs/smoke/phantom/split-1/micrographs/train-n10``. Each trains the same
network from the same weights on the same batches, the making of the batches included; they take turns, so that whatever
else the machine does meets them alike. detectron2 takes part where it is installed and the network is r50-fpn. The
table is printed and appended to ``benchmarks/results.jsonl``. On a GPU::

    python benchmarks/detector.py PATCHES --profile paper --batch 16 --compile --threads 4
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import platform
import statistics
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from companion.config import load_profile
from companion.config.sections import Detection
from companion.detection.data import Detections, recipe_of
from companion.detection.model import Detector, build
from companion.detection.train import optimizer_of
from companion.micrographs.patches import Patches, load_patches
from companion.seeds import Seeds
from companion.training import Device, open_device, set_learning_rate

SEED = 1


class Library:
    """torchvision's network with its own loops over images."""

    def __init__(self, fast: Detector) -> None:
        self.network, self.resize_px = fast.network, fast.resize_px

    def _images(self, images: torch.Tensor) -> list[torch.Tensor]:
        self.network.transform.min_size = (images.shape[-1],)  # it enlarges nothing
        grey = images.to(next(self.network.parameters())) / 255
        return list(grey[:, None].expand(-1, len(self.network.transform.image_mean), -1, -1))

    def losses(self, batch):
        self.network.train()
        targets = []
        for boxes, labels, ids, instances in zip(batch.boxes, batch.labels, batch.ids, batch.instances, strict=True):
            masks = (instances == ids[labels > 0, None, None]).to(torch.uint8)
            targets.append({"boxes": boxes[labels > 0], "labels": labels[labels > 0], "masks": masks})
        return self.network(self._images(batch.images), targets)

    @torch.no_grad()
    def detect(self, images: torch.Tensor, size: int) -> list[Detections]:
        self.network.eval()
        found = [{name: value.cpu() for name, value in one.items()} for one in self.network(self._images(images))]
        values = ((f["boxes"], f["scores"], f["labels"], f["masks"][:, 0] > 0.5) for f in found)
        return [Detections(*(value.numpy() for value in one)) for one in values]


class Timed:
    """A detector with its optimiser and the seconds that its training steps and detections took."""

    def __init__(self, name: str, settings: Detection, patches: Patches, device: Device) -> None:
        torch.manual_seed(SEED)
        detector = build(settings, len(patches.classes))
        detector.network.to(device.torch)
        if name == "fast, compiled" and isinstance(detector, nn.Module):
            replace(device, compile=True).prepare(detector)
        self.detector = Library(detector) if name == "torchvision" else detector
        self.settings, self.device, self.training, self.detection = settings, device, [], []
        self.recipe = recipe_of("EXP", patches, None, settings, Seeds(SEED, "benchmark"))
        self.optimizer = optimizer_of(self.detector, settings)
        # The peak would make a network without warm-up diverge; the time of a step does not depend on it.
        set_learning_rate(self.optimizer, 0.1 * settings.learning_rate)

    def step(self, number: int) -> None:
        began = self._now()
        batch = self.recipe.batch(number, self.device)
        batch = batch.enlarged(self.settings.resize_px) if self.settings.resize_px else batch
        with self.device.autocast():
            losses = self.detector.losses(batch)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        self.optimizer.step()
        self.training.append(self._now() - began)
        began = self._now()
        with self.device.autocast():
            self.detector.detect(batch.images, batch.images.shape[-1])
        self.detection.append(self._now() - began)

    def _now(self) -> float:
        if self.device.torch.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("patches", type=Path)
    parser.add_argument("--profile", default="smoke")
    parser.add_argument("--batch", type=int, help="patches per step; without it the profile's")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of each")
    parser.add_argument("--warm-up", type=int, default=20, help="untimed steps, after which proposals are worth it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="also time the compiled detector")
    given = parser.parse_args()
    P = load_profile(given.profile, changes={"detection.batch_size": given.batch, "device.threads": given.threads})
    device, patches = replace(open_device(P.device), compile=False), load_patches(given.patches)
    settings = P.detection.model_copy(update={"backend": "torchvision"})
    timed = dict.fromkeys(("torchvision", "fast", *(["fast, compiled"] * given.compile)), settings)
    if settings.network == "r50-fpn" and importlib.util.find_spec("detectron2"):
        timed["detectron2"] = settings.model_copy(update={"backend": "detectron2"})
    timed = {name: Timed(name, one, patches, device) for name, one in timed.items()}
    for number in range(given.warm_up + given.steps):
        for one in timed.values():
            one.step(number)
    rows = {}
    theirs = timed["torchvision"].training[given.warm_up :]
    for name, one in timed.items():
        steps, found = one.training[given.warm_up :], one.detection[given.warm_up :]
        rows[name] = {
            "step_median_s": statistics.median(steps), "step_fastest_s": min(steps),
            "training_images_per_s": settings.batch_size / statistics.median(steps),
            "detection_images_per_s": settings.batch_size / statistics.median(found),
            # Step by step, so that a neighbour that slows both does not count.
            "speed_against_torchvision": statistics.median(t / own for t, own in zip(theirs, steps, strict=True)),
        }  # fmt: skip
    gpu = torch.cuda.get_device_name() if device.torch.type == "cuda" else platform.machine()
    record = {"benchmark": "detector", "setting": vars(given) | {"patches": patches.size}, "device": gpu, "rows": rows}
    with Path(__file__).with_name("results.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    print(f"{settings.network}, {patches.size} px, batch {settings.batch_size}, {device.dtype}, {gpu}")
    print(pd.DataFrame(rows).T.round(3).to_string())


if __name__ == "__main__":
    main()
