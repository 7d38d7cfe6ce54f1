"""The book: its sources build without a warning, and every page of the built book opens in a real browser."""

import functools
import http.server
import os
import re
import shutil
import threading
from pathlib import Path
from unittest import mock

import nbformat
import numpy as np
import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from nbformat.v4 import new_code_cell, new_output
from project import NAMES, ROOT, Project
from test_front import chosen

from companion.config import load_profile
from companion.provenance import write_json, write_table
from companion.workflow import book, pages, reference_run

BOOK, HANDLER = ROOT / "book", http.server.SimpleHTTPRequestHandler
# Switches that keep Chromium from talking to anyone, so that each request seen is one of the page.
CHROMIUM = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip
STAMP = {
    "notebook": "06_b", "wall_s": 59.6, "peak_memory_mib": 300, "device": "CPU", "commit": "abc", "profile": "smoke",
    "dataset": "phantom", "keys": {"split": "1", "arm": "EXP"}, "started": "2026-01-02T03:04:05",
}  # fmt: skip


def claim(name: str, verdict: str) -> dict:
    said = {"claim": "a | b", "paper": "p < 0.1", "ours": "c", "reason": "of it", "where": "text", "rule": "R"}
    return {"id": name, "verdict": verdict, "notebook": "08_x", "sensitivity": "Same verdict at 0.5", **said}


CLAIMS = [claim("C1", "partly"), claim("C2", "reproduced"), claim("C3", "reproduced"), claim("C12", "not attempted")]


def test_fragments_say_what_is_shown_whether_it_is_fresh_and_of_which_data() -> None:
    stages = [(STAMP, why) for why in ([], ["code changed: x"], ["code changed: x"], ["outputs changed: y"])]
    row, *_, twice, once = pages.status_table(stages).splitlines()[2:]
    assert row.endswith("| 4 | 1 | 3 min 58 s | 1 min 0 s | 300 MiB | CPU |")
    assert (twice, once) == ("- 06_b, 2 of 4: code changed: x.", "- 06_b, 1 of 4: outputs changed: y.")
    assert "phantom (simulated)" in pages.badge(STAMP, []) and "split 1, arm EXP" in pages.badge(STAMP, [])
    assert ">fresh<" in pages.badge(STAMP, []) and "Stale because" not in pages.badge(STAMP, [])
    assert "Stale because: code changed: a &lt; b" in pages.badge(STAMP, ["code changed: a < b"])
    for data, profile, said in (
        ("phantom", "smoke", "not the paper's data"), ("loops_316L", "smoke", "not the paper's data"),
        ("loops_316L", "smoke", "numbers mean nothing"), ("phantom", "reference", "profiles/reference.yaml"),
        ("fecral", "paper", "micrographs that the paper's authors have published"),
    ):  # fmt: skip
        assert said in pages.data_notice(data, profile)


def test_pages_include_what_a_run_writes(tmp_path: Path) -> None:
    P, at = load_profile("smoke"), dict.fromkeys(("07_thresholds", "08_sizes_and_splits", "11_claims"), tmp_path)
    steps = {"split": "1", "n_train": 10, "measure": "f1_hm", "arm": ["EXP+GEN", "EXP"], "above": ["", "EXP+GEN"]}
    write_table(tmp_path / "waterfall.parquet", pd.DataFrame(steps | {"score": [0.75, 0.72], "step": [np.nan, -0.03]}))
    write_json(tmp_path / "claims.json", {"claims": CLAIMS})
    write_table(tmp_path / "chosen.parquet", chosen(0.1, 0.0).query("split == '1' and n_train == 10"))
    executed = tmp_path / "executed"
    pages.write_fragments(executed, book.Results(P, at), [(STAMP, [])])
    included = [n for p in BOOK.glob("*.md") for n in re.findall(r"\{include\} executed/(\S+)", p.read_text("utf-8"))]
    copied = {"course.md"}  # of the course, by `book.assemble`
    assert set(included) == {path.name for path in executed.glob("*.md")} | copied
    verdicts = (executed / "verdicts.md").read_text(encoding="utf-8")
    assert verdicts.startswith("Of 4 claims: 2 reproduced, 1 partly, 0 not reproduced,") and "p &lt; 0.1" in verdicts
    assert (executed / "figures" / "change.png").is_file() and "mean nothing" in (executed / "answer.md").read_text()
    assert "F1HM, split 1, N = 10: EXP+GEN 0.750, EXP −0.030." in (executed / "waterfall.md").read_text("utf-8")
    whole = pages.claim_cards(CLAIMS, whole=True)
    assert 'id="claim-C12"' in whole and "<dd>Same verdict at 0.5" in whole and 'href="08_x.html"' in whole


