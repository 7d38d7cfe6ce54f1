"""Is it right on this GPU, and how fast: ``PYTHONPATH=src python benchmarks/gpu.py [--seconds 540] [--out FILE]``.

Needs PyTorch and this checkout, no installation, network or earlier run. Every block is a process of its own with its
own limit, and prints each finding as a line of JSON the moment that it is known, so that a block that is cut off or
fails loses what is missing alone: ``card`` (ceilings), ``correct`` (the GPU against the CPU, resume, hidden waits),
``detector`` and ``diffusion`` (images per second in the real training step, beside the libraries' own way),
``side`` (trainings side by side) and ``run`` (the smoke run, with the GPU named in its stamps). Steps that are compared
are those that `training.fit` is given. ``--device cpu --seconds 120`` rehearses everything without a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ldm
import numpy as np
import torch
import torchvision
from detector import Library
from torch import Tensor

from companion import training
from companion.config import Profile, load_profile
from companion.config.sections import Detection
from companion.config.sections import Device as DeviceSettings
from companion.detection import batched, roi_ops
from companion.detection import train as detectors
from companion.detection.batched import BatchedDetector
from companion.detection.data import recipe_of
from companion.detection.model import build
from companion.detection.predict import predict
from companion.diffusion.autoencoder import Autoencoder
from companion.diffusion.sample import LatentDiffusion
from companion.diffusion.train import Fitting, get_autoencoder, get_denoiser
from companion.layout import given as project_file
from companion.micrographs.cutting import cut_patches
from companion.micrographs.dataset import load_dataset
from companion.micrographs.patches import Patches
from companion.micrographs.registry import obtain
from companion.seeds import Seeds
from companion.training import Device, open_device

SHARES = {"card": 0.03, "correct": 0.16, "detector": 0.3, "side": 0.13, "diffusion": 0.2, "run": 0.18}  # of --seconds
RUNS = Path(tempfile.gettempdir()) / "companion-gpu"
Step = Callable[[int], dict[str, Any]]


class _StepError(Exception):
    """Carries a training's step out of the function that trains."""


def real_step(train: Callable[[], object]) -> tuple[Step, dict[str, Any]]:
    """The step of a training, and what it changes, as `train` gives them to `training.fit`."""

    def fit(step: Step, parts: dict[str, Any], **_: Any) -> None:
        raise _StepError(step, parts)

    with patch.object(training, "fit", fit), patch.object(detectors, "fit", fit):
        try:
            train()
        except _StepError as found:
            return found.args
    raise AssertionError("this training was finished before; remove its folder")


