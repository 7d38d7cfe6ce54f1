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


def last(benchmark: str, fits: Callable[[Record], bool] = lambda record: True) -> Record | None:
    """The newest record of a benchmark that fits; None if there is none."""
    lines = results().read_text(encoding="utf-8").splitlines() if results().is_file() else []
    own = (found for line in reversed(lines) if (found := json.loads(line))["benchmark"] == benchmark)
    return next((found for found in own if fits(found)), None)


def fragments() -> dict[str, str]:
    """Name -> Markdown that the page on choices and speed includes; what has not been run says so."""
    made = {}
    for name, (benchmark, kind, table) in TABLES.items():
        command = f" --kind {kind}" if kind else ""
        found = last(benchmark, lambda record, kind=kind: record.get("kind") == kind)
        missing = f"Not measured yet: `python benchmarks/{benchmark}.py{command}` writes this table.\n"
        made[name] = missing if found is None else f"{table(found)}\n{_origin(found, benchmark, command)}"
    return made


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


def _origin(found: Record, benchmark: str, command: str) -> str:
    return (
        f"By `python benchmarks/{benchmark}.py{command}`, on {found['device']}, {found['date']}, commit "
        f"{found['commit']}, PyTorch {found['packages']['torch']}.\n"
    )


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
    rows = [
        (f"{name}, {threads} thread(s)" if s["device_type"] == "cpu" else name, row["training_images_per_s"],
         row["detection_images_per_s"], row["speed_against_torchvision"])
        for threads, backends in found["measured"].items() for name, row in backends.items()
    ]  # fmt: skip
    head = ("Mask R-CNN", "training, images/s", "detection, images/s", "training against torchvision")
    preset = f"preset {s['preset']}, " if "preset" in s else ""
    text = markdown(head, rows) + f"\nNetwork {s['network']}, {preset}{s['size']} px, batch {s['batch']}.\n"
    beside = [
        (f"{count}, {threads} thread(s) each" if s["device_type"] == "cpu" else count, rate)
        for threads, rates in found.get("side_by_side", {}).items() for count, rate in rates.items()
    ]  # fmt: skip
    if not beside:
        return text
    return f"{text}\n{markdown(('trainings side by side', 'images/s in sum'), beside)}"


def _ldm(found: Record) -> str:
    def times(row: Record) -> float | None:
        known = row["reference"] and row["companion"]  # undefined where the device's memory was too small
        return row["times"] if "times" in row else known and row["reference"] / row["companion"]

    rows = [
        (
            row.get("patches per second") or row["minutes, by calculation"],
            row["reference"],
            row["companion"],
            times(row),
        )
        for row in found["measured"]
    ]
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
