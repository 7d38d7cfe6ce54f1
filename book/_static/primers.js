// The two primers for teaching: film strips of pictures that were drawn beforehand, moved by sliders. No requests outside.
(function () {
  function strip(canvas, image, frame, frames, arrow) {
    const height = image.height / frames, pen = canvas.getContext("2d");
    canvas.width = 3 * image.width;
    canvas.height = 3 * height;
    pen.drawImage(image, 0, frame * height, image.width, height, 0, 0, canvas.width, canvas.height);
    if (arrow === undefined) return;
    // The direction of g, counter-clockwise from the right as displayed, between the defects.
    const turn = (-arrow * Math.PI) / 180, length = 30;
    pen.strokeStyle = "#d55e00";
    pen.lineWidth = 5;
    for (const x of [1, 2, 3].map((k) => (k * canvas.width) / 4)) {
      const dx = length * Math.cos(turn), dy = length * Math.sin(turn), y = canvas.height / 2;
      pen.beginPath();
      pen.moveTo(x - dx, y - dy);
      pen.lineTo(x + dx, y + dy);
      for (const side of [2.6, -2.6]) {
        pen.moveTo(x + dx, y + dy);
        pen.lineTo(x + dx + 14 * Math.cos(turn + side), y + dy + 14 * Math.sin(turn + side));
      }
      pen.stroke();
    }
  }

  function primer(box) {
    const slider = box.querySelector("input"), choice = box.querySelector("select");
    const canvas = box.querySelector("canvas"), said = box.querySelector("output"), mask = box.querySelector("img");
    const frames = Number(slider.max) + 1, folder = box.dataset.folder, image = new Image();
    const loops = box.dataset.primer === "loops";

    function draw() {
      const k = Number(slider.value);
      if (image.complete && image.width) strip(canvas, image, k, frames, loops ? 15 * k : undefined);
      const text = loops ? "g points to " + 15 * k + "°" : "step " + k + " of " + (frames - 1);
      said.textContent = text;
      slider.setAttribute("aria-valuetext", text);
    }

    function load() {
      image.src = folder + (loops ? "loops-" : "noise-") + choice.value + ".jpg";
      if (mask) mask.src = folder + "mask-" + choice.value + ".png";
    }

    image.addEventListener("load", draw);
    slider.addEventListener("input", draw);
    choice.addEventListener("change", load);
    load();
    draw();
  }

  document.addEventListener("DOMContentLoaded", function () {
    document.querySelectorAll(".primer").forEach(primer);
  });
})();