class Bench:
    """Patches, devices and limits of one block."""

    def __init__(self, name: str, seconds: float, out: Path | None) -> None:
        self.seconds, self.out, self.gpu = seconds, out, name == "cuda"
        self.P, self.name = load_profile("reference"), name
        self.device = open_device(DeviceSettings(name=name))
        self.cpu = Device(torch.device("cpu"))

    def say(self, what: str, **values: Any) -> None:
        """Print one finding, and add it to the file."""
        line = json.dumps({"what": what, **values})
        print(line, flush=True)
        if self.out:
            with self.out.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def patches(self, size: int = 128, beam: int = 6) -> Patches:
        """Phantom patches, of as few micrographs as there can be."""
        phantom = self.P.phantom.model_copy(update={"n_images": beam})
        dataset = load_dataset(obtain("phantom", phantom, 7))
        return cut_patches(dataset, dataset.files, size, size, 0.25, (0, 1, 2, 3))[0]

    def folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=RUNS))

    def detector(self, settings: Detection, device: Device, patches: Patches, **how: Any) -> Callable[[], object]:
        """A training of the arm EXP; `how` replaces names in its module."""
        recipe = recipe_of("EXP", patches, None, settings, Seeds(1, "gpu"))

        def train() -> object:
            with patch.multiple(detectors, **how) if how else nullcontext():
                return detectors.train_detector(recipe, settings, device, self.folder())

        return train

    def denoiser(self, P: Profile, device: Device, patches: Patches) -> Callable[[], object]:
        fitting = Fitting(device, Seeds(1, "gpu"), self.folder(), 1000)
        return lambda: get_denoiser(patches, self.autoencoder(P, device, patches), P.diffusion.denoiser, fitting)

    def autoencoder(self, P: Profile, device: Device, patches: Patches) -> Autoencoder:
        path = P.diffusion.autoencoder.weights
        settings = P.diffusion.autoencoder.model_copy(update={"weights": None, "steps": 1})
        fitting = Fitting(device, Seeds(1, "gpu"), self.folder(), 1000)
        return get_autoencoder(patches, settings, fitting, project_file(path) if path else None)[0]

    def rate(self, step: Callable[[int], object], per_step: int, seconds: float, start: int = 0) -> dict[str, float]:
        """Images per second and milliseconds per step of what is repeated for `seconds`, after a warm-up.

        The device is waited for at both ends alone; "first_s" is the first step's: compiling, recording, allocating.
        """
        began = time.perf_counter()
        step(start)
        self.wait()
        first, number = time.perf_counter() - began, start + 1
        for _ in range(3 if self.gpu else 0):
            step(number)
            number += 1
        self.wait()
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < seconds or done < 2:
            for _ in range(10 if self.gpu else 1):  # or the host would run far ahead of the device
                step(number)
                number, done = number + 1, done + 1
            self.wait()
        spent = time.perf_counter() - began
        return {"images_per_s": done * per_step / spent, "ms_per_step": 1e3 * spent / done, "first_s": first}

    def wait(self) -> None:
        if self.gpu:
            torch.cuda.synchronize()


# --- card ----------------------------------------------------------------------------------------------------


def card(b: Bench) -> None:
    """What the device is and what it could do at most."""
    about = {"torch": torch.__version__, "torchvision": torchvision.__version__, "python": sys.version.split()[0]}
    if b.gpu:
        about |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda,
                  "memory_GiB": torch.cuda.get_device_properties(0).total_memory / 2**30}  # fmt: skip
    b.say("card", cores=os.cpu_count(), **about)
    side = 8192 if b.gpu else 512
    for name, dtype, tf32 in (("float32", torch.float32, False), ("tf32", torch.float32, True),
                              ("bfloat16", torch.bfloat16, True)):  # fmt: skip
        torch.backends.cuda.matmul.allow_tf32 = tf32
        x = torch.randn(side, side, device=b.device.torch, dtype=dtype)
        found = b.rate(lambda _, x=x: x @ x, 1, 0.5)
        b.say("matrix product", dtype=name, tflops=2 * side**3 / found["ms_per_step"] / 1e9)
    x = torch.randn(side, side, device=b.device.torch)
    y = torch.empty_like(x)
    found = b.rate(lambda _: y.copy_(x), 1, 0.5)
    b.say("copy", TB_per_s=2 * x.nbytes / found["ms_per_step"] / 1e9)


# --- correct -------------------------------------------------------------------------------------------------


