"""What the programs in ``benchmarks/`` measured: written as a line of JSON each, read again for the book's pages."""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from companion import paths, provenance

Record = Mapping[str, Any]


def results() -> Path:
    """The file of all records, oldest first."""
    return paths.root() / "benchmarks" / "results.jsonl"


def record(benchmark: str, **content: Any) -> dict[str, Any]:
    """Append what a benchmark found, with date, versions, device and commit, and return the record."""
    made = {"benchmark": benchmark, "date": time.strftime("%Y-%m-%d"), **provenance.environment(), **content}
    made = provenance.plain(made)
    with open(results(), "a", encoding="utf-8") as file:
        file.write(json.dumps(made) + "\n")
    return made


def finished(rows: str, asked: Record, measure: Callable[[], Record]) -> Record:
    """One row of a long benchmark: what `measure` returns, or what it returned before the benchmark was interrupted.

    Rows are kept in the run tree as they are finished, under what was asked for, the code of package and benchmarks
    and the pretrained weights: with others, on another device or with other versions they are measured again.

    Parameters
    ----------
    rows : name of the rows that belong together; `forget` them once they are on record
    asked : whatever the row depends on, in JSON's types
    measure : its mapping of names to numbers
    """
    made_by = {name: value for name, value in provenance.environment().items() if name != "commit"}
    made_by |= {"code": _code(), "asked": asked}
    file = _rows(rows) / f"{provenance.hash_value(made_by)[:16]}.json"
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    row = provenance.plain(dict(measure()))
    provenance.write_json(file, row)
    return row


@lru_cache(maxsize=1)
def _code() -> str:
    files = [
        *Path(__file__).parent.rglob("*.py"),
        *paths.root().glob("benchmarks/*.py"),
        *paths.root().glob("weights/*"),
    ]
    return provenance.hash_value([provenance.hash_file(file) for file in sorted(files)])


def forget(rows: str) -> None:
    """Remove the rows of `finished` that are on record: whoever repeats a benchmark wants it measured again."""
    shutil.rmtree(_rows(rows), ignore_errors=True)


def _rows(name: str) -> Path:
    return paths.runs() / "benchmarks" / f"{name}-rows"


def seconds(device_type: str) -> float:
    """A clock for trainings: on a GPU that of the wall; on a CPU that of this process, which a busy machine does not
    lengthen (with t threads it runs up to t times as fast)."""
    return time.process_time() if device_type == "cpu" else time.monotonic()


def last(benchmark: str, fits: Callable[[Record], bool] = lambda record: True) -> Record | None:
    """The newest record of a benchmark that fits; None if there is none."""
    return next((found for found in reversed(_records(benchmark)) if fits(found)), None)


def last_of_each(benchmark: str, kind: str | None = None) -> list[Record]:
    """The newest record of a benchmark on processors and on each GPU by name, processors first.

    Records that differ in a setting of `APART` stand side by side: a command of the book never hides what another of
    its commands measured.
    """
    found: dict[tuple[Any, ...], Record] = {}
    for one in _records(benchmark):
        if one.get("kind") == kind:
            found[(_gpu(one), *(_settings(one).get(name) for name in APART.get(benchmark, ())))] = one
    return [found[key] for key in sorted(found, key=lambda key: key[0])]


def _records(benchmark: str) -> list[Record]:
    lines = results().read_text(encoding="utf-8").splitlines() if results().is_file() else []
    return [found for line in lines if (found := json.loads(line))["benchmark"] == benchmark]


def _gpu(found: Record) -> str:
    return "" if found["device"].startswith("CPU") else found["device"]


def _settings(found: Record) -> Record:
    return {**found, **found.get("setting", {})}


def fragments() -> dict[str, str]:
    """Name -> Markdown that the page on choices and speed includes; what has not been run says so."""
    made = {}
    for name, (benchmark, kind, table) in TABLES.items():
        command = f"python benchmarks/{benchmark}.py" + (f" --kind {kind}" if kind else "")
        shown = [f"{table(found)}\n{_origin(found, command)}" for found in last_of_each(benchmark, kind)]
        made[name] = "\n".join(shown) or f"Not measured yet: `{command}` writes this table.\n"
    return {**made, "speed_gpu": _on_gpus("detector", "ldm")}


