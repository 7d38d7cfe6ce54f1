"""Scores and detections under two sliders, in one piece of HTML that needs no server and asks for nothing.

The page is whole without scripts: it shows the thresholds where the sliders start, and the script replaces them.
"""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from string import Template
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from companion.plots import CLASS_COLORS

_PAGE = Template("""
<div class="threshold-page" id="$id">
<style>
#$id .controls {display: flex; flex-wrap: wrap; gap: 0.4em 2em; align-items: center; margin: 0.5em 0}
#$id .pictures {display: grid; grid-template-columns: repeat(auto-fill, minmax(11em, 1fr)); gap: 0.5em}
#$id svg {width: 100%; height: auto; display: block; image-rendering: pixelated}
#$id rect {fill: none; stroke-width: $line}
#$id circle {fill: white; stroke: black; stroke-width: $edge}
#$id table {border-collapse: collapse; margin: 0.5em 0}
#$id td, #$id th {padding: 0.1em 0.9em 0.1em 0; text-align: right; border: 0}
#$id th:first-child, #$id td:first-child {text-align: left}
</style>
<p><strong>$note.</strong> $caption</p>
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
  const data = $data, root = document.getElementById("$id"), pick = (name) => root.querySelector(name);
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


def threshold_page(
    arms: Mapping[str, Mapping[str, NDArray[np.float64]]],
    pictures: Sequence[Mapping[str, Any]],
    iou: Sequence[float],
    confidence: Sequence[float],
    start: tuple[float, float],
    classes: Mapping[int, str],
    note: str,
    caption: str,
    identity: str = "thresholds",
) -> str:
    """HTML with two sliders (confidence, IoU), the scores of every arm and the detections on some patches.

    Parameters
    ----------
    arms : arm -> score name (see `COLUMNS`) -> [I, C] values, NaN where undefined
    pictures : name, image (uint8 [S, S]), truths ([T, 2] centres in px) and, by arm, boxes ([M, 5]: x1, y1, x2, y2,
        label, best score first), kept ([C] how many of them reach each confidence) and pairs ([I, C, T] index of each
        truth's box, -1 for none)
    iou, confidence : the swept thresholds
    start : (IoU, confidence) at which the sliders stand
    classes : class code -> name
    note, caption : what data it is, and what is shown
    identity : id of the element, for pages that hold several
    """
    size = pictures[0]["image"].shape[0]
    colors = {code: CLASS_COLORS[(code - 1) % len(CLASS_COLORS)] for code in classes}
    data = {
        "iou": [f"{v:.2f}" for v in iou], "confidence": [f"{v:.2f}" for v in confidence], "dash": f"{size / 40:g}",
        "start": [int(np.argmin(np.abs(np.subtract(v, s)))) for v, s in zip((iou, confidence), start, strict=True)],
        "arms": {
            arm: [[_row(arm, *(_shown(own[key][i][c], digits) for key, _, digits in COLUMNS))
                   for c in range(len(confidence))] for i in range(len(iou))]
            for arm, own in arms.items()
        },
        "pictures": [{
            "truths": [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size / 50:g}"/>' for x, y in picture["truths"]],
            "found": {arm: {
                "boxes": [f'x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}" '
                          f'stroke="{colors[int(label)]}"' for x1, y1, x2, y2, label in boxes],
                "kept": picture["kept"][arm].tolist(), "pairs": picture["pairs"][arm].tolist(),
            } for arm, boxes in picture["boxes"].items()},
        } for picture in pictures],
    }  # fmt: skip
    (i, c), first = data["start"], next(iter(arms))
    legend = (f'<span style="color:{colors[code]}">■</span> {html.escape(name)}' for code, name in classes.items())
    frames = (_frame(picture, drawn, first, i, c, data["dash"])
              for picture, drawn in zip(pictures, data["pictures"], strict=True))  # fmt: skip
    return _PAGE.substitute(
        id=identity, note=html.escape(note), caption=html.escape(caption), legend="Colours: " + ", ".join(legend),
        head=_row("arm (mean of runs)", *(name for _, name, _ in COLUMNS)).replace("td>", "th>"),
        body="".join(rows[i][c] for rows in data["arms"].values()), c=data["confidence"][c], i=data["iou"][i],
        arm=html.escape(first), line=f"{size / 90:.2f}", edge=f"{size / 200:.2f}", pictures="".join(frames),
        # "<" is escaped, so that no text in the data can end the script.
        data=json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    )  # fmt: skip


def _frame(picture: Mapping[str, Any], drawn: Mapping[str, Any], arm: str, i: int, c: int, dash: str) -> str:
    """A patch with the detections of one arm at one pair of thresholds, as the script draws them."""
    size, found = picture["image"].shape[0], drawn["found"][arm]
    pairs = found["pairs"][i][c]
    layer = [f'<rect stroke-dasharray="{"none" if n in pairs else dash}" {box}/>'
             for n, box in enumerate(found["boxes"][: found["kept"][c]])]  # fmt: skip
    layer += [circle for circle, pair in zip(drawn["truths"], pairs, strict=True) if pair < 0]
    with io.BytesIO() as buffer:
        Image.fromarray(np.asarray(picture["image"])).save(buffer, format="PNG", optimize=True)
        image = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return (f'<svg viewBox="0 0 {size} {size}" role="img" aria-label="{html.escape(picture["name"])}">'
            f'<image href="{image}" width="{size}" height="{size}"/><g>{"".join(layer)}</g></svg>')  # fmt: skip


def _row(*cells: str) -> str:
    return "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


def _shown(value: float, digits: int) -> str:
    return "undefined" if np.isnan(value) else f"{value:.{digits}f}"
