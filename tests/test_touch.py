"""Things to touch in a real browser, by mouse, keyboard and finger, and what stands there without scripts."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ellipse_patches
from project import ROOT
from test_book import browser  # noqa: F401 (a fixture)
from test_evaluation_runs import table

from companion.evaluation import sliders, worth
from companion.evaluation.runs import Run, count_runs, tabulate_runs
from companion.evaluation.significance import paired_t
from companion.masks.plots import color_mask, image_rows
from companion.plots import save, use_style

SCRIPT = (ROOT / "book" / "_static" / "touch.js").read_text(encoding="utf-8")


def runs() -> list[Run]:
    """An arm at N = 4 and two at N = 8, on the same patches; scores fall from defect to defect."""
    truth = ellipse_patches(24, seed=1)
    found = truth.table.assign(score=np.tile([0.9, 0.6, 0.2], len(truth.table))[: len(truth.table)])
    found = found.rename(columns={"class": "label"})[["patch", "x1", "y1", "x2", "y2", "score", "label"]]
    keys = [(4, "EXP"), (8, "EXP"), (8, "EXP+GEN")]
    return [Run({"split": "1", "n_train": n, "arm": arm, "seed": 1}, found, truth) for n, arm in keys]


@pytest.fixture
def opened(browser, tmp_path: Path):  # noqa: F811
    """Opens a thing to touch, with or without the script; afterwards nothing was asked for and no error was logged."""
    wrong, contexts = [], []

    def open_(html: str, **settings):
        contexts.append(browser.new_context(**settings))
        page = contexts[-1].new_page()
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else wrong.append(r.url))
        text = f"<!doctype html><meta charset='utf-8'><script>{SCRIPT}</script>{html}"
        (tmp_path / "page.html").write_text(text, encoding="utf-8")
        page.goto((tmp_path / "page.html").as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.mark.slow
def test_the_threshold_explorer_follows_keys_and_fingers(opened) -> None:
    found = runs()
    scores = tabulate_runs(found, count_runs(found, [0.3, 0.5], [0.1, 0.5, 0.7]))
    html = sliders.explorer(found, scores, "truth-greedy", (0.5, 0.1), "x")
    page = opened(html, has_touch=True)
    arms = page.get_by_label("upper row"), page.get_by_label("lower row")
    assert [arm.input_value() for arm in arms] == ["EXP", "EXP+GEN"] and page.locator("tr").count() == 3
    before, slider = page.locator("rect").count(), page.get_by_role("slider")
    assert page.locator("circle").count() == 0  # all are found at 0.1
    slider.press("ArrowRight")
    slider.press("ArrowRight")
    assert 0 < page.locator("rect").count() < before and page.locator("circle").count() > 0
    best = scores[np.isclose(scores["confidence"], 0.7) & np.isclose(scores["iou_threshold"], 0.5)]["f1_hm"].iloc[0]
    assert slider.get_attribute("aria-valuetext") == f"confidence 0.7: EXP F1HM {best:.3f}, EXP+GEN F1HM {best:.3f}"
    box = slider.bounding_box()
    page.touchscreen.tap(box["x"] + 2, box["y"] + box["height"] / 2)
    assert page.locator("output").text_content() == "0.1" and page.locator("rect").count() == before
    page.get_by_label("N", exact=True).select_option("4")
    assert [arm.input_value() for arm in arms] == ["EXP", "EXP"]
    assert opened(html, java_script_enabled=False).locator(".pictures img").count() == sliders.SHOWN


@pytest.mark.slow
def test_pairs_that_are_left_out_change_mean_interval_and_p(opened) -> None:
    d = [0.01, 0.03, 0.02, -0.02]
    pairs = pd.DataFrame({"split": "1", "n_train": 10, "measure": "f1_hm", "seed": range(4), "difference": d})
    page = opened(sliders.draws(pairs, 0.95))
    every, three = paired_t(d), paired_t(d[:3])
    said = page.locator("p[aria-live]")
    assert f"4 of 4 pairs: mean {every['mean']:.3f}" in said.text_content()
    page.get_by_role("button", name="pair 4").press("Enter")
    assert f"3 of 4 pairs: mean 0.020, 95 % interval {three['low']:.3f} to {three['high']:.3f}" in said.text_content()
    page.get_by_label("pairs", exact=True).select_option("2")
    assert "2 of 4 pairs" in said.text_content()
    before = said.text_content()
    page.get_by_role("button", name="draw others").click()
    assert "2 of 4 pairs" in said.text_content() != before
    assert "touch" in sliders.draws(pairs.head(1), 0.95)  # one pair: nothing to draw, and no error


@pytest.mark.slow
def test_one_picture_is_wiped_over_the_next_and_none_stands_on_its_head(opened, tmp_path: Path) -> None:
    use_style()
    names = ["labelled", "mask", "the same masks,\ngenerated", "the same masks,\npainted", "simulated", "generated"]
    masks = color_mask(np.ones((2, 8, 8), np.uint8))
    rows = {name: masks if k in (1, 4) else np.full((2, 8, 8), 40 * k, np.uint8) for k, name in enumerate(names)}
    rows["labelled"][:, :4] = 250  # bright above
    save(image_rows(rows, "x"), tmp_path, "fig2")
    save(image_rows({"mask": masks[[0, 1, 1]], "image": np.zeros((3, 8, 8), np.uint8)}, "x"), tmp_path, "edited")
    labelled = np.asarray(sliders.same_masks(tmp_path / "figures" / "fig2.svg")[0]["labelled"].convert("L"))
    assert labelled[:4].mean() > 200 > 50 > labelled[-4:].mean()
    html = sliders.wiped(tmp_path / "figures")
    page = opened(html)
    slider, pile, which = page.get_by_role("slider"), page.locator(".pile"), page.get_by_label("mask", exact=True)
    assert page.locator(".pile img").count() == 3 and which.locator("option").count() == 2
    slider.press("Home")
    assert slider.get_attribute("aria-valuetext") == "labelled"
    slider.press("End")
    assert slider.get_attribute("aria-valuetext") == "painted"
    box = pile.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 2, box["y"] + 4)
    assert slider.get_attribute("aria-valuetext") == "left 50 % painted, right generated"
    shown = page.evaluate("[...document.querySelectorAll('.pile img')].map(i => i.alt + i.style.clipPath)")
    assert shown == ["paintednone", "generatedinset(0px 0px 0px 50%)", "labelledinset(0px 100% 0px 0px)"]
    assert opened(html, java_script_enabled=False).locator("figure").count() == 8
    assert sliders.wiped(tmp_path / "none") == sliders.edited(tmp_path / "none") == ""


@pytest.mark.slow
def test_a_score_has_a_price_in_labelled_micrographs(opened) -> None:
    levels = {n: {"EXP": 0.1 * np.log10(n) + 0.5, "EXP+GEN": 0.1 * np.log10(n) + 0.52} for n in (10, 50, 100)}
    scores = table(levels, seeds=(1, 2), spread=0.01).assign(resample=0)
    gained, curve = worth.in_micrographs(scores, "f1_hm", np.random.default_rng(0), 50, 0.95)
    html = sliders.learning_curve(gained, curve, worth.said(gained, [10, 50, 100]), "f1_hm", 0.95)
    page = opened(html)
    said, slider, now = page.locator("p[aria-live]"), page.get_by_role("slider"), page.locator("circle.mean")
    assert "N = 10: EXP+GEN scores as EXP would with 16" in said.text_content()
    page.get_by_label("EXP+GEN at N =").select_option("50")
    assert "N = 50" in said.text_content() and float(now.get_attribute("cx")) > 200
    slider.press("Home")
    assert slider.get_attribute("aria-valuetext") == said.text_content() and "with 10 labelled" in said.text_content()
    slider.press("End")
    assert "with 100 labelled" in said.text_content() and now.get_attribute("cx") == "290"
    still = opened(html, java_script_enabled=False)
    assert still.locator("circle").count() == 4 and "N = 100" in still.locator("p").text_content()
    assert sliders.learning_curve(gained[:0], curve[:0], [], "f1_hm", 0.95) == ""


@pytest.mark.slow
def test_numbers_of_the_confusion_table_show_the_defects_behind_them(opened) -> None:
    found = runs()[:1]
    points = pd.DataFrame([("1", 4, "EXP", 0.5)], columns=["split", "n_train", "arm", "confidence"])
    html = sliders.confusion(found, points, (0.5, "truth-greedy"), "x")
    missed = int((found[0].predictions["score"] < 0.5).sum())
    page = opened(html)
    numbers = [int(text) for text in page.locator("tbody td").all_text_contents() if text]
    assert sum(numbers) == len(found[0].patches.table)
    assert page.locator(".crops svg").count() == min(4, max(numbers[0], 0))
    buttons = page.get_by_role("button", name="missed")
    assert sum(int(text) for text in buttons.all_text_contents()) == missed
    buttons.first.press("Enter")
    assert buttons.first.get_attribute("aria-pressed") == "true" and "missed" in page.locator(".crops p").text_content()
    assert page.locator(".crops rect").count() == page.locator(".crops rect.labelled").count() > 0
    assert opened(html, java_script_enabled=False).locator("td").count() == 4 * 4 + 1
