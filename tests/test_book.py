"""The book: its sources build without a warning, and every page of the built book opens in a real browser."""

from __future__ import annotations

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from companion import fragments, places, stages
from companion.book import page as page_of
from companion.book import page_not_run
from companion.errors import CompanionError
from companion.evaluation.threshold_page import COLUMNS, threshold_page
from companion.config.profile import load_profile
from companion.provenance import write_json, write_table

ROOT = Path(__file__).resolve().parents[1]
BOOK = ROOT / "book"
# Switches that keep Chromium from talking to anyone, so that each request seen is one of the page.
CHROMIUM = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
]  # fmt: skip


# --- glue ---------------------------------------------------------------------------------------------------


def test_glued_values_reach_the_notebook_as_they_are(tmp_path: Path) -> None:
    fragments.glue_notebook(
        {"gain": "0.410", "data": "it's | phantom"}, tmp_path / "n.ipynb", {"gain": "scores.parquet"}
    )
    notebook = nbformat.read(tmp_path / "n.ipynb", as_version=4)
    nbformat.validate(notebook)
    outputs = {o.metadata["scrapbook"]["name"]: o.data for o in notebook.cells[1].outputs}
    # MyST-NB evaluates the text as a Python literal: the trailing zero survives only inside quotes.
    assert outputs["gain"] == {"application/papermill.record/text/plain": "'0.410'"}
    assert "| `gain` | 0.410 | scores.parquet |" in notebook.cells[0].source
    assert "it's \\| phantom" in notebook.cells[0].source


@pytest.mark.parametrize("values", [{"a:b": "1"}, {"Gain": "1"}, {"gain": 0.41}])
def test_what_cannot_be_glued_is_refused(values: dict, tmp_path: Path) -> None:
    with pytest.raises(CompanionError, match=re.escape(next(iter(values)))):
        fragments.glue_notebook(values, tmp_path / "n.ipynb")
    assert not (tmp_path / "n.ipynb").exists()


def test_glued_keys_are_found_in_a_page() -> None:
    page = (
        "a {glue:text}`executed/headline.ipynb::gain:s` b\n{glue:text}`x.ipynb::n_pairs:s` {glue:text}`x.ipynb::gain:s`"
    )
    assert fragments.glued_keys(page) == ["gain", "n_pairs"]


def test_every_quotation_of_a_page_is_one_that_glued_keys_finds() -> None:
    for page in BOOK.glob("*.md"):
        text = page.read_text(encoding="utf-8")
        assert text.count("{glue:") == len(fragments._GLUED.findall(text)), f"{page.name}: a key without `:s`?"


def test_notice_never_lets_the_phantom_pass_for_the_papers_data() -> None:
    assert "not the paper's data" in fragments.data_notice("phantom", "smoke")
    assert "too small to decide" in fragments.data_notice("loops_316L", "smoke")
    assert "profiles/mini.yaml" in fragments.data_notice("phantom", "mini")


def test_unknown_verdict_is_refused() -> None:
    assert 'class="verdict verdict-not-reproduced"' in fragments.verdict_chip("not reproduced")
    with pytest.raises(CompanionError, match="sort of"):
        fragments.verdict_chip("sort of")


# --- fragments from results ---------------------------------------------------------------------------------

GAINS = pd.DataFrame(
    [("1", 4, "f1_hm", 0.25, 0.5, 0.25, -0.5, 1.0, 2, 1 / 3),
     ("1", 10, "f1_hm", 0.25, 0.375, 0.125, 0.0, 0.25, 2, 1 / 6),
     ("1", 10, "f1_class", np.nan, np.nan, np.nan, np.nan, np.nan, 0, np.nan),
     ("1", 10, "f1_detect", 0.5, 0.5, 0.0, -0.25, 0.25, 2, 0.0), ("2", 10, "f1_hm", 0.1, 0.1, 0.0, 0.0, 0.0, 2, 0.0)],
    columns=["split", "n_train", "measure", "base", "other", "gain", "low", "high", "n", "share_of_left"],
)  # fmt: skip


