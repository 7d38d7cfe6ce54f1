"""Every command of `companion` and of benchmarks that is shown somewhere exists, with the options that are shown."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

import pytest
import torch
import torchvision.models
import typer.main
from typer.testing import CliRunner

from companion import cli
from companion.diffusion.adversarial import VggFeatures
from companion.errors import CompanionError
from companion.provenance import write_json

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "book").glob("*.md"))]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
COMMAND = typer.main.get_command(cli.app)


def texts() -> list[tuple[str, str]]:
    found = [(page.name, page.read_text(encoding="utf-8")) for page in PAGES]
    for path in NOTEBOOKS:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        found += [(path.name, "".join(cell["source"])) for cell in cells if cell["cell_type"] == "markdown"]
    return found


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


def test_every_shown_command_exists() -> None:
    shown = [(name, command) for name, text in texts() for command in shown_commands(text)]
    assert len(shown) > 15, "the search for commands finds too few"
    wrong = [f"{name}: `{command}`: {words}" for name, command in shown if (words := unknown(command))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("shown", ["companion plam smoke", "companion data chek x", "companion run smoke --datset x"])
def test_a_command_that_does_not_exist_is_seen(shown: str) -> None:
    assert unknown(shown)


def test_every_command_is_documented() -> None:
    documented = {tuple(c.split()[1:3]) for _, text in texts() for c in shown_commands(text)}
    for name, command in COMMAND.commands.items():
        for sub in getattr(command, "commands", [None]):
            assert any(words[0] == name and sub in (None, *words[1:]) for words in documented), f"{name} {sub or ''}"


# --- benchmarks ---------------------------------------------------------------------------------------------

BENCHMARKS = {path.stem: ast.parse(path.read_text(encoding="utf-8")) for path in (ROOT / "benchmarks").glob("*.py")}


def options_of(benchmark: str) -> set[str]:
    """Options of a benchmark's argument parser."""
    calls = [node for node in ast.walk(BENCHMARKS[benchmark]) if isinstance(node, ast.Call)]
    added = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"]
    return {argument.value for call in added for argument in call.args if isinstance(argument, ast.Constant)}


def benchmark_commands(text: str) -> list[tuple[str, list[str]]]:
    """Names of the benchmarks that a text runs, inline or in a block, and the options that it gives them."""
    shown = re.findall(r"python benchmarks/(\w+)\.py((?:\\\n|[^`#\n])*)", text)
    return [(name, re.findall(r"--[\w-]+", given)) for name, given in shown]


def unknown_options(text: str) -> list[str]:
    return [
        f"{name}.py {option}"
        for name, given in benchmark_commands(text)
        for option in (given if name in BENCHMARKS else ["is missing"])
        if name not in BENCHMARKS or option not in options_of(name)
    ]


def test_every_shown_benchmark_has_the_options_that_are_shown() -> None:
    shown = texts() + [(f"{name}.py", ast.get_docstring(tree) or "") for name, tree in BENCHMARKS.items()]
    assert sum(len(given) for _, text in shown for _, given in benchmark_commands(text)) > 60, "finds too few"
    wrong = {page: unknown_options(text) for page, text in shown}
    assert not any(wrong.values()), wrong


@pytest.mark.parametrize("name", sorted(BENCHMARKS))
def test_every_option_that_a_benchmark_speaks_of_is_its_own(name: str) -> None:
    said = re.findall(r"(?<![\w-])--[a-z][\w-]*", ast.get_docstring(BENCHMARKS[name]) or "")
    assert set(said) <= options_of(name) | {"--help"}


@pytest.mark.parametrize("shown", [
    "`python benchmarks/ldm.py --presets paper`", "python benchmarks/schedule.py --seeds 1 \\\n    --pases 3",
    "python benchmarks/speed.py",
])  # fmt: skip
def test_an_option_that_a_benchmark_does_not_have_is_seen(shown: str) -> None:
    assert len(unknown_options(shown)) == 1


def test_the_shown_line_makes_weights_that_the_features_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "book" / "run.md").read_text(encoding="utf-8").replace("\\\n", "")
    (line,) = re.findall(r'^python -c "(.*vgg16.*)"$', page, re.MULTILINE)
    (named,) = re.findall(r"feature_weights: ([\w/.]+)", page)
    made, asked = torchvision.models.vgg16, []

    def without_download(weights: str | None) -> torch.nn.Module:
        asked.append(weights)
        return made(weights=None)

    monkeypatch.setattr(torchvision.models, "vgg16", without_download)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    exec(line, {})
    assert asked == [torchvision.models.VGG16_Weights.IMAGENET1K_V1.name]
    VggFeatures(tmp_path / named)


def test_data_check_says_what_a_folder_holds_or_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(CompanionError, match=r"annotations\.json"):
        CliRunner().invoke(cli.app, ["data", "check", str(tmp_path)], catch_exceptions=False)
    image = {"id": 1, "file_name": "a.png", "width": 64, "height": 64, "pixel_size_nm": 0.5}
    write_json(tmp_path / "annotations.json", {
        "info": {}, "images": [image], "annotations": [], "categories": [{"id": 1, "name": "loop"}],
    })  # fmt: skip
    (tmp_path / "images").mkdir()
    with pytest.raises(CompanionError, match=r"a\.png"):
        CliRunner().invoke(cli.app, ["data", "check", str(tmp_path)], catch_exceptions=False)
    from PIL import Image

    Image.new("L", (64, 64)).save(tmp_path / "images" / "a.png")
    shown = CliRunner().invoke(cli.app, ["data", "check", str(tmp_path)], catch_exceptions=False)
    assert "micrographs: 1, of which 1 without a labelled defect" in shown.stdout
    assert "look twice: class 'loop' has no instance" in shown.stdout
    pictures = tmp_path / "pictures"
    arguments = ["data", "check", str(tmp_path), "--pictures", str(pictures)]
    CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert (pictures / "figures" / "micrographs-01.png").is_file()
