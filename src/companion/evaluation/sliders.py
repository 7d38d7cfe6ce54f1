"""Scores and detections under two sliders, in one piece of HTML that needs no server and asks for nothing.

The page is whole without scripts: it shows the thresholds where the sliders start, and the script replaces them.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from string import Template
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from companion.evaluation.conditions import CONDITION, condition_name
from companion.evaluation.formats import BOX
from companion.evaluation.matching import Matching, kept, match, score_order
from companion.evaluation.runs import Run
from companion.evaluation.scores import Counts, pooled
from companion.geometry import box_iou
from companion.plots import CLASS_COLORS

_PAGE = Template("""
<div class="threshold-page" id="thresholds">
<style>
#thresholds .controls {display: flex; flex-wrap: wrap; gap: 0.4em 2em}
#thresholds .pictures {display: grid; grid-template-columns: repeat(auto-fill, minmax(11em, 1fr)); gap: 0.5em}
#thresholds svg {width: 100%; height: auto; display: block; image-rendering: pixelated}
#thresholds rect {fill: none; stroke-width: $line}
#thresholds circle {fill: white; stroke: black; stroke-width: $edge}
#thresholds td {padding: 0.1em 0.9em 0.1em 0; text-align: right; border: 0}
</style>
<p><strong>$note.</strong> Detectors of $condition.</p>
<noscript><p>The sliders need scripts; these are the scores and detections at one pair of thresholds.</p></noscript>
<div class="controls" style="display: none">
<label>confidence<br><input class="confidence" type="range" min="0" step="1"></label>
<label>box IoU<br><input class="iou" type="range" min="0" step="1"></label>
<label>detector<br><select class="arm"></select></label>
</div>
<p>Confidence ≥ <output class="c">$c</output>, box IoU ≥ <output class="i">$i</output>, boxes of
<output class="who">$arm</output>:</p>
<table aria-live="polite"><thead>$head</thead><tbody>$body</tbody></table>
<p>$legend. Solid box: matches a defect. Dashed: matches none. White dots: annotated defects that nothing matches.</p>
<div class="pictures">$pictures</div>
<script>
(function () {
  const data = $data, root = document.getElementById("thresholds"), pick = (name) => root.querySelector(name);
  const confidence = pick(".confidence"), iou = pick(".iou"), arm = pick(".arm");
  confidence.max = data.confidence.length - 1; confidence.value = data.start[1];
  iou.max = data.iou.length - 1; iou.value = data.start[0];
  for (const name of Object.keys(data.arms)) arm.add(new Option(name, name));
  pick(".controls").style.display = "";
  function draw() {
    const i = +iou.value, c = +confidence.value;
    pick(".c").textContent = data.confidence[c]; pick(".i").textContent = data.iou[i];
    pick(".who").textContent = arm.value;
    pick("tbody").innerHTML = Object.values(data.arms).map((rows) => rows[i][c]).join("");
    root.querySelectorAll(".pictures g").forEach((layer, k) => {
      const found = data.pictures[k].found[arm.value], pairs = found.pairs[i][c];
      const boxes = found.boxes.slice(0, found.kept[c]).map((box, n) =>
        `<rect stroke-dasharray="$${pairs.includes(n) ? "none" : data.dash}" $${box}/>`);
      layer.innerHTML = boxes.concat(data.pictures[k].truths.filter((_, t) => pairs[t] < 0)).join("");
    });
  }
  for (const control of [confidence, iou, arm]) control.addEventListener("input", draw);
  draw();
})();
</script>
</div>
""")
COLUMNS = (
    ("tp", "found", 0), ("fp", "false", 0), ("fn", "missed", 0), ("precision", "precision", 3),
    ("recall", "recall", 3), ("f1_detect", "F1 detect", 3), ("f1_class", "F1 class", 3), ("f1_hm", "F1HM", 3),
)  # fmt: skip


def explorer(
    found: Sequence[Run], counts: Sequence[Counts], matching: Matching, start: tuple[float, float], note: str
) -> str:
    """HTML with two sliders (confidence, IoU), the scores of every arm and the detections on some test patches.

    Shown are the runs of the first one's split and N: scores are means over seeds, undefined where any seed is;
    detections are those of each arm's first seed, on the first six of `lively_patches`.

    Parameters
    ----------
    found, counts : runs and their counts at every threshold
    matching : the rule of the counts
    start : (IoU, confidence) at which the sliders stand
    note : what data it is
    """
    by_arm: dict[str, list[tuple[Run, Counts]]] = {}
    for run, counted in zip(found, counts, strict=True):
        if all(run.keys[key] == found[0].keys[key] for key in CONDITION):
            by_arm.setdefault(run.keys["arm"], []).append((run, counted))
    test, swept, classes = found[0].patches, counts[0], found[0].truth.classes
    colors = {code: CLASS_COLORS[(code - 1) % len(CLASS_COLORS)] for code in classes}
    chosen = lively_patches([own[0][1] for own in by_arm.values()], test.index["image"])[:6].tolist()
    drawn = [{
        "truths": [f'<circle cx="{(x1 + x2) / 2:.1f}" cy="{(y1 + y2) / 2:.1f}" r="{test.size / 50:g}"/>'
                   for x1, y1, x2, y2 in test.of(p)[BOX].to_numpy(dtype=float)],
        "found": {arm: _detections(own[0][0], p, swept, matching, colors) for arm, own in by_arm.items()},
    } for p in chosen]  # fmt: skip
    sweeps = swept.iou, swept.confidence
    data = {
        **{name: [f"{v:.2f}" for v in sweep] for name, sweep in zip(("iou", "confidence"), sweeps, strict=True)},
        "start": [int(np.abs(np.subtract(sweep, at)).argmin()) for sweep, at in zip(sweeps, start, strict=True)],
        "arms": {arm: _rows(arm, [pooled(c) for _, c in own]) for arm, own in by_arm.items()},
        "pictures": drawn, "dash": f"{test.size / 40:g}",
    }  # fmt: skip
    (i, c), first = data["start"], next(iter(by_arm))
    frames = (_frame(test.images[p], f"{test.index['image'].iloc[p]}, patch {p}", picture, first, (i, c), data["dash"])
              for p, picture in zip(chosen, drawn, strict=True))  # fmt: skip
    legend = (f'<span style="color:{colors[code]}">■</span> {html.escape(name)}' for code, name in classes.items())
    return _PAGE.substitute(
        note=html.escape(note), condition=condition_name(tuple(found[0].keys[key] for key in CONDITION)),
        legend=" ".join(legend), head=_row("arm (mean of runs)", *(name for _, name, _ in COLUMNS)),
        body="".join(rows[i][c] for rows in data["arms"].values()), c=data["confidence"][c], i=data["iou"][i],
        arm=html.escape(first), line=f"{test.size / 90:.2f}", edge=f"{test.size / 200:.2f}", pictures="".join(frames),
        # "<" is escaped, so that no text in the data can end the script.
        data=json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    )  # fmt: skip


def lively_patches(swept: Sequence[Counts], images: Sequence[str]) -> NDArray[np.intp]:
    """Patches [P] in the order in which they are worth looking at: first those in which the number of pairs changes
    with both sliders for every detector; of these the first of each micrograph, then the second of each, and so on."""
    lively = np.ones(len(images), dtype=bool)
    for counts in swept:
        pairs = counts.pairs.sum(axis=(-2, -1))  # (P, I, C)
        lively &= np.ptp(pairs, axis=1).any(axis=1) & np.ptp(pairs, axis=2).any(axis=1)
    table = pd.DataFrame({"still": ~lively, "image": list(images)})
    table["turn"] = table.groupby(["still", "image"]).cumcount()
    return table.sort_values(["still", "turn"], kind="stable").index.to_numpy()


def _detections(run: Run, p: int, swept: Counts, matching: Matching, colors: dict[int, str]) -> dict[str, Any]:
    """Boxes of a patch as SVG attributes, best score first; how many reach each confidence; each truth's box."""
    here = run.predictions[run.predictions["patch"] == p]
    here = here.iloc[score_order(here["score"].to_numpy(), here[BOX].to_numpy())]
    n_kept = kept(here["score"].to_numpy(), swept.confidence)
    pairs = match(box_iou(run.patches.of(p)[BOX], here[BOX]), n_kept, swept.iou, matching)
    boxes = [f'x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}" stroke="{colors[label]}"'
             for x1, y1, x2, y2, label in here[[*BOX, "label"]].itertuples(index=False)]  # fmt: skip
    return {"boxes": boxes, "kept": n_kept.tolist(), "pairs": pairs.tolist()}


