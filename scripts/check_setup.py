"""Whether this computer is ready for the course: ``python check_setup.py``. Notebooks call `start` in their first cell.

Written so that an old Python can read it: it has to say that it is too old.
"""

import ast
import base64
import json
import os
import re
import sys
import time
from contextlib import suppress
from importlib import util
from pathlib import Path, PurePath

HERE = Path(__file__).resolve().parent
PYTHON = ((3, 11), (3, 13))
PACKAGES = ("companion", "numpy", "pandas", "torch", "torchvision", "diffusers", "jupyterquiz")
MEMORY_GIB = 2.0  # the largest page takes 1.4
LONGEST_PATH = 120  # characters of this folder; Windows stops at 260, and files lie up to 110 below it
UNFILLED = re.compile(r"=\s*\(?\.\.\.\)?\s*(#|$)", re.MULTILINE)
WINDOWS_PATH = re.compile(r"(?<![rR])(['\"])[A-Za-z]:\\")


def problems(folder, python=sys.version_info[:2], windows=os.name == "nt"):
    """One sentence for each reason why the course cannot run from `folder`; an empty list: it can."""
    found = []
    if not PYTHON[0] <= tuple(python[:2]) <= PYTHON[1]:
        found.append(
            f"This is Python {python[0]}.{python[1]}, and the course needs 3.11 to 3.13: install one of these and "
            "make the environment anew with it."
        )
    if windows and (len(str(PurePath(folder))) > LONGEST_PATH or ".zip" in str(folder).lower()):
        found.append(
            "This folder lies too deep for Windows, or inside a zip that is only looked into: unpack the zip to a "
            "short path such as C:\\course, and open the notebooks there."
        )
    if not (Path(folder) / "runs").is_dir() or not (Path(folder) / "profiles").is_dir():
        found.append(
            "The folders runs/ and profiles/ are missing beside check_setup.py: unpack the whole zip again, and work "
            "in the folder that appears."
        )
    missing = [name for name in PACKAGES if util.find_spec(name) is None]
    if missing and not found:  # else they would be installed into the wrong place
        named = ", ".join(missing) + (" is" if len(missing) == 1 else " are")
        found.append(
            f"{named} not installed in the Python that runs here ({sys.executable}): with this one, run "
            "`python -m pip install -r requirements.txt`."
        )
    return found


def start():
    """Make a notebook ready: the course's own data, and one sentence for what goes wrong most often."""
    from IPython import get_ipython

    shell = get_ipython()
    shell.set_custom_exc((Exception,), _explain)
    shell.input_transformers_cleanup[:] = [_hint]
    for name in ("RUNS", "DATA", "DATA_MIRROR"):  # of other work on this computer
        os.environ.pop("COMPANION_" + name, None)
    os.environ["COMPANION_ROOT"] = str(HERE)
    found = problems(HERE)
    if found:
        raise RuntimeError(found[0])


def ask(page):
    """Show the question of a page, for instance "07"; the answers are judged in the browser, without a network."""
    from jupyterquiz import display_quiz

    text = (HERE / "questions" / f"{page}.txt").read_text(encoding="ascii")
    display_quiz(json.loads(base64.b64decode(text)))


def typed(name):
    """The right side that was last assigned to `name`, as it was typed: a check tries it on numbers of its own."""
    from IPython import get_ipython

    for cell in reversed(get_ipython().user_ns["In"][:-1]):
        with suppress(SyntaxError):  # of a cell that never ran
            for node in ast.walk(ast.parse(cell)):
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
                    return ast.get_source_segment(cell, node.value)
    raise NameError(f"name '{name}' is not defined")


def sentence(error, cell):
    """What to do about an error of a cell with this source, in one sentence; None where Python says it better."""
    if isinstance(error, NameError):
        name = str(error).split("'")[1::2]
        return (
            f"`{name[0] if name else 'a name'}` is not there yet: run the cells above this one first, from the top (in "
            "JupyterLab: Run, Run All Above Selected Cell); if you have, look how the name is spelt."
        )
    if UNFILLED.search(cell):
        return "This cell still holds `...`: write what belongs there, then run it again."
    if isinstance(error, TypeError) and "ellipsis" in str(error).lower():
        return "A cell above this one still holds `...`: write what belongs there, run it and its check, then this one."
    if isinstance(error, AssertionError) and cell.startswith("# Check"):
        return str(error)
    if type(error).__name__ == "CompanionError" or (isinstance(error, RuntimeError) and "start()" in cell):
        return str(error)
    return None


def _explain(shell, kind, error, traceback, tb_offset=None):
    said = sentence(error, shell.user_ns["In"][-1])
    if said is None:
        shell.showtraceback((kind, error, traceback), tb_offset=tb_offset)
    else:
        shell._showtraceback(kind, said, [said])  # IPython has no public way to show an error without its traceback


def _hint(lines):
    if WINDOWS_PATH.search("".join(lines)):
        print("Write a Windows path with forward slashes, 'C:/my/folder', or with an r before it: r'C:\\my\\folder'.")
    return lines


def main():
    """Say what is here, what is missing and how fast a short run is; exit code 1 where something is missing."""
    found = problems(HERE)
    if not found:
        import psutil

        free = psutil.virtual_memory().available / 2**30
        if free < MEMORY_GIB:
            found.append(f"{free:.1f} GiB of memory are free and {MEMORY_GIB:.0f} are needed: close other programs.")
    if found:
        print("\n".join(found))
        return 1
    from importlib import metadata

    print(f"Python {sys.version.split()[0]}, " + ", ".join(n + " " + metadata.version(n) for n in PACKAGES))
    print(f"{free:.1f} GiB of memory are free, {os.cpu_count()} cores")
    os.environ["COMPANION_ROOT"] = str(HERE)
    print("A short run, with a trained detector:")
    began = time.time()
    from companion.config import load_profile
    from companion.detection.predict import predict
    from companion.detection.train import load_detector
    from companion.device import open_device
    from companion.layout import Layout
    from companion.micrographs.patches import load_patches

    P = load_profile("smoke")
    runs, device = Layout(P), open_device(P.device)
    split = P.split_names[0]
    weights = runs.detector(split, P.sizes[0], "EXP", P.seeds[0]) / "weights.safetensors"
    test, detector = load_patches(runs.patches(split, "test")), load_detector(weights, device)[0]
    loaded = time.time()
    images = test.images[:32]
    defects = (predict(detector, images, device)["score"] > 0.5).sum()
    took = time.time() - loaded
    print(f"{loaded - began:.0f} s to begin, {defects} defects in {len(images)} patches after {took:.1f} s more")
    print("Ready. Start with `jupyter lab notebooks`.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
