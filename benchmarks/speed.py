"""Is it right on this GPU, and how fast: ``PYTHONPATH=src python benchmarks/speed.py [--seconds 540] | tee FILE``.

Needs PyTorch and this checkout, no installation, network or earlier run. Every block is a process of its own with its
own limit, and prints each finding as a line of JSON the moment that it is known, so that a block that is cut off or
fails loses what is missing alone: ``card`` (ceilings), ``correct`` (the GPU against the CPU, resume, hidden waits),
``detector`` and ``diffusion`` (images per second in the real training step, beside the libraries' own way), ``side``
(trainings side by side) and ``run`` (the smoke run). Steps that are timed are those that `training.fit` is given; a
detector and torchvision's take turns. ``--device cpu`` rehearses everything. `tables.py` makes a page of the lines.
"""

import argparse
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from bench import LIBRARY, SEEDS, Bench, Library, real_step, usual_loop
from correct import correct

from companion.config import load_profile, sections
from companion.detection.batched import BatchedDetector
from companion.detection.predict import predict
from companion.diffusion.sample import LatentDiffusion

START = 15  # s, of a process: imports and the first contact with the device
BF16: dict[str, Any] = {"dtype": torch.bfloat16}


def card(b: Bench) -> None:
    """What the device is and what it could do at most."""
    about = {"torch": torch.__version__, "torchvision": torchvision.__version__, "python": platform.python_version()}
    about |= {"device": f"CPU ({platform.machine()})", "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    if b.gpu:
        about |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda,
                  "memory_GiB": torch.cuda.get_device_properties(0).total_memory / 2**30}  # fmt: skip
    b.say("card", **about)
    side = 8192 if b.gpu else 512
    for name, dtype, tf32 in (("float32", torch.float32, False), ("tf32", torch.float32, True),
                              ("bfloat16", torch.bfloat16, True))[: 3 if b.gpu else 1]:  # fmt: skip
        torch.backends.cuda.matmul.allow_tf32 = tf32
        x = torch.randn(side, side, device=b.device.torch, dtype=dtype)
        b.say("matrix product", dtype=name, tflops=2 * side**3 / b.rate(lambda _, x=x: x @ x, 1)["ms_per_step"] / 1e9)
    x, y = torch.randn(2, side, side, device=b.device.torch)
    b.say("copy", TB_per_s=2 * x.nbytes / b.rate(lambda _: y.copy_(x), 1)["ms_per_step"] / 1e9)


def networks(b: Bench) -> dict[str, tuple[int, sections.Detection]]:
    """Patch side and settings by name: the reference's network, and the paper's with the same optimiser."""
    tiny, r50 = b.P.detection, load_profile("paper").detection
    r50 = r50.model_copy(update={"resize_px": None, "batch_size": 16, "optimizer": "adamw-one-cycle"})
    large = {"r50-fpn, batch 16": (256, r50), "tiny, batch 64": (128, tiny.model_copy(update={"batch_size": 64}))}
    return {"tiny, batch 8": (128, tiny), **(large if b.gpu else {})}


def ways(b: Bench, settings: sections.Detection) -> dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """How a detector is trained: names of its module that are replaced, changes of the device, of the settings."""
    found = {"torchvision": (LIBRARY, {}, {}), "called": ({"Recorded": lambda function, _: function}, {}, {})}
    if b.gpu:
        found |= {"recorded": ({}, {}, {}), "recorded, bf16": ({}, BF16, {}), "torchvision, bf16": (LIBRARY, BF16, {}),
                  "compiled and recorded, bf16": ({}, BF16 | {"compile": True}, {})}  # fmt: skip
    if settings.network == "r50-fpn" and importlib.util.find_spec("detectron2"):
        found["detectron2"] = ({}, {}, {"backend": "detectron2"})
    return found