def test_freshness_counts_runs_and_says_why_others_are_not() -> None:
    states = [("01_a", []), ("06_b", []), ("06_b", ["code changed: x"]), ("06_b", ["code changed: x"]), ("06_b", None)]
    lines = fragments.freshness_table(states).splitlines()
    assert lines[2] == "| [01_a](executed/01_a.ipynb) | 1 | 1 |  |"
    assert lines[3] == "| [06_b](executed/06_b.ipynb) | 4 | 1 | 2 of them: code changed: x. 1 of them: missing |"


def test_a_page_whose_notebook_was_not_run_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPANION_RUNS", str(tmp_path))
    stage = stages.matrix(load_profile("smoke"))[0]
    cells = page_of(stage, None).cells
    assert "not run" in cells[1].source and len(cells) > 10
    assert not any(cell.get("outputs") for cell in cells)


def claim(name: str, verdict: str, reason: str = "because") -> dict:
    return {"id": name, "claim": "a | b", "paper": "p < 0.1", "ours": "c", "verdict": verdict, "reason": reason}


CLAIMS = [claim("C1", "partly"), claim("C2", "reproduced"), claim("C3", "reproduced"), claim("C12", "not attempted")]


def test_headline_is_the_first_split_at_the_largest_n() -> None:
    profile = load_profile("smoke", sizes=[4, 10], imbalance_sizes=[], splits=[1, 2])
    gains = fragments.headline_gains(GAINS, profile)
    assert gains["measure"].tolist() == ["f1_detect", "f1_class", "f1_hm"]
    assert gains["gain"].tolist()[::2] == [0.0, 0.125]
    lines = fragments.scores_table(gains).splitlines()
    assert "| 0.250 | 0.375 | 0.12 (95 % interval 0.00 to 0.25, n = 2) |" in lines[-1]
    assert "| undefined | undefined | undefined (n = 0) |" in lines[-2]
    assert "(90 % interval 0.00 to 0.25" in fragments.scores_table(gains, 0.9)


def test_quoted_numbers_say_what_the_files_say() -> None:
    profile = load_profile("smoke")
    stamps = [
        {"wall_s": 59.6, "device": "CPU", "commit": "abc"},
        {"wall_s": 30.0, "device": "CPU", "commit": "abc"},
        {},
    ]
    found = fragments.quoted_numbers(profile, CLAIMS, fragments.headline_gains(GAINS, profile), stamps)
    quoted = {key: value for key, (value, _) in found.items()}
    assert "95 % interval" in quoted["f1_hm_gain"]
    narrower = profile.model_copy(
        update={"evaluation": profile.evaluation.model_copy(update={"confidence_level": 0.9})}
    )
    again = fragments.quoted_numbers(narrower, CLAIMS, fragments.headline_gains(GAINS, narrower), stamps)
    assert "90 % interval" in again["f1_hm_gain"][0]
    assert (quoted["n_reproduced"], quoted["n_partly"], quoted["n_not_reproduced"]) == ("2", "1", "0")
    assert (quoted["n_claims"], quoted["n_not_attempted"]) == ("4", "1")
    assert (quoted["f1_hm_exp"], quoted["f1_hm_gen"], quoted["f1_class_exp"]) == ("0.250", "0.375", "undefined")
    assert (quoted["wall_time"], quoted["n_stages"], quoted["device"], quoted["commit"]) == (
        "1 min 30 s",
        "3",
        "CPU",
        "abc",
    )
    assert (quoted["data"], quoted["split"], quoted["n_train"]) == ("phantom (simulated)", "1", "10")


def test_pages_quote_only_what_a_run_provides_even_an_empty_one() -> None:
    provided = fragments.quoted_numbers(load_profile("smoke"), [], GAINS.iloc[:0], [])
    for page in BOOK.glob("*.md"):
        assert set(fragments.glued_keys(page.read_text(encoding="utf-8"))) <= provided.keys(), page.name