def _frame(image: NDArray, name: str, picture: dict, arm: str, at: tuple[int, int], dash: str) -> str:
    """A patch with the detections of one arm at one pair of thresholds, as the script draws them."""
    found, size = picture["found"][arm], image.shape[0]
    pairs = found["pairs"][at[0]][at[1]]
    layer = [f'<rect stroke-dasharray="{"none" if n in pairs else dash}" {box}/>'
             for n, box in enumerate(found["boxes"][: found["kept"][at[1]]])]  # fmt: skip
    layer += [circle for circle, pair in zip(picture["truths"], pairs, strict=True) if pair < 0]
    with io.BytesIO() as buffer:
        Image.fromarray(np.asarray(image)).save(buffer, format="PNG", optimize=True)
        url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return (f'<svg viewBox="0 0 {size} {size}" role="img" aria-label="{html.escape(name)}">'
            f'<image href="{url}" width="{size}" height="{size}"/><g>{"".join(layer)}</g></svg>')  # fmt: skip


def _rows(arm: str, scores: Sequence[dict[str, NDArray]]) -> list[list[str]]:
    """Table row of an arm at every IoU and confidence."""
    mean = {name: np.mean([s[name] for s in scores], axis=0) for name, _, _ in COLUMNS}  # (I, C)
    shown = [np.vectorize(lambda v, d=digits: "undefined" if np.isnan(v) else f"{v:.{d}f}")(mean[name])
             for name, _, digits in COLUMNS]  # fmt: skip
    return [[_row(arm, *cells) for cells in zip(*line, strict=True)] for line in zip(*shown, strict=True)]


def _row(*cells: str) -> str:
    return "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