def detector(b: Bench) -> None:
    """Training and detection, images per second; "times" are those of torchvision, in turns."""
    cases = [(name, way) for name, (_, settings) in networks(b).items() for way in ways(b, settings)]
    theirs: dict[str, Any] = {}
    for name, way in sorted(cases, key=lambda case: "compiled" in case[1]):  # compiling takes a minute
        size, settings = networks(b)[name]
        patches, (replaced, changed, other) = b.patches(size), ways(b, settings)[way]
        device, now = replace(b.device, **changed), settings.model_copy(update={"steps": 100_000, **other})
        with b.trying("detector, training", network=name, way=way):
            step, parts = real_step(b.detector(now, device, patches), **replaced)
            found = b.rates({way: step, "torchvision": theirs.setdefault(name, step)}, settings.batch_size)
            b.say("detector, training", network=name, way=way, **found[way])
            if way == ("recorded" if b.gpu else "called"):
                some = np.resize(patches.images, (64 if b.gpu else 16, size, size))
                fast = BatchedDetector(parts["network"], None)
                tried = {"ours": fast, "torchvision": Library(fast)}  # one network: they find equally many
                calls = {one: lambda _, d=d, i=some: predict(d, i, b.device) for one, d in tried.items()}
                for one, rates in b.rates(calls, len(some)).items():
                    b.say("detector, prediction", network=name, way=one, **rates)


def side(b: Bench) -> None:
    """The reference's detector, several trainings side by side, each a process of its own that waits for the others."""
    service = Path(os.environ.get("CUDA_MPS_PIPE_DIRECTORY", "/tmp/nvidia-mps")) / "control"
    b.patches()  # drawn before several processes look for them
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    for number in (1, 8, 4) if b.gpu else (2,):
        jobs = [subprocess.Popen(command(b.name, "one", b.each, b.work), **pipes) for _ in range(number)]
        for job in jobs:
            job.stdout.readline()  # it is warm
        for job in jobs:
            print(file=job.stdin, flush=True)
        found = [json.loads(job.communicate()[0]) for job in jobs]
        spans = [[one.pop(key) for one in found] for key in ("began", "ended")]
        together = min(spans[1]) - max(spans[0])  # what all of them measured at the same time
        b.say("side by side", processes=number, images_per_s=sum(one["images_per_s"] for one in found),
              late_s=max(spans[0]) - min(spans[0]), together=together / (max(spans[1]) - min(spans[0])),
              mps=service.exists())  # fmt: skip


def one(b: Bench) -> None:
    """One of `side`: says that it is warm, waits, and measures."""
    settings = b.P.detection.model_copy(update={"steps": 100_000})
    step, _ = real_step(b.detector(settings, b.device, b.patches()))
    b.rate(step, settings.batch_size)
    print("warm", flush=True)
    sys.stdin.readline()
    began = time.time()
    found = b.rate(step, settings.batch_size, 1000)
    print(json.dumps({"began": began, "ended": time.time(), **found}))


def diffusion(b: Bench) -> None:
    """Training, evaluations and decoding, images per second, and minutes for 10,000 images."""
    large = BF16 | {"channels_last": True}
    cases: list[tuple[str, int, dict[str, Any]]] = [("reference", 16, {})]
    if b.gpu:
        cases += [("paper", 32, {}), ("reference", 64, {}), ("paper", 32, large), ("reference", 64, large)]
        cases += [(name, batch, large | {"compile": True}) for name, batch in (("paper", 32), ("reference", 64))]
    for name, batch, changed in cases:
        device, used = replace(b.device, **changed), {"network": name, "batch": batch}
        used |= {"precision": str(device.dtype).removeprefix("torch."), "compiled": device.compile}
        P = load_profile(name, changes={"diffusion.denoiser.batch_size": batch})
        with b.trying("diffusion", **used):
            if not changed:
                for what, call in usual_loop(P, device).items():
                    b.say(f"the usual loop: {what}", **used, **b.rate(call, batch))
                if name == "paper":  # it has bfloat16 in its profile, and float32 takes a minute here
                    continue
            patches = b.patches(P.patches.size)
            step, parts = real_step(b.denoiser(P, device, patches.only(np.arange(8))))
            b.say("denoiser, training", **used, **b.rate(step, batch))
            autoencoder = b.autoencoder(P, device, patches.only(np.arange(8)))
            maps = np.resize(patches.label_maps(), (batch, patches.size, patches.size))
            # 200 steps of DDIM take about twenty times as long as 10, a little less: an image is decoded once.
            for sampler, steps, factor in (("dpm-solver++", 15, 1), ("ddim", 10, 20))[: 2 if b.gpu else 1]:
                asked = {"batch_size": batch, "guidance": 1.0, "sampler": sampler, "steps": steps}
                sampling = P.sampling.model_copy(update=asked)
                drawing = LatentDiffusion(autoencoder, parts["average"], sampling, device, SEEDS)
                found = b.rate(lambda _, d=drawing, m=maps: d.sample(m, range(len(m))), batch)
                minutes = 10_000 / found["images_per_s"] / 60 * factor
                b.say(f"sampling, {sampler}, {steps * factor} steps", **used, timed_steps=steps, **found,
                      extrapolated_minutes_for_10000=minutes)  # fmt: skip