def test_pages_include_only_what_a_run_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPANION_RUNS", str(tmp_path / "runs"))
    profile = load_profile("smoke")
    tree = places.tree(profile)
    write_json(tree / "claims" / "claims.json", {"dataset": "phantom", "claims": CLAIMS})
    write_table(tree / "sizes" / "sizes.parquet", GAINS)
    first = stages.matrix(profile)[0].folder
    write_json(first / "stamp.json", {"outputs": {}, "wall_s": 61.0, "peak_memory_mib": 300, "device": "CPU"})
    executed = tmp_path / "executed"
    claims, sizes = tree / "claims" / "claims.json", tree / "sizes" / "sizes.parquet"
    fragments.write_fragments(executed, profile, claims, sizes, stages.states(profile))
    included = [n for p in BOOK.glob("*.md") for n in re.findall(r"\{include\} executed/(\S+)", p.read_text("utf-8"))]
    assert set(included) == {path.name for path in executed.glob("*.md")}
    text = nbformat.read(executed / "headline.ipynb", as_version=4).cells[0].source
    assert "| `n_partly` | 1 | runs/smoke/phantom/claims/claims.json |" in text
    verdicts = (executed / "verdicts.md").read_text(encoding="utf-8")
    assert "| C12 | a \\| b | p &lt; 0.1 | c | <span" in verdicts
    assert "C12" not in (executed / "headline.md").read_text(encoding="utf-8")
    assert "| 1 | 1 min 1 s | 1 min 1 s | 300 MiB | CPU |" in (executed / "times.md").read_text(encoding="utf-8")


def test_a_study_that_was_not_run_has_a_page_that_says_so() -> None:
    found = page_not_run(stages.KINDS["bias"], load_profile("smoke", dataset="loops_316L"))
    nbformat.validate(found)
    assert found.cells[0].source.startswith("# 14 · ")
    assert "profile smoke, loops_316L" in found.cells[1].source


# --- sources ------------------------------------------------------------------------------------------------


def toc_files(node: object) -> list[str]:
    if isinstance(node, dict):
        own = [node[key] for key in ("root", "file") if key in node]
        return own + [name for value in node.values() for name in toc_files(value)]
    return [name for item in node for name in toc_files(item)] if isinstance(node, list) else []


def test_table_of_contents_lists_every_page_once() -> None:
    listed = toc_files(yaml.safe_load((BOOK / "_toc.yml").read_text(encoding="utf-8")))
    pages = {p.relative_to(BOOK).with_suffix("").as_posix() for p in BOOK.rglob("*.md") if "executed" not in p.parts}
    assert len(listed) == len(set(listed))
    assert pages == {name for name in listed if not name.startswith("executed/")}


def test_every_notebook_has_its_page_in_the_order_of_its_number() -> None:
    listed = toc_files(yaml.safe_load((BOOK / "_toc.yml").read_text(encoding="utf-8")))
    pages = [name.removeprefix("executed/") for name in listed if re.match(r"executed/\d", name)]
    assert pages == sorted(kind.notebook for kind in stages.KINDS.values())
    for number, name in enumerate(pages, start=1):
        title = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4).cells[0].source
        assert title.startswith(f"# {number} · ") and "\n" not in title.strip(), f"{name}: title {title!r}"


def test_citations_are_in_the_bibliography() -> None:
    keys = set(re.findall(r"^@\w+\{([^,]+),", (BOOK / "references.bib").read_text(encoding="utf-8"), re.MULTILINE))
    pages = [*BOOK.glob("*.md"), *BOOK.glob("decisions/*.md"), *(ROOT / "notebooks").glob("*.ipynb")]
    for page in pages:
        for cited in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", page.read_text(encoding="utf-8")):
            missing = {key.strip() for key in cited.split(",")} - keys
            assert not missing, f"{page.name} cites {missing}"


def test_only_the_references_page_lists_references() -> None:
    # Two lists with one key in common are a warning of the build, and a warning is an error.
    pages = [p for p in [*BOOK.rglob("*.md"), *(ROOT / "notebooks").glob("*.ipynb")] if "executed" not in p.parts]
    assert [p.name for p in pages if "{bibliography}" in p.read_text(encoding="utf-8")] == ["references.md"]