def _on_gpus(*benchmarks: str) -> str:
    """How the page introduces the commands of `benchmarks` on a GPU: by those that they have been run on."""
    gpus = {name: [gpu for gpu in dict.fromkeys(map(_gpu, last_of_each(name))) if gpu] for name in benchmarks}
    if not any(gpus.values()):
        return "On a GPU, on which none of these has been run for this book:\n"
    ran = (f"`{name}.py` has been run on {' and on '.join(names) or 'none yet'}" for name, names in gpus.items())
    return f"On a GPU ({'; '.join(ran)}):\n"


def markdown(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A table whose numbers are rounded to three significant digits where they are not whole."""
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *([_shown(value) for value in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _shown(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "undefined"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _origin(found: Record, command: str) -> str:
    return (
        f"By `{' '.join([command, *_options(found)])}`, on {found['device']}, {found['date']}, commit "
        f"{found['commit']}, PyTorch {found['packages']['torch']}.\n"
    )


def _options(found: Record) -> Iterable[str]:
    """The options that a record was made with, as far as it holds them."""
    settings = _settings(found)
    for name in OPTIONS.get(found["benchmark"], ()):
        option, value = f"--{name.replace('_', '-')}", settings.get(name)
        if value is True:
            yield option
        elif value is not None and value is not False:
            yield f"{option} {' '.join(map(str, value)) if isinstance(value, list) else value}"


# --- one table per benchmark ----------------------------------------------------------------------------------


def _ablations(kind: str) -> Callable[[Record], str]:
    columns = {
        "auc": "told apart, AUC", "spectrum": "spectrum / decades", "kid": "KID", "contrast": "contrast of defects",
        "profile": "profile across defects", "train_s": "training / s",
    }  # fmt: skip

    def table(found: Record) -> str:
        rows, s = pd.DataFrame(found["measured"]), found["setting"]
        grouped = rows.groupby("choice", sort=False)
        means = grouped[list(columns)].mean()
        if len(s["seeds"]) > 1:  # the spread of one measure says how much the others can be trusted
            low, high = grouped["auc"].min(), grouped["auc"].max()
            means.insert(1, "range", [f"{a:.3g} to {b:.3g}" for a, b in zip(low, high, strict=True)])
        real = ("*real micrographs*", *(found["real"].get(name, "") for name in means))
        data = "phantom (simulated)" if s["dataset"] == "phantom" else s["dataset"]
        steps = f", {s['denoiser_steps']:,} steps of the denoiser" if kind == "denoiser" else ""
        note = (
            f"\nProfile {s['profile']}, {data}, N = {s['n_train']}{steps}; {s['held_patches']} held-out patches; "
            f"{len(s['seeds'])} seed(s).\n"
        )
        head = ("choice", *({**columns, "range": "AUC, lowest to highest seed"}[name] for name in means))
        return markdown(head, [(str(n), *row) for n, *row in means.itertuples()] + [real]) + note

    return table


def _schedule(found: Record) -> str:
    rows, s = pd.DataFrame(found["measured"]), found["setting"]
    wide = rows.pivot_table(
        index="schedule", columns="passes", values="f1_hm", aggfunc=["mean", "min", "max"], sort=False
    )
    mean = wide["mean"]
    seconds = rows.groupby("schedule", sort=False)["train_s"].sum() / rows.groupby("schedule")["passes"].sum() * 1000
    shown = mean
    if len(s["seeds"]) > 1:
        shown = mean.map(_shown) + " (" + wide["min"].map(_shown) + " to " + wide["max"].map(_shown) + ")"
    body = [(str(name), *shown.loc[name].tolist(), float(seconds[name])) for name in mean.index]
    note = (
        f"\nF1HM on {s['test_defects']:,} held-out defects of the phantom (simulated), preset {s['preset']}, IoU 0.5, "
        f"each at its best confidence. Network {s['network']}, patches of {s['size']} px of {s['n_train']} "
        f"micrographs, {len(s['seeds'])} seed(s){': mean (lowest to highest)' if len(s['seeds']) > 1 else ''}.\n"
    )
    head = ("schedule", *(f"{passes:,} passes" for passes in mean.columns), "s per 1,000 passes")
    return markdown(head, body) + note


def _detector(found: Record) -> str:
    s = found["setting"]
    apart = s["device_type"] == "cpu" or len(found["measured"]) > 1  # a GPU hardly depends on threads
    rows = [
        (f"{name}, {threads} thread(s)" if apart else name, row["training_images_per_s"],
         row["detection_images_per_s"], row["speed_against_torchvision"])
        for threads, backends in found["measured"].items() for name, row in backends.items()
    ]  # fmt: skip
    head = ("Mask R-CNN", "training, images/s", "detection, images/s", "training against torchvision")
    preset = f"preset {s['preset']}, " if "preset" in s else ""
    text = markdown(head, rows) + f"\nNetwork {s['network']}, {preset}{s['size']} px, batch {s['batch']}"
    text += f", {'bfloat16' if s['bfloat16'] else 'float32'}" if "bfloat16" in s else ""
    names = {name for backends in found["measured"].values() for name in backends}
    authors = "the authors' recipe: batch 2 at 800 px in float32 with TF32"
    text += f"; {authors}.\n" if "authors' recipe" in names else ".\n"
    if s["network"] == "r50-fpn" and "detectron2" not in names:  # no other network is detectron2's
        text += "detectron2 was not installed there: its rows are missing.\n"
    beside = [
        (f"{count}, {threads} thread(s) each" if apart else count, rate)
        for threads, rates in found.get("side_by_side", {}).items() for count, rate in rates.items()
    ]  # fmt: skip
    if not beside:
        return text
    return f"{text}\n{markdown(('trainings side by side', 'images/s in sum'), beside)}"


def _ldm(found: Record) -> str:
    def times(row: Record) -> float | None:
        known = row["reference"] and row["companion"]  # undefined where the device's memory was too small
        return row["times"] if "times" in row else known and row["reference"] / row["companion"]

    def name(row: Record) -> str:
        unit, what = next(iter(row.items()))
        return what if unit == "patches per second" else f"{unit}: {what}"

    rows = [(name(row), row["reference"], row["companion"], times(row)) for row in found["measured"]]
    head = ("latent diffusion: patches per second; minutes", "usual loop", "companion", "times as fast")
    return markdown(head, rows) + (
        f"\nPreset {found['preset']}, {found['patch_px']} px, batch {found['batch']}, {found['precision']}, "
        f"{'compiled' if found['compile'] else 'not compiled'}, {found['threads']} thread(s).\n"
    )


def _masks(found: Record) -> str:
    judged = {row["sampler"]: row for row in found["judged"]}
    rows = [
        (row["sampler"], row["wall_s"], judged.get(row["sampler"], {}).get("auc", ""))
        for row in found["speed"]
    ]  # fmt: skip
    head = (f"sampler of masks, {found['masks']:,} of 256 px, one process", "s", "told from real masks, AUC")
    return markdown(head, rows)


def _scores(found: Record) -> str:
    head = (f"matching, {found['runs']} runs × {found['patches']} patches, all thresholds", "s")
    return markdown(head, found["wall_s"].items())


# benchmark -> its options that its records hold
OPTIONS = {
    "ablations": ("profile", "n_train", "seeds", "denoiser_steps"),
    "schedule": ("network", "size", "enlarge", "preset", "n_train", "n_test", "passes", "seeds", "bfloat16", "compile"),
    "detector": ("preset", "size", "batch", "steps", "warm_up", "threads", "bfloat16", "compile", "authors",
                 "processes"),
    "ldm": ("preset", "profile", "batch", "rounds"),
    "masks": ("masks", "micrographs", "learned"),
    "scores": ("runs", "patches", "workers"),
}  # fmt: skip
# benchmark -> settings of which the page shows the last record each
APART = {"schedule": ("network",), "detector": ("preset",), "ldm": ("preset", "batch")}
# name of the fragment -> (benchmark, which kind of its records, table)
TABLES: dict[str, tuple[str, str | None, Callable[[Record], str]]] = {
    "choices_denoiser": ("ablations", "denoiser", _ablations("denoiser")),
    "choices_autoencoder": ("ablations", "autoencoder", _ablations("autoencoder")),
    "choices_schedule": ("schedule", None, _schedule),
    "speed_detector": ("detector", None, _detector),
    "speed_diffusion": ("ldm", None, _ldm),
    "speed_masks": ("masks", None, _masks),
    "speed_scores": ("scores", None, _scores),
}