@contextmanager
def exact() -> Iterator[None]:
    """float32 without TF32, so that only the order of sums differs from the CPU's."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True


def distance(found: Tensor | np.ndarray, wanted: Tensor | np.ndarray) -> float:
    """Norm of the difference over the norm of what is wanted."""
    a, w = (torch.as_tensor(v).detach().double().cpu() for v in (found, wanted))
    return float((a - w).norm() / w.norm().clamp(min=1e-12))


def correct(b: Bench) -> None:
    """Losses, gradients, detections and samples of the GPU beside those of the CPU; resume; waits."""
    torch.set_num_threads(os.cpu_count() or 1)
    patches, P = b.patches(), b.P
    half = 20 if b.gpu else 4
    settings = P.detection.model_copy(update={"steps": 2 * half, "checkpoint_every": half})
    for name, check in {"detector": _detector, "operators": _operators, "diffusion": _diffusion, "resume": _resume,
                        "waits": _waits, "detections": _detections}.items():  # fmt: skip
        try:
            with exact():
                check(b, P, settings, patches)
        except Exception as error:  # what is found of the others counts
            b.say(name, ok=False, error=f"{type(error).__name__}: {error}"[:1500])


def _compared(b: Bench, what: str, trainings: Callable[[Device], Callable[[], object]], limit: float) -> None:
    """First losses and gradients of a training on the device and on the CPU."""
    values = {}
    for device in (b.cpu, b.device):
        step, parts = real_step(trainings(device))
        optimizer, losses = parts["optimizer"], {}
        with patch.object(type(optimizer), "step", lambda *_: None):  # not what Adam makes of the gradients
            losses = step(0)
        gradients = [p.grad.flatten().cpu() for g in optimizer.param_groups for p in g["params"] if p.grad is not None]
        values[device] = torch.tensor([float(v) for v in losses.values()]), torch.cat(gradients)
    (wanted, gradient), (found, other) = values[b.cpu], values[b.device]
    errors = {"losses": distance(found, wanted), "gradients": distance(other, gradient)}
    b.say(what, ok=max(errors.values()) < limit, limit=limit, **errors)


def _detector(b: Bench, P: Profile, settings: Detection, patches: Patches) -> None:
    def keys(_: object, shape: tuple[int, ...], device: torch.device) -> Tensor:
        return torch.linspace(1, 0, shape[1], device=device).expand(shape)

    with patch.object(batched.BatchedDetector, "random_keys", keys):
        for name, changed, limit in (("float32", {}, 1e-3), ("bfloat16", {"dtype": torch.bfloat16}, 0.1)):
            on = {b.cpu: b.cpu, b.device: replace(b.device, **changed)}
            _compared(b, f"detector, {name}", lambda d, on=on: b.detector(settings, on[d], patches), limit)


def _operators(b: Bench, P: Profile, settings: Detection, patches: Patches) -> None:
    rng, at = torch.Generator().manual_seed(1), b.device.torch
    corner, side = torch.rand(16, 300, 2, generator=rng) * 100, torch.rand(16, 300, 2, generator=rng) * 28 + 0.5
    boxes = torch.cat([corner, corner + side], dim=-1)
    kept, rank = (
        roi_ops.suppress(boxes.to(at), torch.ones(16, 300, dtype=torch.bool, device=at), 0.5).cpu(),
        torch.arange(300, 0, -1.0),
    )
    wanted = torch.zeros_like(kept)
    for k, group in enumerate(boxes):
        wanted[k, torchvision.ops.nms(group, rank, 0.5)] = True
    b.say("suppression", ok=bool((kept == wanted).all()), different=int((kept != wanted).sum()))
    masks, few = torch.rand(300, 28, 28, generator=rng), boxes[0]
    drawn = torchvision.models.detection.roi_heads.paste_masks_in_image(masks[:, None], few, (128, 128))[:, 0]
    error = distance(roi_ops.paste(masks.to(at), few.to(at), 128), drawn)
    b.say("pasted masks", ok=error < 1e-5, error=error)
    pooler = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2"], 7, 2)
    levels = {str(k): torch.randn(2, 8, 32 >> k, 32 >> k, generator=rng) for k in range(3)}
    wanted = pooler(levels, [boxes[0], boxes[1]], [(128, 128)] * 2)
    found = roi_ops.pool(pooler, {k: v.to(at) for k, v in levels.items()}, boxes[:2].to(at), 128)
    b.say("region pooling", ok=(error := distance(found, wanted)) < 1e-5, error=error)


def _diffusion(b: Bench, P: Profile, settings: Detection, patches: Patches) -> None:
    small = patches.only(np.arange(64))
    _compared(b, "denoiser, float32", lambda device: b.denoiser(P, device, small), 1e-3)
    trained = P.diffusion.autoencoder.model_copy(update={"weights": None, "steps": 8})
    autoencoders = []
    for device in (b.cpu, b.device):
        fitting = Fitting(device, Seeds(1, "gpu"), b.folder(), 1000)
        step, parts = real_step(lambda f=fitting: get_autoencoder(small, trained, f))
        for number in range(3):
            step(number)
        autoencoders.append(torch.cat([p.flatten().cpu() for p in parts["autoencoder"].parameters()]))
    b.say("autoencoder, three steps", ok=(error := distance(*reversed(autoencoders))) < 1e-2, error=error)
    drawn = []
    for device in (b.cpu, b.device):
        _, parts = real_step(b.denoiser(P, b.cpu, small))
        denoiser, sampling = parts["average"].to(device.torch), P.sampling.model_copy(update={"batch_size": 4})
        ldm = LatentDiffusion(b.autoencoder(P, device, small), denoiser, sampling, device, Seeds(1, "gpu"))
        drawn.append(ldm.sample(small.label_maps()[:4], range(4)).astype(float))
    worst = float(np.abs(drawn[1] - drawn[0]).max())
    b.say("four samples", ok=worst <= 2, worst_grey_level=worst)


def _resume(b: Bench, P: Profile, settings: Detection, patches: Patches) -> None:
    recipe, ends = recipe_of("EXP", patches, None, settings, Seeds(1, "gpu")), []

    def stop(done: int) -> None:
        if done == settings.steps:
            raise KeyboardInterrupt

    for interrupted, recorded in ((False, True), (True, True), (False, False)):
        folder, called = b.folder(), patch.object(detectors, "Recorded", lambda function, _: function)
        with nullcontext() if recorded else called:
            with suppress(KeyboardInterrupt):
                detectors.train_detector(recipe, settings, b.device, folder, stop if interrupted else None)
            detector, _ = detectors.train_detector(recipe, settings, b.device, folder)
        ends.append(torch.cat([p.flatten() for p in detector.network.parameters()]))
    b.say("stopped and continued", ok=(error := distance(ends[1], ends[0])) < 1e-3, error=error)
    b.say("recorded against called", ok=(error := distance(ends[2], ends[0])) < 1e-2, error=error)


def _waits(b: Bench, P: Profile, settings: Detection, patches: Patches) -> None:
    if not b.gpu:
        return b.say("waits", ok=None, why="no GPU, nothing to wait for")
    trained = P.diffusion.autoencoder.model_copy(update={"weights": None, "steps": 8})
    fitting = Fitting(b.device, Seeds(1, "gpu"), b.folder(), 1000)
    trainings = {
        "detector": b.detector(settings, b.device, patches),
        "denoiser": b.denoiser(P, b.device, patches),
        "autoencoder": lambda: get_autoencoder(patches, trained, fitting),
    }
    for name, train in trainings.items():
        step, _ = real_step(train)
        for number in range(4):
            step(number)  # where things are allocated, recorded and copied once
        torch.cuda.set_sync_debug_mode("error")
        try:
            step(4), step(5)
            b.say(f"{name}: no wait in a step", ok=True)
        except Exception as error:
            b.say(f"{name}: no wait in a step", ok=False, error=str(error)[:800])
        finally:
            torch.cuda.set_sync_debug_mode("default")


def _detections(b: Bench, P: Profile, settings: Detection, patches: Patches) -> None:
    settings = settings.model_copy(update={"steps": 150 if b.gpu else 40, "checkpoint_every": 150})
    detector, _ = b.detector(settings, b.device, patches)()
    tables = []
    for device in (b.cpu, b.device):
        detector.network.to(device.torch)
        tables.append(predict(detector, patches.images[:32], device))
    wanted, found = (t[["x1", "y1", "x2", "y2", "score"]].to_numpy() for t in tables)
    same = len(wanted) == len(found)
    error = float(np.abs(wanted - found).max()) if same and len(wanted) else None
    b.say("detections", ok=bool(same and len(wanted) and error < 0.1), cpu=len(wanted), gpu=len(found), worst_px=error)


# --- how fast ------------------------------------------------------------------------------------------------


def networks(b: Bench) -> dict[str, tuple[int, Detection]]:
    """Patch side and settings by name: the reference's network, and the paper's with the same optimiser."""
    tiny, r50 = b.P.detection, load_profile("paper").detection
    r50 = r50.model_copy(update={"resize_px": None, "batch_size": 16, "optimizer": "adamw-one-cycle"})
    large = {"tiny, batch 64": (128, tiny.model_copy(update={"batch_size": 64})), "r50-fpn, batch 16": (256, r50)}
    return {"tiny, batch 8": (128, tiny), **(large if b.gpu else {})}


def ways(b: Bench) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """How a detector is trained: names of its module that are replaced, and changes of the device."""
    library, called = {"build": lambda *given: Library(build(*given))}, {"Recorded": lambda function, _: function}
    found = {"torchvision": (library, {}), "batched": (called, {}), "recorded": ({}, {})}
    if b.gpu:
        bf16 = {"dtype": torch.bfloat16}
        found |= {"torchvision, bf16": (library, bf16), "recorded, bf16": ({}, bf16),
                  "compiled and recorded, bf16": ({}, bf16 | {"compile": True})}  # fmt: skip
    return found


def detector(b: Bench) -> None:
    """Training and detection, images per second."""
    each = min(3.0, b.seconds / (len(networks(b)) * len(ways(b)) * 3))
    for name, (size, settings) in networks(b).items():
        patches, settings = b.patches(size), settings.model_copy(update={"steps": 100_000})
        for way, (replaced, changed) in ways(b).items():
            device = replace(b.device, **changed)
            try:
                step, parts = real_step(b.detector(settings, device, patches, **replaced))
                b.say("detector, training", network=name, way=way, **b.rate(step, settings.batch_size, each))
                if way in ("torchvision", "batched"):
                    made = (Library if way == "torchvision" else lambda d: d)(BatchedDetector(parts["network"], None))
                    some = np.resize(patches.images, (64, size, size))
                    found = b.rate(lambda _, m=made, i=some, d=device: predict(m, i, d), len(some), each)
                    b.say("detector, prediction", network=name, way=way, **found)
            except Exception as error:
                b.say("detector, training", network=name, way=way, error=f"{type(error).__name__}: {error}"[:600])


def side(b: Bench) -> None:
    """The reference's detector, several trainings side by side, each a process of its own."""
    for count in (1, 4, 8) if b.gpu else (1, 2):
        start, command = time.time() + b.seconds / 8, [*sys.argv, "--block", "one"]
        env = {**os.environ, "COMPANION_START": str(start)}
        jobs = [subprocess.Popen([sys.executable, *command], env=env, stdout=subprocess.PIPE) for _ in range(count)]
        found = [json.loads(job.communicate()[0].decode().splitlines()[-1]) for job in jobs]
        total = sum(one["images_per_s"] for one in found)
        b.say("side by side", processes=count, images_per_s=total, late_s=max(one["late_s"] for one in found))