# --- build --------------------------------------------------------------------------------------------------


def placeholder_sources(folder: Path) -> Path:
    """The book's own pages with placeholders, which look like no result, for everything that a run makes."""
    shutil.copytree(BOOK, folder / "book", ignore=shutil.ignore_patterns("executed"))
    shutil.copy(ROOT / "_config.yml", folder)
    (folder / "src").symlink_to(ROOT / "src")  # pages include code from it
    executed = folder / "book" / "executed"
    executed.mkdir()
    names = [n for n in toc_files(yaml.safe_load((BOOK / "_toc.yml").read_text(encoding="utf-8"))) if "executed/" in n]
    for name in names:
        title = new_markdown_cell(f"# {name}")
        text = new_markdown_cell("A formula, $a^2$, and a wide line:\n\n$$b/a = |n \\cdot B|$$")
        output = new_output("stream", name="stdout", text="placeholder")
        notebook = new_notebook(cells=[title, text, new_code_cell("print('placeholder')", outputs=[output])])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        notebook.metadata["language_info"] = {"name": "python", "pygments_lexer": "ipython3"}
        nbformat.write(notebook, folder / "book" / f"{name}.ipynb")
    glue_placeholders(executed, "")
    for page in BOOK.glob("*.md"):
        for fragment in re.findall(r"\{include\} (executed/\S+)", page.read_text(encoding="utf-8")):
            (folder / "book" / fragment).write_text(f"placeholder of {fragment}\n", encoding="utf-8")
    (executed / "notice.md").write_text(fragments.data_notice("phantom", "smoke"), encoding="utf-8")
    Image.fromarray(np.full((64, 256), 200, np.uint8)).save(executed / "strip.png")
    return folder


