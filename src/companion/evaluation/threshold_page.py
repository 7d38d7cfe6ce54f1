"""Scores and detections under two sliders, in one piece of HTML that needs no server and asks for nothing.

The page is whole without scripts: the table and the detections at the thresholds where the sliders start are drawn
here, and the script replaces them.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Mapping, Sequence
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from companion.plots import CLASS_COLORS

_TEMPLATE = """
<div class="threshold-page" id="@ID@">
<style>
#@ID@ {font-size: 0.95em}
#@ID@ .controls {display: flex; flex-wrap: wrap; gap: 0.4em 2em; align-items: center; margin: 0.5em 0}
#@ID@ .pictures {display: grid; grid-template-columns: repeat(auto-fill, minmax(11em, 1fr)); gap: 0.5em}
#@ID@ svg {width: 100%; height: auto; display: block; image-rendering: pixelated}
#@ID@ rect {fill: none; stroke-width: @LINE@}
#@ID@ circle {fill: white; stroke: black; stroke-width: @EDGE@}
#@ID@ table {border-collapse: collapse; margin: 0.5em 0}
#@ID@ td, #@ID@ th {padding: 0.1em 0.9em 0.1em 0; text-align: right; border: 0}
#@ID@ th:first-child, #@ID@ td:first-child {text-align: left}
</style>
<p><strong>@NOTE@.</strong> @CAPTION@</p>
<noscript><p>The sliders need scripts; these are the scores and detections at one pair of thresholds.</p></noscript>
<div class="controls" style="display: none">
<label>confidence<br><input class="confidence" type="range" min="0" step="1"></label>
<label>box IoU<br><input class="iou" type="range" min="0" step="1"></label>
<label>detector<br><select class="arm"></select></label>
</div>
<p>Confidence ≥ <output class="c">@C@</output>, box IoU ≥ <output class="i">@I@</output>, boxes of
<output class="who">@ARM@</output>:</p>
<table aria-live="polite"><thead>@HEAD@</thead><tbody>@BODY@</tbody></table>
<p>@LEGEND@. Solid box: matches a defect. Dashed: matches none. White dots: annotated defects that nothing matches.</p>
<div class="pictures">@PICTURES@</div>
<script>
(function () {
  const data = @DATA@, root = document.getElementById("@ID@"), svg = "http://www.w3.org/2000/svg";
  const pick = (name) => root.querySelector(name);
  const confidence = pick(".confidence"), iou = pick(".iou"), arm = pick(".arm");
  confidence.max = data.confidence.length - 1; confidence.value = data.start[1];
  iou.max = data.iou.length - 1; iou.value = data.start[0];
  for (const name of Object.keys(data.arms)) arm.add(new Option(name, name));
  const shape = (kind, attributes) => {
    const node = document.createElementNS(svg, kind);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    return node;
  };
  const row = (cells, kind) => {
    const line = document.createElement("tr");
    for (const cell of cells) line.appendChild(document.createElement(kind)).textContent = cell;
    return line;
  };
  const shown = (value, digits) => value === null ? "undefined" : value.toFixed(digits);
  const frames = root.querySelectorAll(".pictures svg");
  pick(".controls").style.display = "";
  function draw() {
    const i = +iou.value, c = +confidence.value;
    pick(".c").textContent = data.confidence[c].toFixed(2); pick(".i").textContent = data.iou[i].toFixed(2);
    pick(".who").textContent = arm.value;
    pick("tbody").replaceChildren(...Object.entries(data.arms).map(([name, found]) =>
      row([name, ...data.columns.map(([key, , digits]) => shown(found.scores[key][i][c], digits))], "td")));
    data.pictures.forEach((picture, k) => {
      const layer = shape("g", {}), found = picture.found[arm.value], pairs = found.pairs[i][c];
      found.boxes.slice(0, found.kept[c]).forEach(([x1, y1, x2, y2, label], n) => {
        layer.appendChild(shape("rect", {x: x1, y: y1, width: x2 - x1, height: y2 - y1,
          stroke: data.colors[label], "stroke-dasharray": pairs.includes(n) ? "none" : data.size / 40}));
      });
      picture.truths.forEach(([x, y], n) => {
        if (pairs[n] < 0) layer.appendChild(shape("circle", {cx: x, cy: y, r: data.size / 50}));
      });
      frames[k].replaceChild(layer, frames[k].lastChild);
    });
  }
  for (const control of [confidence, iou, arm]) control.addEventListener("input", draw);
  draw();
})();
</script>
</div>
"""
COLUMNS = (
    ("tp", "found", 0), ("fp", "false", 0), ("fn", "missed", 0), ("precision", "precision", 3),
    ("recall", "recall", 3), ("f1_detect", "F1 detect", 3), ("f1_class", "F1 class", 3), ("f1_hm", "F1HM", 3),
)  # fmt: skip
DIGITS = 4  # of the scores that the page holds


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
        label, best score first), kept ([C] how many of them reach each confidence: a score that is rounded for the
        page might fall on the other side) and pairs ([I, C, T] index of each truth's box, -1 for none)
    iou, confidence : the swept thresholds
    start : (IoU, confidence) at which the sliders stand
    classes : class code -> name
    note, caption : what data it is, and what is shown
    identity : id of the element, for pages that hold several
    """

    def color(code: int) -> str:
        return CLASS_COLORS[(code - 1) % len(CLASS_COLORS)]

    data = {
        "iou": list(iou), "confidence": list(confidence), "size": int(pictures[0]["image"].shape[0]),
        "start": [int(np.argmin(np.abs(np.subtract(v, s)))) for v, s in zip((iou, confidence), start, strict=True)],
        "columns": COLUMNS, "colors": {code: color(code) for code in classes},
        "arms": {arm: {"scores": {k: _plain(v, DIGITS) for k, v in scores.items()}} for arm, scores in arms.items()},
        "pictures": [
            {
                "truths": _plain(picture["truths"], 1),
                "found": {
                    arm: {"boxes": _plain(boxes, 1),
                          **{key: np.asarray(picture[key][arm]).tolist() for key in ("kept", "pairs")}}
                    for arm, boxes in picture["boxes"].items()
                },
            }
            for picture in pictures
        ],
    }  # fmt: skip
    legend = "Colours: " + ", ".join(f'<span style="color:{color(c)}">■</span> {_text(n)}' for c, n in classes.items())
    # "<" is escaped, so that no text in the data can end the script.
    script = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    i, c = data["start"]
    names = ["arm (mean of runs)", *(column[1] for column in COLUMNS)]
    body = [[arm, *(_shown(own[key][i][c], digits) for key, _, digits in COLUMNS)] for arm, own in arms.items()]
    filled = {
        "NOTE": _text(note), "CAPTION": _text(caption), "LEGEND": legend, "HEAD": _row(names, "th"),
        "BODY": "".join(_row(cells, "td") for cells in body), "C": f"{confidence[c]:.2f}", "I": f"{iou[i]:.2f}",
        "ARM": _text(next(iter(arms))), "LINE": f"{data['size'] / 90:.2f}", "EDGE": f"{data['size'] / 200:.2f}",
        "PICTURES": "".join(_frame(picture, next(iter(arms)), i, c, color) for picture in pictures),
        "ID": identity, "DATA": script,
    }  # fmt: skip
    page = _TEMPLATE
    for name, text in filled.items():
        page = page.replace(f"@{name}@", text)
    return page


