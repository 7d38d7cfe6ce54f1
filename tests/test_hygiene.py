"""What a user was sent cannot run code or write elsewhere; what is pinned is listed."""

from __future__ import annotations

import ast
import json
import re
import zipfile
from pathlib import Path

import pytest

from companion import dependencies
from companion.micrographs.importers import import_record
from companion.errors import CompanionError

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def unsafe(source: str) -> list[str]:
    """Calls that would unpickle a file, or execute what it holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            match ast.unparse(node.func):
                case "np.load" | "numpy.load" if (
                    given.get("allow_pickle", "False") != "False"
                ):  # numpy refuses by default
                    found.append(ast.unparse(node))
                case "torch.load" if given.get("weights_only") != "True":
                    found.append(ast.unparse(node))
                case "pickle.load" | "pickle.loads" | "joblib.load" | "pd.read_pickle" | "yaml.load" | "eval" | "exec":
                    found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("call", ["np.load(p, allow_pickle=True)", "torch.load(p)", "pickle.load(f)"])
def test_an_unsafe_call_is_seen(call: str) -> None:
    assert unsafe(f"x = {call}") == [call]
    assert unsafe("np.load(p, allow_pickle=False)") == []


def test_no_file_is_ever_unpickled() -> None:
    assert {path.name: calls for path in SOURCES if (calls := unsafe(path.read_text(encoding="utf-8")))} == {}
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert not [c for cell in cells if cell["cell_type"] == "code" for c in unsafe("".join(cell["source"]))], path


def test_notebooks_are_executed_from_one_place_which_takes_the_projects_own() -> None:
    sources = {path.name: path.read_text(encoding="utf-8") for path in SOURCES}
    assert [name for name, text in sources.items() if "execute_notebook(" in text] == ["execute.py"]
    assert re.findall(r"execute_notebook\(\s*([\w.]+),", sources["execute.py"]) == ["stage.notebook"]


def test_an_archive_cannot_write_outside_its_folder(tmp_path: Path) -> None:
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    with zipfile.ZipFile(downloads / "data.zip", "w") as archive:
        archive.writestr("../escaped.json", "{}")
        archive.writestr("/tmp/companion-escaped.json", "{}")
        archive.writestr("inside.json", "{}")
    with pytest.raises(CompanionError, match="holds 0 COCO files"):
        import_record(downloads, tmp_path / "made", {})
    assert (downloads / "data" / "inside.json").is_file()
    assert not list(tmp_path.rglob("*escaped*")) and not Path("/tmp/companion-escaped.json").exists()


def test_every_pinned_package_is_listed_with_its_licence() -> None:
    page = (ROOT / "book" / "dependencies.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\S+) \| (\S+) \| .+ \|$", page, re.MULTILINE))
    assert {k: v for k, v in rows.items() if k not in ("package", "---")} == dependencies.pinned(
        ROOT / "requirements.lock"
    )
