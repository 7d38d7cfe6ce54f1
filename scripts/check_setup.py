"""Whether this computer is ready for the course: ``python check_setup.py``. Notebooks call `start` in their first cell.

Written so that an old Python can read it: it has to say that it is too old.
"""

import ast
import os
import re
import sys
import time
from contextlib import suppress
from importlib import metadata, util
from pathlib import Path

HERE = Path(__file__).resolve().parent
PACKAGES = ("numpy", "pandas", "torch", "torchvision", "diffusers")
MEMORY_GIB = 2.0  # the largest page takes 1.4
LONGEST_PATH = 120  # characters of this folder; Windows stops at 260, and files lie up to 110 below it
UNFILLED = re.compile(r"=\s*\(?\.\.\.\)?\s*(#|$)", re.MULTILINE)
WINDOWS_PATH = re.compile(r"(?<![rR])(['\"])[A-Za-z]:\\")


def problem(folder, python=sys.version_info[:2], windows=os.name == "nt"):
    """A sentence that says why the course cannot run from `folder`, and what to do; empty: it can."""
    missing = [name for name in PACKAGES if util.find_spec(name) is None]
    return next((said for wrong, said in (
        (not (3, 11) <= python <= (3, 13),
         f"This is Python {python[0]}.{python[1]}, and the course needs 3.11 to 3.13: install one of these and make "
         "the environment anew with it."),
        (windows and (len(str(folder)) > LONGEST_PATH or ".zip" in str(folder)),
         "This folder lies too deep for Windows, or inside a zip that is only looked into: unpack the zip to a short "
         "path such as C:\\course, and open the notebooks there."),
        (not all((Path(folder) / part).is_dir() for part in ("runs", "profiles", "src")),
         "The folders runs/, profiles/ or src/ are missing beside check_setup.py: unpack the whole zip again, and work "
         "in the folder that appears."),
        (missing, f"The Python that runs here ({sys.executable}) lacks {', '.join(missing)}: activate the course's "
                  "environment, or run `python -m pip install -r requirements.txt` in it."),
    ) if wrong), "")  # fmt: skip


def use_this_folder():
    """Let the package and the data of this folder be used, before any other on this computer; stop where it cannot."""
    found = problem(HERE)
    if found:
        raise RuntimeError(found)
    sys.path.insert(0, str(HERE / "src"))
    for name in ("RUNS", "DATA", "DATA_MIRROR"):
        os.environ.pop("COMPANION_" + name, None)
    os.environ["COMPANION_ROOT"] = str(HERE)


def start():
    """Make a notebook ready: the course's own data, and one sentence for what goes wrong most often."""
    from IPython import get_ipython

    shell = get_ipython()
    shell.set_custom_exc((Exception,), _explain)
    shell.input_transformers_cleanup[:] = [_hint]
    use_this_folder()


def typed(name):
    """The right side that was last assigned to `name`, as it was typed: a check tries it on numbers of its own."""
    from IPython import get_ipython

    for cell in reversed(get_ipython().user_ns["In"][:-1]):
        with suppress(SyntaxError):  # of a cell that never ran
            for node in ast.walk(ast.parse(cell)):
                if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
                    return ast.get_source_segment(cell, node.value)
    raise NameError(name=name)


def sentence(error, cell):
    """What to do about an error of a cell with this source, in one sentence; None where Python says it better."""
    if isinstance(error, NameError):
        return (
            f"`{error.name}` is not there yet: run the cells above this one first, from the top (in "
            "JupyterLab: Run, Run All Above Selected Cell); if you have, look how the name is spelt."
        )
    if UNFILLED.search(cell):
        return "This cell still holds `...`: write what belongs there, then run it again."
    if isinstance(error, TypeError) and "ellipsis" in str(error).lower():
        return "A cell above this one still holds `...`: write what belongs there, run it and its check, then this one."
    ours = type(error).__name__ == "CompanionError" or (isinstance(error, RuntimeError) and "start()" in cell)
    return str(error) if ours or (isinstance(error, AssertionError) and cell.startswith("# Check")) else None


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
    """Say what is missing, or what is here and how fast a short run with a trained detector is."""
    try:
        use_this_folder()
    except RuntimeError as error:
        sys.exit(str(error))
    import psutil

    free = psutil.virtual_memory().available / 2**30
    if free < MEMORY_GIB:
        sys.exit(f"{free:.1f} GiB of memory are free and {MEMORY_GIB:.0f} are needed: close other programs.")
    versions = ["Python " + sys.version.split()[0]] + [name + " " + metadata.version(name) for name in PACKAGES]
    print(f"{', '.join(versions)}\n{os.cpu_count()} cores, {free:.1f} GiB of memory are free. A short run:")
    began = time.time()
    from companion.config import load_profile
    from companion.detection.predict import predict
    from companion.detection.train import load_detector
    from companion.device import open_device
    from companion.layout import Layout
    from companion.micrographs.patches import load_patches

    P = load_profile("smoke")
    runs, device, split = Layout(P), open_device(P.device), P.split_names[0]
    weights = runs.detector(split, P.sizes[0], "EXP", P.seeds[0]) / "weights.safetensors"
    images, detector = load_patches(runs.patches(split, "test")).images[:32], load_detector(weights, device)[0]
    defects = (predict(detector, images, device)["score"] > 0.5).sum()
    print(f"{defects} defects in {len(images)} patches after {time.time() - began:.0f} s")
    print("Ready. Start with `jupyter lab notebooks`.")


if __name__ == "__main__":
    main()