def test_a_page_has_the_text_of_now_and_the_outputs_of_its_run(tmp_path: Path, monkeypatch) -> None:
    project = Project(tmp_path / "project")
    monkeypatch.setenv("COMPANION_ROOT", str(project.root))
    ran = nbformat.read(project.root / "notebooks" / "07_thresholds.ipynb", as_version=4)
    ran.cells.insert(2, new_code_cell("iou = 0.3", metadata={"tags": ["injected-parameters"]}))
    ran.cells[-1].outputs = [new_output("stream", name=name, text=name) for name in ("stdout", "stderr")]
    nbformat.write(ran, tmp_path / "notebook.ipynb")
    project.write("07_thresholds", more="\n# a comment of today\n")
    made = book.page("07_thresholds", tmp_path, ["1"])
    assert "a comment of today" in made.cells[-1].source and len(made.cells) == 3
    assert [output.text for output in made.cells[-1].outputs] == ["stdout"]


def test_a_study_that_was_not_run_has_a_page_that_says_so() -> None:
    found = book.page_not_run("14_annotation_bias", load_profile("smoke", dataset="loops_316L"))
    nbformat.validate(found)
    assert found.cells[0].source.startswith("# 14 · ")
    assert "profile smoke, loops_316L" in found.cells[1].source


def test_what_is_drawn_again_is_compared_number_by_number(tmp_path: Path) -> None:
    table = pd.DataFrame({"f1": [0.5, np.nan], "arm": ["EXP", None], "n": [1, 2]})
    for name, change in (("a", 0.0), ("close", 1e-9), ("far", 1e-3)):
        write_table(tmp_path / name / "scores.parquet", table.assign(f1=table["f1"] + change))
        write_json(tmp_path / name / "claims.json", {"claims": [{"verdict": "partly", "value": 0.25 + change}]})
    assert reference_run.differences(tmp_path / "a", tmp_path / "close") == []
    changed = ["claims.json: claims.0.value", "scores.parquet: f1"]
    assert reference_run.differences(tmp_path / "a", tmp_path / "far") == changed
    write_json(tmp_path / "close" / "claims.json", {"claims": [{"verdict": "reproduced", "value": 0.25}]})
    assert reference_run.differences(tmp_path / "a", tmp_path / "close") == ["claims.json: claims.0.verdict"]


def test_pages_of_notebooks_come_in_the_order_of_their_numbers() -> None:
    names = re.findall(r"executed/(\d\w+)", (BOOK / "_toc.yml").read_text(encoding="utf-8"))
    assert names == NAMES
    for number, name in enumerate(names, start=1):
        title = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells[0].source
        assert title.startswith(f"# {number} · ") and "\n" not in title.strip(), f"{name}: title {title!r}"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("no Chromium on this machine; Debian's package is `chromium`")
    with playwright.sync_playwright() as running, mock.patch.object(HANDLER, "log_message"):
        opened = running.chromium.launch(executable_path=executable, args=CHROMIUM)
        yield opened
        opened.close()


LIMITS = (ROOT / "tests" / "limits.js").read_text(encoding="utf-8")


