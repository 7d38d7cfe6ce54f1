"""Sphinx extension: a finished book without what no page loads, so that it can be copied and sent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

USED = {"tex-chtml.js", "input", "output"}  # of MathJax: what pages load, and what that loads for rare commands


def slim(app, error) -> None:
    """Remove MathJax's other builds, maps and fonts that no browser asks for, and outputs of notebooks for download."""
    if error or app.builder.format != "html":
        return
    for path in (Path(app.outdir) / "_static" / "mathjax").glob("*"):
        if path.name not in USED:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    unused = [*Path(app.outdir).rglob("*.map"), *(Path(app.outdir) / "_static" / "mathjax").rglob("svg*/**/*.js")]
    for path in [*unused, *(font for font in Path(app.outdir).rglob("*.ttf") if font.with_suffix(".woff2").exists())]:
        path.unlink()  # for authors of scripts and styles, for another output of MathJax, for browsers before 2016
    for path in (Path(app.outdir) / "_sources").rglob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        for cell in (cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
            cell["outputs"], cell["execution_count"] = [], None
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False), encoding="utf-8")


def setup(app) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("build-finished", slim)
    return {"parallel_read_safe": True}
