"""Writes are whole or absent; hashes follow what matters."""

import json

import numpy as np
import pandas as pd
import pytest

from companion import provenance
from companion.errors import CompanionError


def test_an_interrupted_write_leaves_the_old_file_or_folder(tmp_path):
    path, target = tmp_path / "a.json", tmp_path / "set"
    provenance.write_json(path, {"kept": 1})
    with provenance.atomic_folder(target) as folder:
        (folder / "one").write_text("1")
    with pytest.raises(KeyboardInterrupt), provenance.atomic(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(RuntimeError), provenance.atomic_folder(target) as folder:
        (folder / "two").write_text("2")
        raise RuntimeError
    assert json.loads(path.read_text()) == {"kept": 1} and [p.name for p in target.iterdir()] == ["one"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "set"]


def test_a_full_disk_is_one_message(tmp_path):
    with pytest.raises(CompanionError, match="could not be written: No space left"), provenance.atomic(tmp_path / "x"):
        raise OSError(28, "No space left on device")


def test_undefined_numbers_become_null(tmp_path):
    provenance.write_json(tmp_path / "a.json", {"f1": np.float64("nan"), "n": np.int64(3), "p": [float("inf")]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"f1": None, "n": 3, "p": [None]}


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


SOURCE = '''"""Docstring."""
from companion import geometry

def area(box):
    """Area."""
    return (box[2] - box[0]) * (box[3] - box[1])  # half-open
'''


@pytest.mark.parametrize(("changed", "same"), [
    (SOURCE.replace("Area.", "Another docstring."), True),
    (SOURCE.replace("# half-open", "# a comment"), True),
    (SOURCE.replace("(box):", "(  box ):\n\n"), True),
    (SOURCE.replace("* (", "+ ("), False),
    (SOURCE.replace("area", "size"), False),
])  # fmt: skip
def test_the_hash_of_code_is_that_of_what_it_does(changed, same):
    assert (provenance.code_hashes(changed, "x")["x"] == provenance.code_hashes(SOURCE, "x")["x"]) == same


def test_code_hashes_follow_imports_and_leave_out_declarations():
    files = provenance.code_hashes("def f():\n    from companion.masks import statistics", "notebook")
    assert {"notebook", "companion/masks/statistics.py", "companion/micrographs/patches.py"} <= files.keys()
    assert not {name for name in files if "config/" in name or name in ("companion/layout.py", "companion/cli.py")}
    assert "companion/masks/plots.py" in provenance.code_hashes("import companion.masks.plots")
    assert "companion/masks/plots.py" not in provenance.code_hashes(
        "import companion.masks.plots", without=["plots.py"]
    )


def test_equal_arrays_have_equal_hashes_whatever_their_layout():
    array = np.arange(6).reshape(2, 3)
    assert provenance.hash_arrays(array) == provenance.hash_arrays(np.asfortranarray(array))
    assert provenance.hash_arrays(array) != provenance.hash_arrays(array.reshape(3, 2))
    assert provenance.hash_arrays(array) != provenance.hash_arrays(array.astype(np.float64))