def glue_placeholders(executed: Path, note: str) -> None:
    keys = [key for page in BOOK.glob("*.md") for key in fragments.glued_keys(page.read_text(encoding="utf-8"))]
    fragments.glue_notebook({key: f"[{key}]{note}" for key in keys}, executed / "headline.ipynb")


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from jupyter_book.cli.main import main; main()", "build", "book"]
    command += ["--config", "_config.yml", "--path-output", ".", "-W", "--keep-going"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def placeholder_html(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("jupyter_book", reason="the book extra is not installed")
    folder = placeholder_sources(tmp_path_factory.mktemp("book"))
    done = build(folder)
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return folder / "_build" / "html"


@pytest.mark.slow
def test_pages_build_without_a_warning_and_quote_the_glued_values(placeholder_html: Path) -> None:
    index = (placeholder_html / "index.html").read_text(encoding="utf-8")
    keys = fragments.glued_keys((BOOK / "index.md").read_text(encoding="utf-8"))
    assert keys
    for key in keys:
        assert f"[{key}]" in index
    assert "not the paper's data" in index.replace("’", "'")


@pytest.mark.slow
def test_new_numbers_reach_a_page_whose_own_text_is_as_before(placeholder_html: Path) -> None:
    folder = placeholder_html.parents[1]
    glue_placeholders(folder / "book" / "executed", " anew")
    (folder / "book" / "executed" / "notice.md").touch()  # every assembly writes it, and the first page includes it
    done = build(folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "[data] anew" in (placeholder_html / "index.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_quotation_of_a_missing_number_stops_the_build(tmp_path: Path) -> None:
    pytest.importorskip("jupyter_book", reason="the book extra is not installed")
    folder = placeholder_sources(tmp_path)
    fragments.glue_notebook({"other": "1"}, folder / "book" / "executed" / "headline.ipynb")
    done = build(folder)
    assert done.returncode != 0
    assert "not found in doc" in done.stdout + done.stderr


# --- browser ------------------------------------------------------------------------------------------------


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("no Chromium on this machine; Debian's package is `chromium`")
    with playwright.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=executable, args=CHROMIUM)
        yield opened
        opened.close()


def visit(browser, html: Path) -> list[str]:
    """Open every page of a built book; returns what is wrong, one line each."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(html)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}/"
    wrong: list[str] = []
    page = browser.new_page()
    name = ""
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
        for path in sorted(html.rglob("*.html")):
            name = path.relative_to(html).as_posix()
            if name.startswith("_static/"):
                continue
            page.goto(address + name, wait_until="load")
            page.evaluate("document.querySelectorAll('img[loading=lazy]').forEach(i => i.loading = 'eager')")
            page.wait_for_function("[...document.images].every(i => i.complete)", timeout=20_000)
            images = page.evaluate(
                "[...document.images].map(i => [i.getAttribute('src'), i.naturalWidth, i.alt.trim()])"
            )
            wrong += [f"{name}: {source[:80]} did not load" for source, width, _ in images if not width]
            wrong += [f"{name}: {source[:80]} has no alt text" for source, _, alt in images if not alt]
            if page.locator(".system-message").count():
                wrong.append(f"{name}: shows an error of the build")
            if page.locator(".math").count():
                page.wait_for_function("document.querySelectorAll('mjx-container').length > 0", timeout=20_000)
    finally:
        page.close()
        server.shutdown()
        server.server_close()
    return wrong


@pytest.mark.slow
def test_a_broken_page_is_seen(browser, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(
        "<img src='gone.png'><script src='https://example.org/x.js'></script><script>throw Error('bang')</script>"
    )
    wrong = "\n".join(visit(browser, tmp_path))
    for sign in ("gone.png did not load", "gone.png has no alt text", "asks for https://example.org/x.js", "bang"):
        assert sign in wrong


@pytest.mark.slow
def test_sliders_redraw_what_the_page_shows_without_scripts(browser, tmp_path: Path) -> None:
    boxes = np.array([[2, 2, 12, 12, 1], [20, 20, 30, 30, 1]], dtype=float)
    pairs = np.array([[[0, 1], [0, -1]], [[0, -1], [0, -1]]])  # the second box overlaps its defect by less than 0.5
    picture = {
        "name": "m1.png, patch 0", "image": np.zeros((64, 64), np.uint8), "truths": np.array([[7.0, 7], [24, 26]]),
        "boxes": {"EXP": boxes}, "kept": {"EXP": np.array([2, 1])}, "pairs": {"EXP": pairs},
    }  # fmt: skip
    scores = {name: np.full((2, 2), 2.5) for name, _, _ in COLUMNS}
    html = threshold_page(
        {"EXP": scores}, [picture], [0.3, 0.5], [0.2, 0.7], (0.5, 0.2), {1: "dot"}, "phantom", "two boxes"
    )
    (tmp_path / "page.html").write_text(f"<!doctype html><meta charset='utf-8'>{html}", encoding="utf-8")
    seen = []
    for scripts in (False, True):
        context = browser.new_context(java_script_enabled=scripts)
        page = context.new_page()
        page.goto((tmp_path / "page.html").as_uri())
        seen.append([page.locator("table").text_content(), page.locator("rect").count()])
        seen[-1].append([box.get_attribute("stroke-dasharray") for box in page.locator("rect").all()])
        if scripts:
            page.locator(".iou").fill("0")
            assert page.locator("circle").count() == 0
            page.locator(".confidence").fill("1")
            assert (page.locator("rect").count(), page.locator("circle").count()) == (1, 1)
        context.close()
    assert seen[0] == seen[1] and seen[0][1:] == [2, ["none", "1.6"]]


@pytest.mark.slow
def test_placeholder_pages_open(browser, placeholder_html: Path) -> None:
    assert visit(browser, placeholder_html) == []


@pytest.mark.slow
def test_pages_of_the_book_open(browser) -> None:
    html = Path(os.environ.get("COMPANION_BOOK_HTML", ROOT / "_build" / "html"))
    if not (html / "index.html").is_file():
        assert os.environ.get("COMPANION_REQUIRE_BOOK") != "1", f"no book at {html}: `make book` builds it"
        pytest.skip(f"no book at {html}: `make book` builds it")
    assert visit(browser, html) == []