def one(b: Bench) -> None:
    """One of `side`: waits for the common start, once it is warm."""
    torch.set_num_threads(1)
    settings, patches = b.P.detection.model_copy(update={"steps": 100_000}), b.patches()
    step, _ = real_step(b.detector(settings, b.device, patches))
    b.rate(step, settings.batch_size, 0.1)
    late = time.time() - float(os.environ["COMPANION_START"])
    time.sleep(max(0.0, -late))
    print(json.dumps({"late_s": max(0.0, late), **b.rate(step, settings.batch_size, min(4.0, b.seconds / 8), 100)}))


def diffusion(b: Bench) -> None:
    """Training, evaluations and decoding, images per second, and hours for 10,000 images."""
    bf16 = {"dtype": torch.bfloat16, "channels_last": True}
    cases = {
        "reference": [(64, {})],
        **({"paper": [(32, {}), (32, bf16), (32, bf16 | {"compile": True})]} if b.gpu else {}),
    }
    if b.gpu:
        cases["reference"] += [(16, {}), (64, bf16), (64, bf16 | {"compile": True})]
    each = min(2.0, b.seconds / 60)
    for name, several in cases.items():
        P = load_profile(name)
        patches = b.patches(P.patches.size).only(np.arange(8))
        for batch, changed in several:
            device, used = replace(b.device, **changed), {"network": name, "batch": batch}
            used |= {"precision": str(device.dtype), "compiled": device.compile}
            settings = P.diffusion.denoiser.model_copy(update={"batch_size": batch})
            now = P.model_copy(update={"diffusion": P.diffusion.model_copy(update={"denoiser": settings})})
            try:
                if not changed:
                    for what, (call, count) in ldm.works(now, batch, device, True).items():
                        if "sampling" not in what:
                            b.say(f"the usual loop: {what}", **used, **b.rate(lambda _, c=call: c(), count, each))
                step, parts = real_step(b.denoiser(now, device, patches))
                b.say("denoiser, training", **used, **b.rate(step, batch, each))
                sampling = P.sampling.model_copy(update={"batch_size": batch})
                autoencoder = b.autoencoder(now, device, patches)
                drawing = LatentDiffusion(autoencoder, parts["average"], sampling, device, Seeds(1, "gpu"))
                maps = np.resize(patches.label_maps(), (batch, patches.size, patches.size))
                found = b.rate(lambda _, d=drawing, m=maps: d.sample(m, range(len(m))), batch, each)
                b.say(f"sampling, {sampling.sampler}, {sampling.steps} steps", **used, **found,
                      extrapolated_minutes_for_10000=10_000 / found["images_per_s"] / 60)  # fmt: skip
            except Exception as error:
                b.say("diffusion", **used, error=f"{type(error).__name__}: {error}"[:600])


