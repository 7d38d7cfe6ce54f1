"""The project's own files: size, safety, packages, the Makefile, and that every command which is shown exists."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import dependencies
import pytest
import typer.main
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from companion import cli

ROOT = Path(__file__).resolve().parents[1]

SOURCES = sorted((ROOT / "src").rglob("*.py"))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "book").glob("*.md"))]
COMMAND = typer.main.get_command(cli.app)


def cells(path: Path, kind: str) -> list[str]:
    content = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in content if cell["cell_type"] == kind]


# --- size and structure -------------------------------------------------------------------------------------


def lines(*folders: str) -> int:
    return sum(len(p.read_text("utf-8").splitlines()) for folder in folders for p in (ROOT / folder).rglob("*.py"))


def test_the_house_stays_readable_in_a_day() -> None:
    # The aims are 10,000 lines of package and 6,500 of tests; formats, first page and course took it away from them.
    # From here these limits only fall.
    assert lines("src") <= 12_602 and lines("tests") <= 7_217 and lines("benchmarks", "scripts") <= 1_898
    long = {p.name: n for p in SOURCES if (n := len(p.read_text(encoding="utf-8").splitlines())) > 300}
    assert not long
    assert len([p for p in (ROOT / "src" / "companion").glob("*.py") if p.name != "__init__.py"]) <= 14


FLOORS = ["phantom", "micrographs", "masks", "diffusion", "detection", "evaluation", "studies", "workflow"]


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = [f"{n.module}.{a.name}" for n in nodes if isinstance(n, ast.ImportFrom) and n.module for a in n.names]
    return {name.split(".")[1] for name in names if name.startswith("companion.")}


@pytest.mark.parametrize("floor", FLOORS)
def test_imports_run_downwards_only(floor: str) -> None:
    above = {*FLOORS[FLOORS.index(floor) + 1 :], "cli"}
    above |= {"detection", "diffusion"} if floor == "evaluation" else set()
    files = list((ROOT / "src" / "companion" / floor).glob("*.py"))
    assert not {p.name: found for p in files if (found := imported(p) & above)}
    texts = {p.name: p.read_text(encoding="utf-8") for p in files if floor != "workflow"}
    assert not [name for name, text in texts.items() if "import Layout" in text or "import Profile" in text]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_short_and_hold_no_outputs(path: Path) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    code = cells(path, "code")
    assert len(code) <= 15 and not [c for c in content["cells"] if c.get("outputs")]
    assert not {k: n for k, text in enumerate(code) if (n := len(text.splitlines())) > 15}
    assert "check_parameters()" in "\n".join(code) and "written(out)" in code[-1]


# --- safety -------------------------------------------------------------------------------------------------


def unsafe(source: str) -> list[str]:
    """Calls that would unpickle a file, or execute what it holds."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            given = {k.arg: ast.unparse(k.value) for k in node.keywords}
            match ast.unparse(node.func):
                case "np.load" | "numpy.load" if given.get("allow_pickle", "False") != "False":
                    found.append(ast.unparse(node))
                case "torch.load" if given.get("weights_only") != "True":
                    found.append(ast.unparse(node))
                case "pickle.load" | "pickle.loads" | "joblib.load" | "pd.read_pickle" | "yaml.load" | "eval" | "exec":
                    found.append(ast.unparse(node))
    return found


def test_no_file_is_ever_unpickled() -> None:
    for call in ("np.load(p, allow_pickle=True)", "torch.load(p)", "pickle.load(f)"):
        assert unsafe(f"x = {call}") == [call]
    assert {path.name: calls for path in SOURCES if (calls := unsafe(path.read_text(encoding="utf-8")))} == {}
    assert not [text for path in NOTEBOOKS for text in cells(path, "code") if unsafe(text)]


# --- packages -----------------------------------------------------------------------------------------------

# pip's name -> conda's, where they differ.
CONDA_NAMES = {"opencv-python-headless": "opencv", "snakemake": "snakemake-minimal", "torch": "pytorch"}


def test_pip_and_conda_ask_for_the_same_packages_in_the_same_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + [line for extra in project["optional-dependencies"].values() for line in extra]
    pip = {CONDA_NAMES.get(r.name, r.name): r.specifier for r in map(Requirement, wanted)}
    pip["python"] = SpecifierSet(project["requires-python"])
    entries = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    by_pip = [line for entry in entries if isinstance(entry, dict) for line in entry["pip"]]
    conda = {r.name: r.specifier for r in map(Requirement, [e for e in [*entries, *by_pip] if isinstance(e, str)])}
    assert {k: str(v) for k, v in conda.items() if k not in ("detectron2", "pip")} == {
        k: str(v) for k, v in pip.items()
    }
    assert "detectron2" in conda and "detectron2" not in pip


