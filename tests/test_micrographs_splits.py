"""Splits: disjoint, nested, one mix of pixel sizes, nothing that belongs together on two sides."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_micrographs import make_dataset

from companion.errors import CompanionError
from companion.micrographs import splits
from companion.micrographs.dataset import DataSet, Micrograph, load_dataset
from companion.micrographs.splits import Split, choose_split, near_duplicates


@pytest.fixture(autouse=True)
def cheap_hashes(request, monkeypatch):
    """Data sets without files have no near-duplicates; a test that looks at pixels asks for them."""
    if "tmp_path" not in request.fixturenames:
        monkeypatch.setattr(splits, "near_duplicates", lambda *_: [])


def listed(scales: list[float], **attributes) -> DataSet:
    """A data set of names and pixel sizes alone; attributes are functions of the number of the micrograph."""
    frames = tuple(
        Micrograph(Path(), f"m{k:03d}.png", 1, 1, scale, (), {}, {name: of(k) for name, of in attributes.items()})
        for k, scale in enumerate(scales)
    )
    return DataSet("listed", Path(), ("a",), frames)


def choose(dataset, source, sizes, n_test, n_val=0, group_by=None, n_fresh=0, root_seed=5) -> Split:
    return choose_split(dataset, source, "mine", sizes, n_test, n_val, group_by, root_seed, n_fresh)


BINNED = [0.5664] * 97 + [0.957] * 55 + [1.761] * 18  # the reference profile's phantom


@pytest.mark.parametrize("number", range(1, 9))
def test_every_list_has_the_mix_of_pixel_sizes_of_the_data_set(number):
    dataset = listed(BINNED)
    made = choose(dataset, number, [10, 50, 100], 22, 8, n_fresh=40)
    mix = made.mix(dataset, [10, 50, 100])
    assert mix.index.tolist() == ["train, N = 10", "train, N = 50", "train, N = 100", "val", "test", "fresh"]
    assert mix.columns.tolist() == ["0.5664", "0.957", "1.761"]
    assert mix.sum(axis=1).tolist() == [10, 50, 100, 8, 22, 40]
    expected = np.outer(mix.sum(axis=1), np.array([97, 55, 18]) / 170)
    assert np.abs(mix.to_numpy() - expected).max() < 1.7, "as far as whole numbers allow"
    assert made.warning == ""
    lists = [*made.train, *made.val, *made.test, *made.fresh]
    assert len(set(lists)) == len(lists) == 170


@given(
    numbers=st.lists(st.integers(1, 30), min_size=1, max_size=4), seed=st.integers(0, 99),
    shares=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 3)),
)  # fmt: skip
@settings(max_examples=40)
def test_drawn_splits_are_disjoint_nested_repeatable_and_mixed(numbers, seed, shares):
    scales = [0.3 * (k + 1) for k, n in enumerate(numbers) for _ in range(n)]
    n_train, n_test, n_val = (len(scales) * share // 10 for share in shares)
    if not n_train or not n_test:
        return
    made, again, small = (choose(listed(scales), seed, [n], n_test, n_val) for n in (n_train, n_train, 1))
    assert made == again and small.train == made.train[:1] and small.test == made.test
    assert (len(made.train), len(made.test), len(made.val)) == (n_train, n_test, n_val)
    assert len({*made.train, *made.test, *made.val}) == n_train + n_test + n_val
    tested = Counter(scales[int(name[1:4])] for name in made.test)
    for k, n in enumerate(numbers):
        assert abs(tested[0.3 * (k + 1)] - n_test * n / len(scales)) < len(numbers)
    assert made.warning == "" or n_train < len(numbers), "what is rare is trained on before it is tested"


def test_splits_differ_and_say_what_does_not_fit():
    dataset = listed([1.0] * 16)
    assert choose(dataset, 1, [4], 6).test != choose(dataset, 2, [4], 6).test
    assert choose(dataset, 1, [4], 6).test != choose(dataset, 1, [4], 6, root_seed=6).test
    assert len(choose(dataset, 1, [8], 5, n_val=9).val) == 3, "16 - 8 - 5 are left"
    with pytest.raises(CompanionError, match=r"has 16 micrographs, .*: lower sizes \(11\) or n_test \(6\)"):
        choose(dataset, 1, [11], 6)
    with pytest.raises(CompanionError, match=r"n_fresh = 8 .*listed has 4: lower n_fresh"):
        choose(dataset, 1, [6], 6, n_fresh=8)


def test_frames_of_a_group_stay_on_one_side():
    dataset = listed([0.5, 0.9] * 12, grain=lambda k: k // 3)
    made = choose(dataset, 1, [9], 7, 4, group_by="grain", n_fresh=3)
    grains = [{int(f[1:4]) // 3 for f in files} for files in (made.val, made.test, [*made.train, *made.fresh])]
    assert sum(map(len, grains)) == len(set.union(*grains))
    assert (len(made.test), len(made.val), len(made.train)) == (6, 3, 9), "whole groups of three"
    by_name = choose(listed([1.0] * 12), 4, [4], 3, group_by=r"m00|m01(\d)")  # m00x together, m010 and m011 alone
    assert len(by_name.train) == 4 and not {f[:4] for f in by_name.test} & {"m00"} and len(by_name.test) == 2
    with pytest.raises(CompanionError, match=r"up to 12 of which stay on one side \(group_by film"):
        choose(listed([1.0] * 24, film=lambda k: k % 2), 1, [4], 4, group_by="film")
    with pytest.raises(CompanionError, match=r"neither an entry of m000.png .*\(grain\) nor a pattern"):
        choose(dataset, 1, [4], 4, group_by="grian")


def with_copies(folder: Path) -> DataSet:
    """Ten micrographs, of which m9 and m10 are m1 and m2 with other noise."""
    document = make_dataset(folder, n=10)
    for copy, of in ((9, 1), (10, 2)):
        pixels = np.asarray(Image.open(folder / "images" / f"m{of}.png")).astype(int)
        noisy = np.clip(pixels + np.random.default_rng(3).integers(-4, 5, pixels.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / "images" / f"m{copy}.png")
    document["images"][7]["pixel_size_nm"] = 0.25  # m8
    (folder / "annotations.json").write_text(json.dumps(document))
    return load_dataset(folder)


def test_near_duplicates_stay_on_one_side_of_a_drawn_split(tmp_path):
    dataset = with_copies(tmp_path)
    assert near_duplicates(dataset, dataset.files, dataset.files) == [("m1.png", "m9.png"), ("m2.png", "m10.png")]
    for number in range(6):
        made = choose(dataset, number, [4], 3, 2, n_fresh=1)
        for pair in ({"m1.png", "m9.png"}, {"m2.png", "m10.png"}):
            held_out = [pair & set(files) for files in (made.test, made.val)]
            assert all(part in (set(), pair) for part in held_out)
        assert "look like" not in made.warning


def test_a_split_file_comes_back_as_written_is_used_as_it_is_and_its_dangers_are_said(tmp_path):
    dataset, path = with_copies(tmp_path), tmp_path / "mine.yaml"
    drawn = choose(dataset, 3, [3], 2, 1, n_fresh=2)
    drawn.save(path)
    assert choose(dataset, str(path), [3], 9, 9, n_fresh=2, root_seed=9) == drawn
    path.write_text("train: [m1.png, m2.png, m3.png]\ntest: [m9.png, m8.png]\nval: [m4.png]\n")
    made = choose(dataset, str(path), [2, 3], 1, n_fresh=3)
    assert (made.train, made.test, made.val) == (("m1.png", "m2.png", "m3.png"), ("m9.png", "m8.png"), ("m4.png",))
    assert set(made.fresh) < {"m5.png", "m6.png", "m7.png", "m10.png"} and len(made.fresh) == 3
    lines = made.warning.splitlines()
    assert lines[0] == "1 test micrograph(s) have 0.25 nm per px, which none of the first 2 training micrographs has"
    assert len(lines) == 3 and lines[2] == "m1.png (train) and m9.png (test) look like the same field"
    path.write_text("train: [m3.png]\ntest: [m4.png]\nval: [m1.png]\n")
    assert "m9.png" not in choose(dataset, str(path), [1], 1, n_fresh=6).fresh, "it looks like one held out"
    with pytest.raises(CompanionError, match=r"needs n_fresh = 7 .* has 6: "):
        choose(dataset, str(path), [1], 1, n_fresh=7)


def test_bad_split_files_list_their_problems(tmp_path):
    make_dataset(tmp_path, n=4)
    dataset, path = load_dataset(tmp_path), tmp_path / "s.yaml"
    path.write_text("dataset: other\ntrain: [m1.png, m2.png, m2.png, x.png]\ntest: [m1.png]\n")
    with pytest.raises(CompanionError) as caught:
        choose(dataset, str(path), [9], 1)
    for part in (
        "5 problem(s)", "it is for data set 'other', not", "x.png is not in ", "m2.png is named 2 times",
        "m1.png is named 2 times", "train lists 4 micrographs; the profile asks for N = 9",
    ):  # fmt: skip
        assert part in str(caught.value)
    for content, message in (
        ("[1]", "dictionary"), ("a: [", "not a split file"), ("name: x", "(?s)train: Field required.*test: Field"),
        ("{train: m1.png, test: [], tset: 1}", "(?s)train: .*tuple.*test: .*at least 1.*tset: .*did you mean 'test'"),
        ("{train: [m1.png], test: [m2.png]}", "train lists 1 micrographs; the profile asks for N = 2"),
    ):  # fmt: skip
        path.write_text(content)
        with pytest.raises(CompanionError, match=message):
            choose(dataset, str(path), [2], 1)
    with pytest.raises(CompanionError, match=r"not a split file: .*No such file"):
        choose(dataset, "nowhere.yaml", [1], 1)
