"""What the result of a notebook depends on, read from the notebook itself; writes are whole or absent."""

import ast
import json
import shutil

import numpy as np
import pandas as pd
import pytest
from project import NAMES, ROOT

from companion import provenance
from companion.config import load_profile
from companion.errors import CompanionError
from companion.workflow import freshness


@pytest.mark.parametrize("name", NAMES)
def test_what_a_notebook_reads_of_the_profile_can_be_seen_and_exists(name):
    text, values = freshness.source(name), load_profile("smoke").model_dump()
    for entry in freshness.entries(text):
        first, *rest = entry.split(".")
        method = first in freshness.BEHIND or first == "split_source"
        assert method or isinstance(values.get(first), (dict, list, str) if rest else object), f"P.{entry}"
        assert method or first in values, f"P.{entry}"
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    given = {ast.unparse(c.func) for c in calls for a in c.args if isinstance(a, ast.Name) and a.id == "P"}
    assert given <= {"Layout"}, f"P is handed to {given}: what it reads of it cannot be seen"


def test_parameters_hold_values_keys_and_the_arm_and_no_other_arm_seed_or_description():
    P, keys = load_profile("smoke"), {"split": "1", "n_train": "10", "arm": "EXP+RARE", "seed": "1"}
    found = freshness.parameters("06_mask_rcnn", P, keys)
    assert found["detection.steps"] == P.detection.steps and found["arm EXP+RARE"][1] == "rare"
    assert found["n_train"] == "10" and "evaluation.iou" not in found and "name" not in found
    more = {"seeds": [1, 2, 3], "controls": {"EXP+PASTE": [10]}, "description": "x", "evaluation.iou": 0.3}
    assert freshness.parameters("06_mask_rcnn", load_profile("smoke", changes=more), keys) == found


def codes() -> dict[str, dict[str, str]]:
    freshness.code.cache_clear()
    return {name: freshness.code(name) for name in NAMES}


@pytest.mark.parametrize(("file", "added", "stale", "fresh"), [
    ("evaluation/matching.py", "# a comment", "", "all"),
    ("evaluation/matching.py", "ADDED = 1", "07 09 12", "01 02 03 04 05 06"),
    ("detection/plots.py", "ADDED = 1", "", "04 05 06"),
    ("config/arms.py", "ADDED = 1", "", "all"),  # values are hashed, not the files that declare them
    ("diffusion/denoiser.py", "ADDED = 1", "04 05", "01 02 03 06 07 08 09"),
])  # fmt: skip
def test_what_a_changed_file_makes_stale(tmp_path, monkeypatch, file, added, stale, fresh):
    package = tmp_path / "companion"
    shutil.copytree(ROOT / "src" / "companion", package)
    monkeypatch.setattr(provenance, "_SOURCE", package)
    monkeypatch.setattr(provenance, "_NO_RESULT", (package / "config", package / "layout.py"))
    before = codes()
    with open(package / file, "a", encoding="utf-8") as source:
        source.write(f"\n{added}\n")
    after = codes()
    freshness.code.cache_clear()
    changed = {name[:2] for name in NAMES if after[name] != before[name]}
    assert set(stale.split()) <= changed and not (changed if fresh == "all" else changed & set(fresh.split()))


def test_working_files_are_no_results_and_a_broken_stamp_is_no_stamp(tmp_path):
    for content in ("", "{", "[]", "{}"):
        (tmp_path / "stamp.json").write_text(content)
        assert freshness.read_stamp(tmp_path) is None
    for name in ("stamp.json", "notebook.ipynb", ".done", "checkpoint/training.safetensors", "kept.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert list(freshness.outputs(tmp_path)) == ["kept.parquet"]


def test_inputs_are_as_the_stamp_of_their_writer_says(tmp_path):
    def read(**outputs):
        (tmp_path / "made").mkdir(exist_ok=True)
        stamp = {"outputs": {f"{part}/a.npy": sha for part, sha in outputs.items()}}
        (tmp_path / "made" / "stamp.json").write_text(json.dumps(stamp))
        return {part: freshness.input_hash(tmp_path / "made" / part, tmp_path) for part in ("", "test", "train", "val")}

    before, after = read(test="1", train="2"), read(test="1", train="3")
    assert len(set(before.values())) == 4 and None not in before.values()
    assert after["test"] == before["test"] and after["train"] != before["train"] and after[""] != before[""]
    assert freshness.input_hash(tmp_path / "not made", tmp_path) is None


def test_an_interrupted_write_leaves_the_old_file_or_folder(tmp_path):
    path, target = tmp_path / "a.json", tmp_path / "set"
    provenance.write_json(path, {"kept": np.int64(1), "undefined": [np.float64("nan"), float("inf")]})
    with provenance.atomic_folder(target) as folder:
        (folder / "one").write_text("1")
    with pytest.raises(KeyboardInterrupt), provenance.atomic(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(RuntimeError), provenance.atomic_folder(target) as folder:
        (folder / "two").write_text("2")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"kept": 1, "undefined": [None, None]}
    assert [p.name for p in target.iterdir()] == ["one"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "set"]


def test_a_full_disk_is_one_message(tmp_path):
    with pytest.raises(CompanionError, match="could not be written: No space left"), provenance.atomic(tmp_path / "x"):
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize("rows", [3, 0])
def test_a_table_is_read_back_as_it_was_and_equal_ones_give_equal_bytes(tmp_path, rows):
    table = pd.DataFrame({
        "patch": [0, 1, 1], "score": np.array([0.1, 0.2, np.nan], np.float32), "arm": ["EXP", "EXP+GEN", None],
        "touches": [True, False, True], "mask": [b"\x00\xff", b"", None], "code": pd.Categorical(["x", "y", "x"]),
    }).head(rows)  # fmt: skip
    for name in ("1", "2"):
        provenance.write_table(tmp_path / name, table.copy())
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()
    table.to_parquet(tmp_path / "plain", index=False)  # as pandas writes it
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "1"), pd.read_parquet(tmp_path / "plain"))


def test_the_hash_of_code_is_that_of_what_it_does():
    before = 'def f(x):\n    """Docstring."""\n    return x + 1  # comment\n'
    same = 'def f( x ):\n    """Another."""\n\n    return (x +\n 1)\n'
    texts = before, same, before.replace("+", "-"), before.replace("f(", "g(")
    first, second, *others = (provenance.code_hashes(text, "x")["x"] for text in texts)
    assert second == first and first not in others


def test_micrographs_that_are_not_here_make_nothing_stale_and_other_ones_do(tmp_path, monkeypatch):
    P, keys = load_profile("real"), {"split": "fold-1"}
    for name in ("made.json", freshness.EXECUTED):
        provenance.write_text(tmp_path / "stage" / name, "{}")
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "data"))
    stamp = {"notebook": "01_micrographs", "keys": keys, **freshness.made_from("01_micrographs", P, keys, [], tmp_path)}
    stamp["parameters"]["dataset"] = ["loops_316L", "a hash"]
    stamp["outputs"] = freshness.outputs(tmp_path / "stage")
    provenance.write_json(tmp_path / "stage" / freshness.STAMP, stamp)
    assert freshness.reasons(tmp_path / "stage", P, tmp_path) == []
    (tmp_path / "data" / "loops_316L").mkdir(parents=True)  # here, and not what the stage was made from
    assert freshness.reasons(tmp_path / "stage", P, tmp_path) == ["parameters changed: dataset"]