def test_every_pinned_package_is_listed_with_its_licence() -> None:
    page = (ROOT / "book" / "dependencies.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| (\S+) \| (\S+) \| .+ \|$", page, re.MULTILINE))
    rows = {name: version for name, version in rows.items() if name not in ("package", "---")}
    assert rows == dependencies.pinned(ROOT / "requirements.lock")


def recipe(target: str, *variables: str) -> str:
    """What `make target` would do, nothing of it done; as in a checkout without an environment."""
    cleared = {k: v for k, v in os.environ.items() if k not in ("CORES", "PROFILE", "MAKEFLAGS", "MAKELEVEL")}
    command = ["make", "--dry-run", target, "VENV=/nonexistent/venv", *variables]
    return subprocess.run(command, cwd=ROOT, env=cleared, capture_output=True, text=True, check=True).stdout


def test_an_installation_without_a_network_finds_every_extra_in_the_wheelhouse(tmp_path: Path) -> None:
    offered = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    for target in ("wheelhouse", "install"):
        (extras,) = re.findall(r"'\.\[([a-z,]+)\]'", recipe(target))
        assert set(extras.split(",")) == set(offered)
    (tmp_path / "torch-2.9.0-py3-none-any.whl").touch()
    assert f"--no-index --find-links {tmp_path}" in recipe("install", f"WHEELHOUSE={tmp_path}")
    assert "--no-index" not in recipe("install", f"WHEELHOUSE={tmp_path / 'none'}")


# --- what is shown exists -----------------------------------------------------------------------------------


def texts() -> list[tuple[str, str]]:
    found = [(page.name, page.read_text(encoding="utf-8")) for page in PAGES]
    return found + [(path.name, text) for path in NOTEBOOKS for text in cells(path, "markdown")]


def shown_commands(text: str) -> list[str]:
    joined = text.replace("\\\n", " ")
    inline = re.findall(r"`(companion [a-z][^`]*)`", joined)
    blocks = "\n".join(re.findall(r"^```(?:bash|sh)\n(.*?)^```", joined, re.MULTILINE | re.DOTALL))
    return inline + re.findall(r"^(companion [a-z].*?)(?: *#.*)?$", blocks, re.MULTILINE)


def unknown(shown: str) -> list[str]:
    """Words of one shown command that the command line does not have."""
    words = shlex.split(shown.replace("[", " ").replace("]", " ").replace("…", ""))[1:]
    group, wrong = COMMAND, []
    while words and hasattr(group, "commands"):
        names = words.pop(0).split("|")
        wrong += [name for name in names if name not in group.commands]
        if wrong:
            return wrong
        group = group.commands[names[-1]]
    options = {option for parameter in group.params for option in parameter.opts}
    return [word for word in words if word.startswith("--") and word.split("=")[0] not in options]


def test_every_shown_command_exists_and_every_command_is_shown() -> None:
    shown = [(name, command) for name, text in texts() for command in shown_commands(text)]
    assert len(shown) > 15, "the search for commands finds too few"
    assert all(map(unknown, ["companion plam smoke", "companion data chek x", "companion run smoke --datset x"]))
    assert not [f"{name}: `{command}`: {words}" for name, command in shown if (words := unknown(command))]
    documented = {tuple(command.split()[1:3]) for _, command in shown}
    for name, command in COMMAND.commands.items():
        for sub in getattr(command, "commands", [None]):
            assert any(words[0] == name and sub in (None, *words[1:]) for words in documented), f"{name} {sub or ''}"


def unknown_options(text: str) -> list[str]:
    """Programs of benchmarks/ and scripts/, with options, that a text shows and that do not exist."""
    wrong = []
    for folder, name, given in re.findall(r"python (benchmarks|scripts)/(\w+)\.py((?:\\\n|[^`#\n])*)", text):
        path = ROOT / folder / f"{name}.py"
        known = set(re.findall(r'"(--[\w-]+)"', path.read_text(encoding="utf-8"))) if path.is_file() else set()
        wrong += [f"{name}.py {o}" for o in re.findall(r"--[\w-]+", given) if o not in known]
        wrong += [] if path.is_file() else [f"{name}.py is missing"]
    return wrong


def test_every_shown_program_exists_with_the_options_that_are_shown() -> None:
    programs = [*(ROOT / "benchmarks").glob("*.py"), *(ROOT / "scripts").glob("*.py")]
    shown = texts() + [(p.name, ast.get_docstring(ast.parse(p.read_text(encoding="utf-8"))) or "") for p in programs]
    assert not {name: wrong for name, text in shown if (wrong := unknown_options(text))}
    assert unknown_options("`python benchmarks/ldm.py`") and unknown_options("python benchmarks/speed.py --presetz x")
