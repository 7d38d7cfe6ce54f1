"""Every `companion` command that README, book and notebooks show exists, with the options that they show."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import typer.main
from typer.testing import CliRunner

from companion import cli
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
