"""Tables for the pages on speed (from the lines of `speed.py`) and on choices: ``python benchmarks/tables.py``."""

import json
from pathlib import Path
from typing import Any

import pandas as pd

from companion.workflow.pages import markdown_table

RATES = {
    "images_per_s": "images/s", "ms_per_step": "ms a step", "first_s": "first step, s",
    "times": "times torchvision", "extrapolated_minutes_for_10000": "minutes for 10,000 images, extrapolated",
}  # fmt: skip
TINY, R50 = ({"what": "detector, training", "network": name} for name in ("tiny, batch 8", "r50-fpn, batch 16"))
PAPER, FAST = {"network": "paper"}, "sampling, dpm-solver++, 15 steps"
RATE, TEN = "images_per_s", "extrapolated_minutes_for_10000"
AIMS: list[tuple[str, float, str, dict[str, Any]]] = [  # of issue 15 on one H100
    ("reference's detector, training, images/s", 4000, RATE, TINY),
    ("the same, all of several side by side", 4000, RATE, {"what": "side by side"}),
    ("R50 detector of 256 px, training, images/s", 600, RATE, R50),
    ("detection, images/s", 2000, RATE, {"what": "detector, prediction"}),
    ("paper's denoiser, training, images/s", 1400, RATE, {"what": "denoiser, training"} | PAPER),
    ("10,000 images in 15 steps, minutes; reference's networks", 1.5, TEN, {"what": FAST, "network": "reference"}),
    ("10,000 images in 15 steps, minutes; paper's networks", 1.5, TEN, {"what": FAST} | PAPER),
    ("10,000 images in 200 steps, minutes; paper's networks", 8, TEN, {"what": "sampling, ddim, 200 steps"} | PAPER),
]


def number(value: Any) -> str:
    return f"{value:,.3g}" if isinstance(value, float) and abs(value) < 1000 else f"{value:,.0f}"


def shown(line: dict[str, Any], left_out: tuple[str, ...]) -> str:
    named = {key: value for key, value in line.items() if key not in left_out}
    return ", ".join(f"{k} {number(v) if isinstance(v, float) else v}" for k, v in named.items() if v not in (None, ""))


def aims(lines: list[dict[str, Any]]) -> str:
    """What was wanted and what the lines say; of a detector alone, the `side` block's single training counts too."""
    ours = [line for line in lines if not str(line.get("way", "")).startswith("torchvision")]
    ours += [{**line, **TINY} for line in ours if line.get("processes") == 1]

    def values(lines: list[dict[str, Any]], key: str, asked: dict[str, Any]) -> list[float]:
        return [line[key] for line in lines if key in line and asked.items() <= line.items()]

    rows = []
    for name, aim, key, asked in AIMS:
        found = values(ours, key, asked)
        rows.append((name, aim, min(found) if key == TEN and found else max(found, default=None), key == TEN))
    for name, network in (("reference's detector, training", TINY), ("R50 detector, training", R50)):
        found, theirs = values(ours, RATE, network), values(lines, RATE, network | {"way": "torchvision"})
        rows.append((f"{name}, times torchvision", 3, max(found) / theirs[0] if found and theirs else None, False))
    words = {None: "not measured", True: "met", False: "missed"}
    cells = [(name, f"{'≤' if less else '≥'} {aim:,}", number(v) if v else "",
              words[None if v is None else v <= aim if less else v >= aim]) for name, aim, v, less in rows]  # fmt: skip
    return markdown_table(("aim on one H100", "wanted", "measured", "verdict"), cells)


def page(path: Path) -> str:
    """Markdown of a file of lines."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    used = [key for key in RATES if any(key in line for line in lines)]
    rates = [(line["what"], shown(line, ("what", "ok", *RATES)), *(number(line[k]) if k in line else "" for k in used))
             for line in lines if "images_per_s" in line]  # fmt: skip
    others = [(line["what"], {True: "ok", False: "not ok"}.get(line.get("ok"), ""), shown(line, ("what", "ok")))
              for line in lines if "images_per_s" not in line]  # fmt: skip
    parts = [aims(lines)] if "NVIDIA" in lines[0]["device"] else []
    parts += [markdown_table(("what is timed", "how", *(RATES[key] for key in used)), rates)]
    return "\n".join([*parts, markdown_table(("what is checked", "how", "found"), others)])


def schedule(path: Path) -> str:
    """Markdown of detectors by what is changed, each at its best confidence: means over seeds; of split 1; split 2."""
    lines = pd.read_json(path, lines=True).set_index(by := ["n_train", "arm", "steps", "split", "seed"])
    lines["test"] = score = lines["scores"].map(lambda rows: max(row["f1_hm"] for row in rows))
    lines["gain"] = score - score.rename(index=lambda steps: 2 * steps, level="steps").reindex(score.index)
    means, seeds = (grouped := lines.groupby(by[:4])).mean(numeric_only=True), grouped.size().astype(str)
    shown = {"test": "{:.3f}", "gain": "{:+.3f}", "validation": "{:.3f}", "minutes": "{:.1f}"}
    texts = pd.DataFrame({name: means[name].map(how.format) for name, how in shown.items()}).where(means.notna(), "")
    texts["test"] += " (" + seeds + ")"
    rows = [(*at, *("; ".join(filter(None, own[name])) for name in shown)) for at, own in texts.groupby(by[:3])]
    return markdown_table(("N", "arm", "steps", "test (seeds)", "by doubling", "validation", "min"), rows)


RECORDS = {Path(__file__).parent / "records" / f"{name}.jsonl": made
           for name, made in {"cpu": page, "h200": page, "schedule": schedule}.items()}  # fmt: skip
if __name__ == "__main__":
    for path, made in RECORDS.items():
        path.with_suffix(".md").write_text(made(path), encoding="utf-8")