def _frame(picture: Mapping[str, Any], arm: str, i: int, c: int, color: Callable[[int], str]) -> str:
    """A patch with the detections of one arm at one pair of thresholds, as the script draws them."""
    size, pairs = picture["image"].shape[0], np.asarray(picture["pairs"][arm])[i, c]
    layer = ""
    for n, (x1, y1, x2, y2, label) in enumerate(picture["boxes"][arm][: picture["kept"][arm][c]]):
        dash = "none" if n in pairs else f"{size / 40:g}"
        place = f'x="{x1:.1f}" y="{y1:.1f}" width="{x2 - x1:.1f}" height="{y2 - y1:.1f}"'
        layer += f'<rect {place} stroke="{color(int(label))}" stroke-dasharray="{dash}"/>'
    for x, y in picture["truths"][pairs < 0]:
        layer += f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size / 50:g}"/>'
    image = f'<image href="{_png(picture["image"])}" width="{size}" height="{size}"/>'
    name = _text(picture["name"])
    return f'<svg viewBox="0 0 {size} {size}" role="img" aria-label="{name}">{image}<g>{layer}</g></svg>'


def _row(cells: Sequence[str], kind: str) -> str:
    return "<tr>" + "".join(f"<{kind}>{_text(cell)}</{kind}>" for cell in cells) + "</tr>"


def _shown(value: float, digits: int) -> str:
    """A score as the script shows it: halves go up, as in JavaScript, not to the even digit, as in Python."""
    if np.isnan(value):
        return "undefined"
    return str(Decimal(round(float(value), DIGITS)).quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP))


def _text(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def _plain(values: Any, digits: int) -> Any:
    array = np.round(np.asarray(values, dtype=float), digits)
    return np.where(np.isnan(array), None, array).tolist()  # type: ignore[call-overload]


def _png(image: NDArray[np.uint8]) -> str:
    with io.BytesIO() as buffer:
        Image.fromarray(np.asarray(image)).save(buffer, format="PNG", optimize=True)
        return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
