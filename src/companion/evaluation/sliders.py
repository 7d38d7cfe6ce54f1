"""Things to touch on a page: pieces of HTML that need no server and ask for nothing.

Each is a box with its data as JSON; `book/_static/touch.js` makes it move. What a reader without scripts, or of a
printed page, sees stands in the box as well, or as a figure above it.
"""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageOps

from companion.evaluation.errors import audit
from companion.evaluation.formats import BOX
from companion.evaluation.matching import Matching, kept, match, score_order
from companion.evaluation.plots import class_color
from companion.evaluation.runs import Run
from companion.evaluation.significance import paired_t
from companion.evaluation.wording import CONDITION, NAMES, condition_name
from companion.geometry import box_iou

COLUMNS = ["tp", "fp", "fn", "f1_detect", "f1_class", "f1_hm"]
SHOWN, EACH, SIDE = 4, 4, 48  # patches or masks; close-ups of a cell of the table, and their side in px


def box(kind: str, data: Any, static: str = "") -> str:
    """A thing to touch: `static` HTML, and the `data` with which the script of that `kind` replaces it."""
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c")
    return f'<div class="touch" data-touch="{kind}"><script type="application/json">{text}</script>{static}</div>'


def png(image: NDArray | Image.Image) -> str:
    """An image (uint8 [H, W] or [H, W, 3]) as an address that holds all of it."""
    Image.fromarray(np.asarray(image)).save(buffer := io.BytesIO(), format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def explorer(
    runs: Sequence[Run], scores: pd.DataFrame, matching: Matching, start: tuple[float, float], note: str
) -> str:
    """Scores and detections of any two runs of one split under a slider for the confidence.

    `runs` are of one split, `scores` their scores.parquet; detections are shown on the patches with the most defects.
    `start`: IoU, and the confidence at which the slider stands. Of the last N come first EXP and EXP+GEN, or what is
    there.
    """
    here = scores[np.isclose(scores["iou_threshold"], start[0])].round(3)
    confidence, test = sorted(set(here["confidence"])), runs[0].patches
    patches = test.table["patch"].value_counts().sort_index().nlargest(SHOWN).index
    truths = [test.of(p)[BOX].to_numpy(float) for p in patches]
    found = []
    for run in sorted(runs, key=lambda run: run.keys["n_train"]):
        n, arm, seed = (run.keys[key] for key in ("n_train", "arm", "seed"))
        own = here[(here["n_train"] == n) & (here["arm"] == arm) & (here["seed"] == seed)].sort_values("confidence")
        rows = own[COLUMNS].astype(object).where(own[COLUMNS].notna(), None).to_numpy().tolist()
        shown = [_under(run.predictions[run.predictions["patch"] == p], t, confidence, start[0], matching)
                 for p, t in zip(patches, truths, strict=True)]  # fmt: skip
        found.append({"n": n, "arm": arm, "seed": seed, "scores": rows, "patches": shown})
    data = {
        "confidence": confidence, "start": confidence.index(start[1]), "size": test.size, "runs": found,
        "columns": [NAMES.get(column, column.upper()) for column in COLUMNS],
        "patches": [{"name": f"test patch {p}", "image": png(test.images[p]),
                     "truths": t.reshape(-1, 2, 2).mean(axis=1).round(1).tolist()}
                    for p, t in zip(patches, truths, strict=True)],
    }  # fmt: skip
    classes = runs[0].truth.classes.items()
    legend = " ".join(f'<span style="color:{class_color(k)}">■</span> {html.escape(v)}' for k, v in classes)
    pictures = "".join(f'<img src="{p["image"]}" alt="{p["name"]}">' for p in data["patches"])
    return box("thresholds", data, (
        f"<p><strong>{html.escape(note)}.</strong> {legend}. Solid box: matches a defect. Dashed: matches none. "
        f'White dot: a defect that nothing matches.</p><div class="pictures">{pictures}</div>'
    ))  # fmt: skip


def _under(found: pd.DataFrame, truths: NDArray, confidence: Sequence[float], iou: float, matching: Matching) -> Any:
    """Boxes (x, y, width, height, colour) by falling score, how many stay at each confidence, and their pairs."""
    found = found.iloc[score_order(found["score"].to_numpy(), found[BOX].to_numpy())]
    reached = kept(found["score"].to_numpy(), confidence)
    found = found.head(max(reached, default=0))
    boxes = [(*np.round([x1, y1, x2 - x1, y2 - y1], 1).tolist(), class_color(label))
             for x1, y1, x2, y2, label in found[[*BOX, "label"]].itertuples(index=False)]  # fmt: skip
    pairs = match(box_iou(truths, found[BOX]), reached, [iou], matching)[0].tolist()
    return {"boxes": boxes, "kept": reached.tolist(), "pairs": pairs}


def draws(pairs: pd.DataFrame, level: float) -> str:
    """What mean, interval and p become when only some of the pairs of a condition had been trained.

    `pairs` (`significance.paired_scores`) of one arm; of the first eight each choice of two or more is tested (t).
    """
    conditions = []
    for (*at, measure), own in pairs.dropna(subset="difference").groupby([*CONDITION, "measure"]):
        d = own.sort_values("seed")["difference"].to_numpy()[:8]
        tests = {
            sum(1 << k for k in some): [round(float(value), 5) for value in map(t.get, ("mean", "low", "high", "p"))]
            for size in range(2, len(d) + 1) for some in combinations(range(len(d)), size)
            if np.isfinite((t := paired_t(d[list(some)], level))["p"])
        }  # fmt: skip
        if tests:
            name = f"{NAMES[measure]}, {condition_name(at)}"
            conditions.append({"name": name, "differences": d.round(5).tolist(), "tests": tests})
    return box("draws", {"level": round(100 * level), "conditions": conditions})


def confusion(runs: Sequence[Run], points: pd.DataFrame, rule: tuple[float, Matching], note: str) -> str:
    """For each run a table of what is labelled (rows) against what was said (columns), close-ups behind each number.

    `points` are the confidences of the arms (`thresholds.choices`), `rule` the IoU of a match and how boxes are paired.
    """
    tables, cells = "", []
    for run in runs:
        classes, rows = run.truth.classes, ""
        guesses, truths = audit(run.confident(points), run.patches.table, run.patches.index, *rule)
        both = truths.merge(guesses, "outer", left_on="pair", right_on="row", suffixes=("", "_said"))
        both = both.fillna({"class": 0, "class_said": 0, "score_said": 0.0, "patch": both["patch_said"]})
        both = both.sort_values("score_said", ascending=False, kind="stable")
        seen = dict(list(both.groupby(["class", "class_said"])))
        for true in (*classes, 0):
            numbers = ""
            for said in (*classes, 0):
                own = seen.get((true, said), both[:0])
                what = f"labelled {classes[true]}" if true else "not labelled"
                what += f", found as {classes[said]}" if said else ", missed"
                crops = [_crop(run.patches.images, row) for _, row in own[:EACH].iterrows()]
                cells.append({"name": f"{run.keys['arm']}: {what}", "n": len(own), "crops": crops})
                numbers += f"<td>{len(own) if true or said else ''}</td>"
            rows += f"<tr><th>{html.escape(classes.get(true, 'not labelled'))}</th>{numbers}</tr>"
        heads = "".join(f"<th>{html.escape(name)}</th>" for name in (*classes.values(), "missed"))
        caption = f"{run.keys['arm']}, seed {run.keys['seed']}: labelled (rows), found as (columns); {note}"
        tables += (f"<table><caption>{html.escape(caption)}</caption><thead><tr><td></td>{heads}</tr></thead>"
                   f"<tbody>{rows}</tbody></table>")  # fmt: skip
    return box("confusion", cells, tables)


def _crop(images: NDArray, row: pd.Series) -> dict[str, Any]:
    """A close-up of `SIDE` px with the boxes (x, y, width, height in its px) of the label and of the prediction."""
    score, patch = row["score_said"], int(row["patch"])
    boxes = [row[BOX].to_numpy(float), row[[f"{side}_said" for side in BOX]].to_numpy(float)]
    x1, y1, x2, y2 = np.where(np.isnan(boxes[0]), boxes[1], boxes[0])  # the label's, else that of the prediction
    side = max(SIDE, 1.4 * max(x2 - x1, y2 - y1))
    left, top = ((low + high - side) / 2 for low, high in ((x1, x2), (y1, y2)))
    whole = Image.fromarray(np.asarray(images[patch]))
    part = whole.crop((round(left), round(top), round(left + side), round(top + side))).resize((SIDE, SIDE))
    drawn = [None if np.isnan(b).any() else (SIDE / side * np.subtract(b, [left, top, *b[:2]])).round(1).tolist()
             for b in boxes]  # fmt: skip
    return {"image": png(part), "name": f"patch {patch}" + (f", score {score:.2f}" if score else ""), "boxes": drawn}


def pictures(figure: Path, rows: int) -> list[list[Image.Image]]:
    """The pictures of a figure (SVG) that has them in `rows` rows, row by row; none where there is no such figure."""
    text = figure.read_text(encoding="utf-8") if figure.is_file() else ""
    found = [ImageOps.flip(Image.open(io.BytesIO(base64.b64decode(data))))  # its text holds them upside down
             for data in re.findall(r'href="data:image/png;base64,([^"]*)"', text)]  # fmt: skip
    across = len(found) // rows
    return [found[k * across : (k + 1) * across] for k in range(rows)]


def same_masks(figure: Path) -> list[dict[str, Image.Image]]:
    """Pictures of one mask each, from notebook 05's Fig. 2: labelled, mask, generated and, for the phantom, painted.

    Nothing where no network drew.
    """
    text = figure.read_text(encoding="utf-8") if figure.is_file() else ""
    names = ["labelled", "mask", "generated", *["painted"] * ("painted" in text)]
    rows = pictures(figure, len(names) + 2) if "same masks" in text else []
    return [dict(zip(names, column, strict=False)) for column in zip(*rows, strict=True)]


def swipe(piles: Mapping[str, Mapping[str, Image.Image]], label: str) -> str:
    """Pictures over each other, to be wiped away one by one, and the mask beside them; one pile by name is shown."""
    data, static = [], ""
    for name, pile in piles.items():
        shown = {kind: png(picture.convert("RGB" if kind == "mask" else "L")) for kind, picture in pile.items()}
        static += "".join(f'<figure><img src="{image}" alt="{kind}, {label} {name}"><figcaption>{kind}</figcaption>'
                          "</figure>" for kind, image in shown.items())  # fmt: skip
        data.append([name, shown])
    return box("swipe", {"label": label, "piles": data}, f'<div class="pictures">{static}</div>') if data else ""


def wiped(figures: Path) -> str:
    """Labelled patches of notebook 05's Fig. 2, below what the network and the phantom draw of their masks."""
    return swipe({str(k): pile for k, pile in enumerate(same_masks(figures / "fig2.svg")[:SHOWN], 1)}, "mask")


def edited(figures: Path) -> str:
    """The image of a mask below that of the mask with one defect edited, of the same noise, from notebook 13."""
    masks, images = pictures(figures / "edited.svg", 2)
    edits = enumerate(("moved", "turned", "grown", "removed")[: len(images)], 1)
    return swipe({name: {"mask": masks[k], "as simulated": images[0], name: images[k]} for k, name in edits}, "defect")


def learning_curve(worth: pd.DataFrame, curve: pd.DataFrame, said: Sequence[str], measure: str, level: float) -> str:
    """The learning curve of EXP, on which a reader picks a score, and where EXP+GEN lies on it; a picture per split.

    `worth` and `curve` are those of `worth.in_micrographs`, `said` its rows in words.
    """
    html_ = ""
    for split, own in curve.groupby("split"):
        at = worth[worth["split"] == split].assign(text=[line for line in said if line.startswith(f"Split {split},")])
        first, last = at["n_train"].min(), at["n_train"].max()
        low, high = min(own["score"].min(), at["score"].min()), max(own["score"].max(), at["score"].max())
        text = [f"EXP: {row.score:.3f} with {row.equivalent:.0f} labelled micrographs ({100 * level:g} % interval "
                f"{row.low:.0f} to {row.high:.0f})." for row in own.itertuples()]  # fmt: skip
        stops = []
        for table in (at, own.assign(text=text, n_train=0)):
            x = 40 + 250 * np.log(table[["equivalent", "low", "high"]].ffill(axis=1) / first) / np.log(last / first)
            y = 130 - 110 * (table["score"] - low) / (high - low or 1.0)
            rows = zip(table["n_train"], table["text"], x.assign(y=y).round(1).to_numpy().tolist(), strict=True)
            stops.append([{"n": n, "text": text, "at": place} for n, text, place in rows])
        points, now = " ".join("{0},{3}".format(*stop["at"]) for stop in stops[1]), stops[0][0]["at"]
        marks = "".join('<circle cx="{0}" cy="{3}" r="4" class="gen"/>'.format(*stop["at"]) for stop in stops[0])
        ends = "".join(f'<text x="{x}" y="146">{n:.0f}</text>' for x, n in ((36, first), (280, last)))
        html_ += box("curve", stops, (
            f'<svg viewBox="0 0 300 150" role="img" aria-label="Learning curve of EXP, split {split}"><polyline '
            f'points="{points}" class="curve curve-0"/>{marks}<line x1="{now[1]}" x2="{now[2]}" y1="{now[3]}" '
            f'y2="{now[3]}" class="interval"/><circle cx="{now[0]}" cy="{now[3]}" r="5" class="mean"/>'
            f'{ends}<text x="90" y="146">labelled micrographs</text><text x="2" y="12">{NAMES[measure]}, split '
            f'{split}; orange: EXP+GEN</text><text x="2" y="24">{high:.3f}</text><text x="2" y="133">{low:.3f}</text>'
            f'</svg><p aria-live="polite">{" ".join(at["text"])}</p>'
        ))  # fmt: skip
    return html_
