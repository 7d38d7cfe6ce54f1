"""Scores and detections under two sliders: one piece of HTML that needs no server and asks for nothing."""

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
from PIL import Image

from companion.evaluation.formats import BOX
from companion.evaluation.matching import Matching, kept, match, score_order
from companion.evaluation.plots import class_color
from companion.evaluation.runs import Run
from companion.geometry import box_iou

COLUMNS = ["tp", "fp", "fn", "precision", "recall", "f1_detect", "f1_class", "f1_hm"]
_PAGE = Template("""<div id="thresholds">
<style>
#thresholds .pictures {display: grid; grid-template-columns: repeat(auto-fill, minmax(11em, 1fr)); gap: 0.5em}
#thresholds rect {fill: none; stroke-width: $line}
#thresholds circle {fill: white; stroke: black; stroke-width: $edge}
</style>
<p><strong>$note.</strong> Scores are means over seeds, empty where one is undefined.</p>
<label>confidence ≥ <output class="c"></output> <input class="confidence" type="range" min="0"></label>
<label>box IoU ≥ <output class="i"></output> <input class="iou" type="range" min="0"></label>
<label>boxes of <select class="arm"></select></label><table><thead></thead><tbody></tbody></table>
<p>$legend. Solid box: matches a defect. Dashed: matches none. White dots: defects that nothing matches.</p>
<div class="pictures">$pictures</div>
<script>
(function () {
  const data = $data, root = document.getElementById("thresholds"), pick = (name) => root.querySelector(name);
  const confidence = pick(".confidence"), iou = pick(".iou"), arm = pick(".arm");
  const row = (cells) => "<tr>" + cells.map((cell) => `<td>$${cell}</td>`).join("") + "</tr>";
  confidence.max = data.confidence.length - 1; confidence.value = data.start[1];
  iou.max = data.iou.length - 1; iou.value = data.start[0];
  for (const name of Object.keys(data.scores)) arm.add(new Option(name, name));
  pick("thead").innerHTML = row(data.columns);
  function draw() {
    const i = +iou.value, c = +confidence.value;
    pick(".c").textContent = data.confidence[c]; pick(".i").textContent = data.iou[i];
    pick("tbody").innerHTML = Object.entries(data.scores)
      .map(([name, scores]) => row([name, ...scores[i * data.confidence.length + c]])).join("");
    root.querySelectorAll(".pictures g").forEach((layer, k) => {
      const found = data.found[arm.value][k], pairs = found.pairs[i][c];
      const boxes = found.boxes.slice(0, found.kept[c]).map(([x, y, w, h, colour], n) => `<rect x="$${x}" y="$${y}"
        width="$${w}" height="$${h}" stroke="$${colour}" stroke-dasharray="$${pairs.includes(n) ? "none" : $dash}"/>`);
      const missed = data.truths[k].filter((_, t) => pairs[t] < 0);
      layer.innerHTML = boxes.concat(missed.map(([x, y]) => `<circle cx="$${x}" cy="$${y}" r="$dot"/>`)).join("");
    });
  }
  for (const control of [confidence, iou, arm]) control.addEventListener("input", draw);
  draw();
})();
</script>
</div>
""")


def explorer(
    runs: Sequence[Run], scores: pd.DataFrame, matching: Matching, start: tuple[float, float], note: str
) -> str:
    """HTML with two sliders (confidence, IoU), the scores of every arm and detections on six test patches.

    Parameters
    ----------
    runs : of one condition; detections are those of each arm's first, on the patches with the most defects
    scores : scores.parquet of these runs
    start : (IoU, confidence) at which the sliders stand
    """
    first = {arm: next(run for run in runs if run.keys["arm"] == arm) for arm in scores["arm"].unique()}
    test, classes = runs[0].patches, runs[0].truth.classes
    iou, confidence = (sorted(set(scores[name])) for name in ("iou_threshold", "confidence"))
    shown = test.table["patch"].value_counts().sort_index().nlargest(6).index
    means = scores.groupby(["arm", "iou_threshold", "confidence"])[COLUMNS].agg(lambda seeds: seeds.mean(skipna=False))
    data = {
        "columns": ["arm", *COLUMNS], "iou": iou, "confidence": confidence,
        "start": [iou.index(start[0]), confidence.index(start[1])],
        "scores": {arm: own.round(3).astype(object).fillna("").values.tolist() for arm, own in means.groupby("arm")},
        "truths": [test.of(p)[BOX].to_numpy(float).reshape(-1, 2, 2).mean(axis=1).tolist() for p in shown],
        "found": {arm: [_detections(run, p, iou, confidence, matching) for p in shown] for arm, run in first.items()},
    }  # fmt: skip
    pictures, size = [], test.size
    for p in shown:
        Image.fromarray(np.asarray(test.images[p])).save(buffer := io.BytesIO(), format="PNG")
        url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        pictures.append(f'<svg viewBox="0 0 {size} {size}" role="img" aria-label="test patch {p}">'
                        f'<image href="{url}" width="{size}" height="{size}"/><g></g></svg>')  # fmt: skip
    legend = (f'<span style="color:{class_color(k)}">■</span> {html.escape(name)}' for k, name in classes.items())
    return _PAGE.substitute(
        note=html.escape(note), legend=" ".join(legend), pictures="".join(pictures), line=size / 90, edge=size / 200,
        dash=size / 40, dot=size / 50, data=json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
    )  # fmt: skip


def _detections(run: Run, p: int, iou: Sequence[float], confidence: Sequence[float], rule: Matching) -> dict[str, Any]:
    """Boxes of a patch (x, y, width, height, colour), best score first; how many reach each confidence; the pairs."""
    here = run.predictions[run.predictions["patch"] == p]
    here = here.iloc[score_order(here["score"].to_numpy(), here[BOX].to_numpy())]
    n_kept = kept(here["score"].to_numpy(), confidence)
    pairs = match(box_iou(run.patches.of(p)[BOX], here[BOX]), n_kept, iou, rule)
    boxes = [(*np.round([x1, y1, x2 - x1, y2 - y1], 1).tolist(), class_color(label))
             for x1, y1, x2, y2, label in here[[*BOX, "label"]].itertuples(index=False)]  # fmt: skip
    return {"boxes": boxes, "kept": n_kept.tolist(), "pairs": pairs.tolist()}
