"""Sphinx extension: a finished book without what no page loads, so that it can be copied and sent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from PIL import Image

# Of MathJax: what pages load, and what that loads for rare commands.
USED = ("tex-chtml.js", "input/tex/extensions/", "output/chtml/fonts/woff-v2/")
WIDE, HEAVY = 1200, 60_000  # px across, half as much again as a page's column; bytes


def slim(app, error) -> None:
    """Remove what no browser asks for: other builds of MathJax, maps, old fonts, outputs of notebooks for download; and
    make heavy pictures lighter."""
    if error or app.builder.format != "html":
        return
    out = Path(app.outdir)
    mathjax = out / "_static" / "mathjax"
    unused = [path for path in mathjax.rglob("*.*") if not path.relative_to(mathjax).as_posix().startswith(USED)]
    unused += [mathjax / "input" / "tex" / "extensions" / "all-packages.js", *out.rglob("*.map")]
    unused += [font for font in out.rglob("*.ttf") if font.with_suffix(".woff2").exists()]  # browsers before 2016
    for path in unused:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for path in (out / "_sources").rglob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in (cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
            cell["outputs"], cell["execution_count"] = [], None
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False), encoding="utf-8")
    for path in (path for path in (out / "_images").glob("*.png") if path.stat().st_size > HEAVY):
        lighten(path)


def lighten(path: Path) -> None:
    """Write a picture anew with 256 colours and at most `WIDE` px across, which takes half of its bytes or less."""
    with Image.open(path) as picture:
        if picture.mode == "P":  # by an earlier build
            return
        picture = picture.convert("RGB")
    if picture.width > WIDE:
        picture = picture.resize((WIDE, round(picture.height * WIDE / picture.width)), Image.Resampling.LANCZOS)
    few = picture.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE)  # keeps rare colours
    few.save(path, optimize=True)


def setup(app) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("build-finished", slim)
    return {"parallel_read_safe": True}