def visit(browser, html: Path) -> list[str]:
    """Open every page of a built book; returns what is wrong, one line each."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(HANDLER, directory=str(html)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}/"
    wrong: list[str] = []
    page, name = browser.new_page(viewport={"width": 1400, "height": 900}), ""
    page.on("console", lambda m: wrong.append(f"{name}: console: {m.text}") if m.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(f"{name}: script: {error}"))
    # A request that is still under way when the next page is opened counts as aborted, e.g. that of the icon.
    page.on("requestfailed", lambda r: None if "ABORTED" in r.failure else wrong.append(f"{name}: failed: {r.url}"))
    page.on("response", lambda r: wrong.append(f"{name}: {r.status}: {r.url}") if r.status >= 400 else None)

    def outside(route) -> None:
        wrong.append(f"{name}: asks for {route.request.url}")
        route.abort()

    page.route(lambda url: not url.startswith((address, "data:", "blob:")), outside)
    try:
        names = (path.relative_to(html).as_posix() for path in html.rglob("*.html"))
        for name in sorted(name for name in names if not name.startswith("_static/")):
            page.goto(address + name, wait_until="load")
            page.evaluate("document.querySelectorAll('img[loading=lazy]').forEach(i => i.loading = 'eager')")
            page.add_style_tag(content="* { transition: none !important; }")  # colours are those of the theme at once
            page.wait_for_function("[...document.images].every(i => i.complete)", timeout=20_000)
            images = page.evaluate("[...document.images].map(i => [i.src, i.naturalWidth, i.alt.trim()])")
            wrong += [f"{name}: {source[-80:]} did not load" for source, width, _ in images if not width]
            wrong += [f"{name}: {source[-80:]} has no alt text" for source, _, alt in images if not alt]
            wrong += [f"{name}: shows an error of the build"] * bool(page.locator(".system-message").count())
            page.wait_for_function("!document.querySelector('.math') || document.querySelector('mjx-container')")
            pictures = {source.removeprefix(address) for source, *_ in images if source.startswith(address)}
            weight = sum((html / file).stat().st_size for file in {name, *pictures} if (html / file).is_file())
            wrong += [f"{name}: {weight / 1e6:.2f} MB with its pictures"] * (weight > 1.6e6)
            for width, theme, of in ((390, "dark", {}), (1400, "light", {"runOnly": ["color-contrast"]})):
                page.set_viewport_size({"width": width, "height": 900})
                page.emulate_media(color_scheme=theme)
                page.wait_for_timeout(50)  # the page's own script sees the new width
                wrong += [f"{name}, {width} px: {each}" for each in page.evaluate(LIMITS)]
                found = Axe().run(page, options={"preload": False, "resultTypes": ["violations"], **of}).response
                wrong += [f"{name}, {theme}: {e['id']}: {e['nodes'][0]['html'][:200]}" for e in found["violations"]]
    finally:
        page.close()
        server.shutdown()
        server.server_close()
    return wrong


@pytest.mark.slow
def test_a_broken_page_is_seen(browser, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(
        "<img src='gone.png'><script src='https://example.org/x.js'></script><script>throw Error('bang')</script>"
        "<details><summary></summary>x</details><div class='bd-article'><h1>a</h1><h3>b</h3>"
        f"<div class='cell_output'><table><tr>{'<th>wide</th>' * 7}<th></th></tr></table></div>"
        "<p style='min-width: 900px; font-size: 9px'>wide</p></div>"
    )
    wrong = "\n".join(visit(browser, tmp_path))
    for sign in ("gone.png did not load", "gone.png has no alt text", "asks for https://example.org/x.js", "bang",
                 "8 columns", "name of a column is empty", "a summary without a name", "headings 1,3",
                 "390 px: scrolls sideways", "wide: smaller than 8 pt", "dark: image-alt"):  # fmt: skip
        assert sign in wrong


@pytest.mark.slow
def test_pages_of_the_book_open(browser) -> None:
    html = Path(os.environ.get("COMPANION_BOOK_HTML", ROOT / "_build" / "html"))
    if not (html / "index.html").is_file():
        assert os.environ.get("COMPANION_REQUIRE_BOOK") != "1", f"no book at {html}: `make book` builds it"
        pytest.skip(f"no book at {html}: `make book` builds it")
    assert visit(browser, html) == []
    assert sum(path.stat().st_size for path in html.rglob("*") if path.is_file()) < 20e6
