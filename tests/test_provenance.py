"""Writes are whole or absent; hashes follow what matters."""

import json

import numpy as np
import pandas as pd
import pytest

from companion import provenance
from companion.errors import CompanionError


def test_an_interrupted_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    provenance.write_json(path, {"kept": 1})
    with pytest.raises(KeyboardInterrupt), provenance.atomic(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    assert json.loads(path.read_text()) == {"kept": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_an_interrupted_folder_leaves_the_old_folder(tmp_path):
    target = tmp_path / "set"
    with provenance.atomic_folder(target) as folder:
        (folder / "one").write_text("1")
    with pytest.raises(RuntimeError), provenance.atomic_folder(target) as folder:
        (folder / "two").write_text("2")
        raise RuntimeError
    assert [p.name for p in target.iterdir()] == ["one"]
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_a_full_disk_is_one_message(tmp_path):
    with pytest.raises(CompanionError, match="could not be written: No space left"), provenance.atomic(tmp_path / "x"):
        raise OSError(28, "No space left on device")


def test_undefined_numbers_become_null(tmp_path):
    provenance.write_json(tmp_path / "a.json", {"f1": np.float64("nan"), "n": np.int64(3), "p": [float("inf")]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"f1": None, "n": 3, "p": [None]}


def test_equal_tables_give_equal_bytes(tmp_path):
    table = pd.DataFrame({"a": [1.0, np.nan], "b": ["x", None], "mask": [b"\x00\xff", None], "n": [1, 2]})
    provenance.write_table(tmp_path / "1.parquet", table)
    provenance.write_table(tmp_path / "2.parquet", table.copy())
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()


def test_a_table_is_read_back_as_it_was(tmp_path):
    table = pd.DataFrame({
        "patch": [0, 1, 1], "score": np.array([0.1, 0.2, np.nan], np.float32), "arm": ["EXP", "EXP+GEN", None],
        "touches": [True, False, True], "mask": [b"ab", b"", None], "code": pd.Categorical(["x", "y", "x"]),
    })  # fmt: skip
    provenance.write_table(tmp_path / "t.parquet", table)
    table.to_parquet(tmp_path / "plain.parquet", index=False)  # as pandas writes it
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), pd.read_parquet(tmp_path / "plain.parquet"))
    provenance.write_table(tmp_path / "empty.parquet", table.head(0))
    assert pd.read_parquet(tmp_path / "empty.parquet").columns.tolist() == table.columns.tolist()


def test_code_hashes_follow_imports_and_nothing_else():
    files = provenance.code_hashes("companion.config.profile")
    assert "companion/params.py" in files and "companion/errors.py" in files
    assert "companion/geometry.py" not in files
    assert "companion/geometry.py" in provenance.code_hashes("companion.training", "companion.geometry")


def test_a_notebooks_hash_ignores_outputs(tmp_path):
    cell = {"cell_type": "code", "source": ["x = 1"], "outputs": [], "execution_count": None}
    (tmp_path / "a.ipynb").write_text(json.dumps({"cells": [cell]}))
    (tmp_path / "b.ipynb").write_text(json.dumps({"cells": [{**cell, "outputs": ["1"], "execution_count": 3}]}))
    (tmp_path / "c.ipynb").write_text(json.dumps({"cells": [{**cell, "source": ["x = 2"]}]}))
    a, b, c = (provenance.hash_notebook(tmp_path / f"{name}.ipynb") for name in "abc")
    assert a == b != c


def test_working_files_are_no_artifacts(tmp_path):
    for name in ("stamp.json", "notebook.ipynb", ".done", "checkpoint/state.safetensors", "kept.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    assert list(provenance.artifact_hashes(tmp_path)) == ["kept.parquet"]


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_broken_stamp_is_no_stamp(tmp_path, content):
    (tmp_path / "stamp.json").write_text(content)
    assert provenance.read_stamp(tmp_path) is None