def run(b: Bench) -> None:
    """The smoke run through papermill, as far as it gets, from the stamps of its stages."""
    import psutil  # comes with Snakemake, which other blocks do without

    home, limit, cut_off = b.folder(), float(os.environ["COMPANION_BLOCK_S"]), False
    env = {**os.environ, "COMPANION_RUNS": str(home / "runs"), "COMPANION_DATA": str(home / "data")}
    asked = ["smoke", "--cores", str(os.cpu_count()), "--set", f"device.name={b.name}"]
    began, log = time.time(), home / "log"
    with log.open("w") as out:
        job = subprocess.Popen([sys.executable, "-m", "companion.cli", "run", *asked], env=env, stdout=out, stderr=out)
        try:
            job.wait(timeout=limit - START)
        except subprocess.TimeoutExpired:  # a run that is told to stop lets its jobs end first, which takes too long
            cut_off = True
            for process in [*psutil.Process(job.pid).children(recursive=True), job]:
                process.kill()
    said = {"cut_off": cut_off, "wall_s": time.time() - began, "last": log.read_text()[-600:]}
    b.say("run", ok=None if cut_off else job.wait() == 0, **said)
    for path in sorted(home.glob("runs/**/stamp.json"), key=lambda path: path.stat().st_mtime):
        stamp = json.loads(path.read_text(encoding="utf-8"))
        named = {key: stamp[key] for key in ("notebook", "device", "wall_s", "peak_memory_mib")}
        b.say("stage", path=str(path.parent.relative_to(home / "runs")), **named)


SHARES = {card: 10, correct: 75, detector: 120, diffusion: 90, side: 75, run: 70}  # of --seconds
BLOCKS = {f.__name__: f for f in SHARES}


def command(device: str, block: str, each: float, work: Path) -> list[str]:
    """What starts a block."""
    return [sys.executable, __file__, "--device", device, "--block", block, "--each", str(each), "--work", str(work)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seconds", type=float, default=540, help="limit of all blocks together")
    parser.add_argument("--each", type=float, default=1.5, help="seconds that a measurement takes")
    parser.add_argument("--only", nargs="+", choices=list(BLOCKS), default=list(BLOCKS), help="blocks; all by default")
    parser.add_argument("--block", help=argparse.SUPPRESS)  # of the processes that this one starts
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU (or its driver is too old); --device cpu rehearses without")
    if given.block:
        return {**BLOCKS, "one": one}[given.block](Bench(given.device, given.each, given.work))
    shares = {name: SHARES[BLOCKS[name]] for name in given.only}
    left = max(10.0 * len(shares), given.seconds - START * len(shares))  # no block below 25 s
    with tempfile.TemporaryDirectory() as work:
        for name, share in shares.items():
            limit = START + left * share / sum(shares.values())
            words, env = command(given.device, name, given.each, Path(work)), {"COMPANION_BLOCK_S": str(limit)}
            with subprocess.Popen(words, env={**os.environ, **env}, start_new_session=True) as job:
                try:
                    ended = f"ended with exit code {job.wait(timeout=limit)}"
                except subprocess.TimeoutExpired:
                    os.killpg(job.pid, signal.SIGKILL)
                    ended = f"cut off after {limit:.0f} s"
            if job.returncode:
                Bench.say(name, ok=False, error=ended)


if __name__ == "__main__":
    main()
