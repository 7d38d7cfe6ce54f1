"""Scores and detections under a slider: one piece of HTML that needs no server and asks for nothing."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from string import Template

import numpy as np
import pandas as pd
from PIL import Image

from companion.evaluation.formats import BOX
from companion.evaluation.matching import Matching, kept, match, score_order
from companion.evaluation.plots import class_color
from companion.evaluation.runs import Run
from companion.geometry import box_iou

COLUMNS = ["tp", "fp", "fn", "precision", "recall", "f1_detect", "f1_class", "f1_hm"]
ARMS = ("EXP", "EXP+GEN")  # whose detections are shown, a row each
SHOWN = 5  # patches
_PAGE = Template("""<div id="thresholds">
<style>
#thresholds .pictures {display: grid; grid-template-columns: repeat($columns, 1fr); gap: 0.5em}
#thresholds rect {fill: none; stroke-width: $line}
#thresholds circle {fill: white; stroke: black; stroke-width: $edge}
</style>
<p><strong>$note.</strong> Scores are means over seeds, empty where one is undefined.</p>
<label>confidence ≥ <output></output> <input type="range" min="0"></label><table></table>
<p>$legend. Solid box: matches a defect. Dashed: matches none. White dots: defects that nothing matches.</p>
<div class="pictures">$pictures</div>
<script>
(function () {
  const data = $data, root = document.getElementById("thresholds"), pick = (name) => root.querySelector(name);
  const row = (cells) => "<tr>" + cells.map((cell) => `<td>$${cell}</td>`).join("") + "</tr>", slider = pick("input");
  slider.max = data.confidence.length - 1; slider.value = data.start;
  function draw() {
    const c = +slider.value;
    pick("output").textContent = data.confidence[c];
    const rows = data.scores.map(([arm, scores]) => [arm, ...scores[c]]);
    pick("table").innerHTML = [data.columns, ...rows].map(row).join("");
    root.querySelectorAll("g").forEach((layer, k) => {
      const found = data.found[k], pairs = found.pairs[c];
      const boxes = found.boxes.slice(0, found.kept[c]).map(([x, y, w, h, colour], n) => `<rect x="$${x}" y="$${y}"
        width="$${w}" height="$${h}" stroke="$${colour}" stroke-dasharray="$${pairs.includes(n) ? "none" : $dash}"/>`);
      const missed = found.truths.filter((_, t) => pairs[t] < 0);
      layer.innerHTML = boxes.concat(missed.map(([x, y]) => `<circle cx="$${x}" cy="$${y}" r="$dot"/>`)).join("");
    });
  }
  slider.addEventListener("input", draw);
  draw();
})();
</script>
</div>
""")


def explorer(
    runs: Sequence[Run], scores: pd.DataFrame, matching: Matching, start: tuple[float, float], note: str
) -> str:
    """HTML with a slider for the confidence, the scores of every arm, and detections on test patches.

    `runs` are of one condition, `scores` their scores.parquet: detections are those of the first run of each of `ARMS`,
    on the patches with the most defects. `start`: IoU, and the confidence at which the slider stands.
    """
    here = scores[np.isclose(scores["iou_threshold"], start[0])]
    confidence, test, size = sorted(set(here["confidence"])), runs[0].patches, runs[0].patches.size
    means = here.groupby(["arm", "confidence"])[COLUMNS].agg(lambda seeds: seeds.mean(skipna=False)).round(3)
    shown = test.table["patch"].value_counts().sort_index().nlargest(SHOWN).index
    first = [next(run for run in runs if run.keys["arm"] == arm) for arm in ARMS if (here["arm"] == arm).any()]
    pictures, found = [], []
    for run, p in ((run, p) for run in first for p in shown):
        Image.fromarray(np.asarray(test.images[p])).save(buffer := io.BytesIO(), format="PNG")
        url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        pictures.append(f'<svg viewBox="0 0 {size} {size}" role="img" aria-label="test patch {p}, {run.keys["arm"]}">'
                        f'<image href="{url}" width="{size}" height="{size}"/><g></g></svg>')  # fmt: skip
        own, truths = run.predictions[run.predictions["patch"] == p], test.of(p)[BOX].to_numpy(float)
        own = own.iloc[score_order(own["score"].to_numpy(), own[BOX].to_numpy())]  # best first
        reached = kept(own["score"].to_numpy(), confidence)
        boxes = [(*np.round([x1, y1, x2 - x1, y2 - y1], 1).tolist(), class_color(label))
                 for x1, y1, x2, y2, label in own[[*BOX, "label"]].itertuples(index=False)]  # fmt: skip
        pairs = match(box_iou(truths, own[BOX]), reached, start[:1], matching)[0].tolist()
        centres = truths.reshape(-1, 2, 2).mean(axis=1).tolist()
        found.append({"boxes": boxes, "kept": reached.tolist(), "pairs": pairs, "truths": centres})
    rows = [(arm, table.astype(object).fillna("").values.tolist()) for arm, table in means.groupby("arm")]
    data = {"columns": ["arm", *COLUMNS], "confidence": confidence, "start": confidence.index(start[1]), "scores": rows,
            "found": found}  # fmt: skip
    classes = runs[0].truth.classes.items()
    legend = (f'<span style="color:{class_color(k)}">■</span> {html.escape(v)}' for k, v in classes)
    return _PAGE.substitute(
        note=html.escape(note), legend=" ".join(legend), pictures="".join(pictures), line=size / 90, edge=size / 200,
        dash=size / 40, dot=size / 50, columns=len(shown),
        data=json.dumps(data, allow_nan=False).replace("<", "\\u003c"),
    )  # fmt: skip
