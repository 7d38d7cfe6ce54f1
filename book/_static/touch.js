/* Things to touch. A box `.touch` holds its data as JSON, and what a reader without scripts sees; see sliders.py. */
(function () {
  "use strict";

  const SVG = "http://www.w3.org/2000/svg";
  let made = 0; // labels need names of their own

  function element(name, attributes, ...children) {
    const svg = ["svg", "image", "g", "rect", "circle", "line", "polyline", "text"].includes(name);
    const node = svg ? document.createElementNS(SVG, name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
    node.append(...children);
    return node;
  }

  function select(label, options, change) {
    const id = `touch-${made++}`, node = element("select", { id });
    const fill = (wanted) => {
      const before = node.value;
      node.replaceChildren(...wanted.map(([value, text]) => element("option", { value }, text)));
      if (wanted.some(([value]) => String(value) === before)) node.value = before;
    };
    fill(options);
    node.addEventListener("change", change);
    return { node, fill, row: element("span", {}, element("label", { for: id }, label), node) };
  }

  function slider(label, most, value, change, step) {
    const id = `touch-${made++}`, node = element("input", { id, type: "range", min: 0, max: most, step });
    node.value = value;
    node.addEventListener("input", change);
    const told = element("output", { for: id });
    return { node, told, row: element("span", { class: "wide" }, element("label", { for: id }, label), told, node) };
  }

  function row(cells, name) {
    return element("tr", {}, ...cells.map((cell) => element(name, {}, cell)));
  }

  const number = (value) => (value === null ? "undefined" : Number.isInteger(value) ? String(value) : value.toFixed(3));

  /* Page 07: two runs at one confidence. */
  function thresholds(root, data) {
    const sizes = [...new Set(data.runs.map((run) => run.n))];
    const at = slider("confidence ≥", data.confidence.length - 1, data.start, draw, 1);
    const size = select("N", sizes.map((n) => [n, n]), () => { offer(); draw(); });
    const seed = select("seed", [], draw);
    const arms = ["upper row", "lower row"].map((name) => select(name, [], draw));
    const table = element("table"), head = element("thead", {}, row(["run", ...data.columns], "th"));
    const body = element("tbody"), chart = element("svg", { viewBox: "0 0 300 90", class: "chart", "aria-hidden": "true" });
    const line = data.size / 90;
    const pictures = arms.map(() => element("div", { class: "pictures" }));
    const layers = pictures.map((place) => data.patches.map((patch) => {
      const layer = element("g", {});
      const name = { viewBox: `0 0 ${data.size} ${data.size}`, role: "img", "aria-label": patch.name };
      place.append(element("svg", name, element("image", { href: patch.image, width: data.size, height: data.size }), layer));
      return layer;
    }));
    table.append(element("caption", {}, "Scores of the two runs on all test patches"), head, body);
    size.node.value = sizes[sizes.length - 1];

    function offer() {
      const here = data.runs.filter((run) => run.n === +size.node.value);
      const names = [...new Set(here.map((run) => run.arm))];
      arms.forEach((arm, k) => {
        arm.fill(names.map((name) => [name, name]));
        if (!arm.touched && names[k]) arm.node.value = names[k];
      });
      seed.fill([...new Set(here.map((run) => run.seed))].map((one) => [one, one]));
    }

    function draw() {
      const c = +at.node.value;
      const runs = arms.map((arm) => data.runs.find((run) =>
        run.n === +size.node.value && run.arm === arm.node.value && run.seed === +seed.node.value));
      body.replaceChildren(...runs.map((run) => row([run.arm, ...run.scores[c].map(number)], "td")));
      at.told.textContent = data.confidence[c];
      const f1 = data.columns.length - 1;
      at.node.setAttribute("aria-valuetext", `confidence ${data.confidence[c]}: ` +
        runs.map((run) => `${run.arm} ${data.columns[f1]} ${number(run.scores[c][f1])}`).join(", "));
      const x = (k) => 4 + (292 * k) / Math.max(1, data.confidence.length - 1);
      chart.replaceChildren(
        ...runs.map((run, k) => element("polyline", { class: `curve curve-${k}`, points: run.scores
          .map((scores, j) => (scores[f1] === null ? "" : `${x(j)},${86 - 80 * scores[f1]}`)).join(" ") })),
        element("line", { x1: x(c), x2: x(c), y1: 2, y2: 88, class: "now" }),
        element("text", { x: 4, y: 10 }, `${data.columns[f1]}, 0 to 1, by confidence`));
      runs.forEach((run, k) => run.patches.forEach((found, p) => {
        const pairs = found.pairs[c];
        const boxes = found.boxes.slice(0, found.kept[c]).map(([left, top, width, height, colour], n) =>
          element("rect", { x: left, y: top, width, height, fill: "none", stroke: colour, "stroke-width": line,
            "stroke-dasharray": pairs.includes(n) ? "none" : data.size / 40 }));
        const missed = data.patches[p].truths.filter((_, t) => pairs[t] < 0).map(([cx, cy]) =>
          element("circle", { cx, cy, r: data.size / 50, fill: "white", stroke: "black", "stroke-width": data.size / 200 }));
        layers[k][p].replaceChildren(...boxes, ...missed);
      }));
    }

    arms.forEach((arm) => arm.node.addEventListener("change", () => { arm.touched = true; }));
    offer();
    const controls = element("div", { class: "controls" }, size.row, seed.row, ...arms.map((arm) => arm.row), at.row);
    root.querySelector(".pictures").replaceWith(controls, chart, element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "scores" }, table), ...pictures);
    draw();
  }

  /* Page 09: only some of the pairs had been trained. */
  function draws(root, data) {
    if (!data.conditions.length) return;
    const which = select("compare", data.conditions.map((one, k) => [k, one.name]), begin);
    const most = Math.max(...data.conditions.map((one) => one.differences.length));
    const many = select("pairs", [], () => { draw(); show(); });
    const again = element("button", { type: "button" }, "draw others");
    const dots = element("span", { class: "dots", role: "group", "aria-label": "pairs that count" });
    const picture = element("svg", { viewBox: "0 0 600 64", role: "img" });
    const told = element("p", { "aria-live": "polite" });
    let chosen = 0, one = data.conditions[0];

    const size = (mask) => [...mask.toString(2)].filter((bit) => bit === "1").length;
    function draw() {
      const open = Object.keys(one.tests).map(Number).filter((mask) => size(mask) === +many.node.value);
      const others = open.filter((mask) => mask !== chosen);
      const from = others.length ? others : open;
      if (from.length) chosen = from[Math.floor(Math.random() * from.length)];
    }
    function begin() {
      one = data.conditions[+which.node.value];
      many.fill(one.differences.slice(1).map((_, k) => [k + 2, k + 2]));
      many.node.value = one.differences.length;
      draw();
      show();
    }
    function show() {
      many.node.value = size(chosen) > 1 ? size(chosen) : many.node.value;
      dots.replaceChildren(...one.differences.map((d, k) => {
        const button = element("button", { type: "button", "aria-pressed": String(Boolean((chosen >> k) & 1)) },
          `pair ${k + 1}: ${d.toFixed(3)}`);
        button.addEventListener("click", () => { chosen ^= 1 << k; show(); dots.children[k].focus(); });
        return button;
      }));
      const reach = 4 * Math.max(...one.differences.map(Math.abs), 0.005);
      const x = (value) => 300 + 290 * Math.max(-1, Math.min(1, value / reach));
      const test = one.tests[chosen], parts = [element("line", { x1: 300, x2: 300, y1: 4, y2: 60, class: "zero" })];
      one.differences.forEach((d, k) => parts.push(
        element("circle", { cx: x(d), cy: 18, r: 5, class: (chosen >> k) & 1 ? "in" : "out" })));
      if (test) {
        parts.push(element("line", { x1: x(test[1]), x2: x(test[2]), y1: 44, y2: 44, class: "interval" }),
          element("circle", { cx: x(test[0]), cy: 44, r: 6, class: "mean" }));
      }
      picture.replaceChildren(...parts);
      told.textContent = test
        ? `${size(chosen)} of ${one.differences.length} pairs: mean ${test[0].toFixed(3)}, ${data.level} % interval ` +
          `${test[1].toFixed(3)} to ${test[2].toFixed(3)}, p = ${test[3].toPrecision(2)}`
        : "Two pairs that differ, or more, are needed for an interval.";
      picture.setAttribute("aria-label", told.textContent);
    }
    again.addEventListener("click", () => { draw(); show(); });
    root.append(element("div", { class: "controls" }, which.row, many.row, again), dots, picture, told);
    if (most > 1) begin();
  }

  /* Page 05: one picture wiped over the next. */
  function swipe(root, { label, piles }) {
    const names = piles.map(([, pile]) => Object.keys(pile).filter((name) => name !== "mask")), last = names[0].length - 1;
    const which = select(label, piles.map(([name], k) => [k, name]), show);
    const at = slider("", last, 0.5, wipe, 0.05), named = at.row.querySelector("label");
    const pile = element("div", { class: "pile" }), mask = element("img", { alt: "the mask" });
    const layers = names[0].map(() => element("img", { alt: "", draggable: "false" }));
    const put = (event) => {
      const frame = pile.getBoundingClientRect();
      const part = Math.max(0, Math.min(1, (event.clientX - frame.left) / frame.width));
      at.node.value = Math.min(last - 1, Math.floor(at.node.value)) + part;
      wipe();
    };
    layers.slice().reverse().forEach((layer) => pile.append(layer));
    pile.addEventListener("pointerdown", (event) => { pile.setPointerCapture(event.pointerId); put(event); });
    pile.addEventListener("pointermove", (event) => { if (event.buttons) put(event); });

    function show() {
      const own = piles[+which.node.value][1], here = names[+which.node.value];
      here.forEach((name, k) => { layers[k].src = own[name]; layers[k].alt = name; });
      mask.src = own.mask;
      named.textContent = here.join(" – ");
      wipe();
    }
    function wipe() {
      const here = names[+which.node.value];
      const value = +at.node.value, from = Math.min(last - 1, Math.floor(value)), part = value - from;
      layers.forEach((layer, k) => {
        layer.style.clipPath = k < from ? "inset(0 100% 0 0)" : k === from ? `inset(0 0 0 ${100 * part}%)` : "none";
      });
      const text = part === 0 ? here[from] : part === 1 ? here[from + 1]
        : `left ${Math.round(100 * part)} % ${here[from + 1]}, right ${here[from]}`;
      at.told.textContent = text;
      at.node.setAttribute("aria-valuetext", text);
    }
    root.querySelector(".pictures").replaceWith(
      element("div", { class: "controls" }, which.row),
      element("div", { class: "pair" }, element("figure", {}, mask, element("figcaption", {}, "mask")),
        element("figure", {}, pile, element("figcaption", {}, "drag across the picture, or move the slider"))),
      element("div", { class: "controls" }, at.row));
    show();
  }

  /* Page 08: what a score costs in labelled micrographs. */
  function curve(root, [arms, scores]) {
    const told = root.querySelector("p"), interval = root.querySelector(".interval"), mean = root.querySelector(".mean");
    const show = ({ text, at: [x, low, high, y] }) => {
      for (const [key, value] of Object.entries({ x1: low, x2: high, y1: y, y2: y })) interval.setAttribute(key, value);
      mean.setAttribute("cx", x);
      mean.setAttribute("cy", y);
      told.textContent = text;
    };
    const arm = select("EXP+GEN at N =", arms.map(({ n }, k) => [k, n]), () => show(arms[+arm.node.value]));
    const at = slider("a score of EXP", scores.length - 1, scores.length >> 1, () => {
      show(scores[+at.node.value]);
      at.node.setAttribute("aria-valuetext", told.textContent);
    }, 1);
    root.querySelector("svg").before(element("div", { class: "controls" }, arm.row, at.row));
    at.node.setAttribute("aria-valuetext", scores[scores.length >> 1].text);
    show(arms[0]);
  }

  /* Page 12: the defects behind each number. */
  function confusion(root, cells) {
    const shown = element("div", { class: "crops", "aria-live": "polite" });
    [...root.querySelectorAll("tbody td")].forEach((place, k) => {
      const cell = cells[k];
      if (!cell.n) return;
      const button = element("button", { type: "button", "aria-label": `${cell.name}: ${cell.n}, show` }, place.textContent);
      button.addEventListener("click", () => {
        root.querySelectorAll("[aria-pressed]").forEach((other) => other.removeAttribute("aria-pressed"));
        button.setAttribute("aria-pressed", "true");
        const pictures = cell.crops.map((crop) => {
          const side = 48, drawn = element("svg", { viewBox: `0 0 ${side} ${side}`, role: "img", "aria-label": crop.name },
            element("image", { href: crop.image, width: side, height: side }));
          crop.boxes.forEach((b, which) => b && drawn.append(element("rect", { x: b[0], y: b[1], width: b[2], height: b[3],
            class: which ? "said" : "labelled" })));
          return element("figure", {}, drawn, element("figcaption", {}, crop.name));
        });
        shown.replaceChildren(element("p", {}, `${cell.name}: ${cell.n}. White: the label; orange, dashed: the detector.`),
          ...pictures);
      });
      place.replaceChildren(button);
    });
    root.append(shown);
    const first = root.querySelector("button");
    if (first) first.click();
  }

  const kinds = { thresholds, draws, swipe, curve, confusion };

  /* What can be scrolled sideways can be scrolled with the keyboard, and has a name. */
  function scrolled() {
    document.querySelectorAll(".bd-article .output.text_html, .bd-article .pst-scrollable-table-container, .bd-article pre")
      .forEach((place, k) => {
        if (place.scrollWidth <= place.clientWidth || place.querySelector(".touch")) return;
        const caption = place.querySelector("caption");
        place.tabIndex = 0;
        place.setAttribute("role", "region");
        place.setAttribute("aria-label", `${k + 1}, scrolls sideways: ${caption ? caption.textContent : place.tagName === "PRE" ? "code" : "table"}`);
      });
  }

  /* Names that the theme and extensions leave out, or give twice. */
  function named() {
    const all = (selector, change) => document.querySelectorAll(selector).forEach(change);
    all(".search-button-field, summary[aria-label='Toggle hidden content']", (node) => node.removeAttribute("aria-label"));
    all("nav summary", (node) => node.setAttribute("aria-label", `pages of ${node.closest("li").querySelector("a").textContent}`));
    all(".bd-sidebar-primary", (node) => { node.setAttribute("role", "region"); node.setAttribute("aria-label", "book"); });
    all(".citation-list, .citation-list [role]", (node) => node.removeAttribute("role"));
  }

  /* A figure that is shown smaller than it was drawn can be seen at its size. */
  function whole(image) {
    if (image.dataset.whole || image.naturalWidth <= 1.15 * image.clientWidth) return;
    image.dataset.whole = "offered";
    const button = element("button", { type: "button", class: "whole", "aria-pressed": "false" }, "Show at full size");
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", String(image.classList.toggle("whole")));
    });
    (image.closest("a") || image).after(button);
  }

  function fit() {
    const small = innerWidth < 577 ? ", .bd-article figure img:not(.touch img)" : "";
    document.querySelectorAll(`.bd-article .cell_output img:not(.touch img)${small}`).forEach(whole);
    scrolled();
  }

  window.addEventListener("load", fit);
  window.addEventListener("resize", fit);
  document.addEventListener("DOMContentLoaded", () => {
    named();
    document.querySelectorAll(".touch").forEach((root) => {
      kinds[root.dataset.touch](root, JSON.parse(root.querySelector("script").textContent));
      root.classList.add("touched");
    });
  });
})();