def run(b: Bench) -> None:
    """The smoke run through papermill, as far as it gets, from the stamps of its stages."""
    home = b.folder()
    env = {**os.environ, "COMPANION_RUNS": str(home / "runs"), "COMPANION_DATA": str(home / "data")}
    changes = ["--set", f"device.name={b.name}"]
    command = [sys.executable, "-m", "companion.cli", "run", "smoke", "--cores", str(os.cpu_count()), *changes]
    began, log = time.time(), home / "log"
    with log.open("w") as file:
        job = subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        for patience, ending in ((0.7 * b.seconds, signal.SIGTERM), (0.1 * b.seconds, signal.SIGKILL)):
            try:
                job.wait(timeout=patience)
            except subprocess.TimeoutExpired:
                os.killpg(job.pid, ending)
    said = log.read_text()
    b.say("run", wall_s=time.time() - began, code=job.poll(), last=said[-600:])
    for path in sorted(home.glob("runs/**/stamp.json"), key=lambda path: path.stat().st_mtime):
        stamp = json.loads(path.read_text(encoding="utf-8"))
        named = {key: stamp.get(key) for key in ("notebook", "device", "seconds", "start_seconds", "peak_memory_mib")}
        b.say("stage", path=str(path.parent.relative_to(home / "runs")), **named)


BLOCKS = {f.__name__: f for f in (card, correct, detector, side, diffusion, run)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=540, help="limit of all blocks together")
    parser.add_argument("--only", nargs="+", choices=list(BLOCKS), default=list(BLOCKS), help="blocks; all by default")
    parser.add_argument("--out", type=Path, help="file that lines are added to")
    parser.add_argument("--block", help=argparse.SUPPRESS)  # of the processes that this one starts
    given = parser.parse_args()
    RUNS.mkdir(exist_ok=True)
    if given.block:
        return {**BLOCKS, "one": one}[given.block](Bench(given.device, given.seconds, given.out))
    for name in given.only:
        limit = given.seconds * SHARES[name] / sum(SHARES[n] for n in given.only)
        command = [sys.executable, __file__, "--device", given.device, "--seconds", str(limit), "--block", name]
        command += ["--out", str(given.out)] if given.out else []
        with subprocess.Popen(command, start_new_session=True) as job:
            try:
                job.wait(timeout=limit)
            except subprocess.TimeoutExpired:
                os.killpg(job.pid, signal.SIGKILL)
                print(json.dumps({"what": name, "error": f"cut off after {limit:.0f} s"}), flush=True)


if __name__ == "__main__":
    main()
