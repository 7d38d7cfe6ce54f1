"""The command line: the same package for people who live in a shell."""

from __future__ import annotations

import gc
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
import yaml

from companion.errors import CompanionError, nearest

app = typer.Typer(
    help="Executable companion to arXiv:2606.02532.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False,
)  # fmt: skip
data = typer.Typer(help="Data sets: list, fetch, check, import.", no_args_is_help=True)
app.add_typer(data, name="data")

ProfileName = Annotated[str, typer.Argument(help="smoke, reference, paper, or the path of a YAML file")]
DatasetName = Annotated[str | None, typer.Option(help="registered name or path of a data set folder")]
Cores = Annotated[int, typer.Option(min=1, help="processor cores for all jobs together")]
SplitName = Annotated[str | None, typer.Option(help="number of a drawn split, or path of a split file (YAML)")]
Changes = Annotated[list[str] | None, typer.Option("--set", help="entry to change: evaluation.iou=0.3; repeatable")]


@app.command()
def run(
    profile: ProfileName, dataset: DatasetName = None, split: SplitName = None, changes: Changes = None,
    cores: Cores = 2,
    cluster: Annotated[Path | None, typer.Option(help="folder of a cluster's settings, e.g. cluster/slurm")] = None,
) -> None:  # fmt: skip
    """Run every notebook whose result is missing or stale, here or on a cluster."""
    from companion.workflow import run as running

    raise typer.Exit(running.run(_profile(profile, dataset, split, changes), cores, cluster))


@app.command()
def plan(
    profile: ProfileName, dataset: DatasetName = None, split: SplitName = None, changes: Changes = None,
    cores: Cores = 2,
) -> None:  # fmt: skip
    """Say what a run would do, what of it is done, and how long the rest takes by what it took before."""
    from companion.workflow import status

    status.plan(_profile(profile, dataset, split, changes), cores)


@app.command("status")
def show_status(
    profile: ProfileName = "smoke", dataset: DatasetName = None, split: SplitName = None, changes: Changes = None
) -> None:
    """List every stage as fresh, stale (and because of what) or missing; of the committed run where none is here."""
    from companion.workflow import status

    P = _profile(profile, dataset, split, changes)
    with status.committed(P):
        status.status(P)


@app.command()
def bundle(
    profile: ProfileName, dataset: DatasetName = None, split: SplitName = None, changes: Changes = None,
    out: Annotated[Path | None, typer.Option(help="folder to make, of all that is finished, with weights")] = None,
) -> None:  # fmt: skip
    """Pack what the book needs of a finished run into results/, or all that is finished, to go on elsewhere (--out)."""
    from companion.workflow import reference_run

    written = reference_run.bundle(_profile(profile, dataset, split, changes), out)
    print(f"{out or 'results/'}: {len(written)} files, {sum(path.stat().st_size for path in written) / 2**20:.1f} MiB")


@app.command()
def unbundle(folder: Annotated[Path, typer.Argument(help="what `companion bundle --out` made")]) -> None:
    """Check every file of a bundle and install in runs/ what is missing there; nothing is executed."""
    from companion.workflow import reference_run

    print(reference_run.unbundle(folder))


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="predictions: parquet, CSV or COCO results JSON")],
    truth: Annotated[Path, typer.Argument(help="COCO annotations JSON, data set or patches folder")],
    iou: Annotated[list[float] | None, typer.Option(min=0, max=1, help="IoU threshold; repeat for several")] = None,
    confidence: Annotated[list[float] | None, typer.Option(min=0, max=1, help="score threshold; repeatable")] = None,
    matching: Annotated[str, typer.Option(help="truth-greedy or score-greedy")] = "truth-greedy",
    same_class: Annotated[bool, typer.Option("--same-class", help="only its own class matches (paper: any)")] = False,
    skip: Annotated[bool, typer.Option("--skip-unpredicted", help="drop unpredicted patches and their misses")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print rows with the columns of scores.parquet")] = False,
) -> None:
    """Score anyone's predictions against anyone's truth."""
    from companion.evaluation.scores import evaluate_files
    from companion.provenance import plain

    unpredicted = "skip" if skip else "count"
    rows = evaluate_files(predictions, truth, iou or [0.5], confidence or [0.5], matching, same_class, unpredicted)
    if as_json:
        return print(json.dumps(plain(rows.to_dict("records")), indent=1))
    print(rows.dropna(axis=1, how="all").to_string(index=False, float_format="{:.3f}".format))


@app.command()
def predict(
    weights: Annotated[Path, typer.Argument(help="weights.safetensors of a detector stage; or loops_316L, phantom")],
    images: Annotated[list[Path], typer.Argument(help="micrographs of any size, or folders of them")],
    out: Annotated[Path, typer.Option(help="folder for defects.csv, defects.json, overlays, ROIs")] = Path("defects"),
    pixel_size_nm: Annotated[float | None, typer.Option(min=0, help="nm per px; without it sizes are in px")] = None,
    confidence: Annotated[float, typer.Option(min=0, max=1, help="lowest score that counts")] = 0.5,
    crop_bottom: Annotated[str, typer.Option(help="rows to leave out at the bottom, px; auto: data bars")] = "0",
) -> None:
    """Find the defects of micrographs with a trained detector: table, COCO JSON, overlays and ImageJ outlines."""
    from companion import layout
    from companion.config.sections import Device
    from companion.detection import tiling
    from companion.device import open_device
    from companion.plots import use_style

    use_style()
    settings = {"pixel_size_nm": pixel_size_nm, "confidence": confidence, "crop_bottom": _rows(crop_bottom)}
    shipped = layout.root() / "weights" / f"detector_{weights}.safetensors"
    weights = shipped if shipped.is_file() else weights
    table, written = tiling.predict_micrographs(weights, images, open_device(Device()), out, **settings)
    print(f"{len(table)} defects: {', '.join(str(path) for path in written)}")


@data.command("list")
def data_list() -> None:
    """Registered data sets: licence, source, and whether they are here."""
    import pandas as pd

    from companion import layout
    from companion.micrographs.registry import entries

    table = pd.DataFrame(entries()).T.rename_axis("name").reset_index()
    table["here"] = ["yes" if n == "phantom" or (layout.data_cache() / n).is_dir() else "no" for n in table["name"]]
    print(table[["name", "title", "licence", "source", "here"]].to_string(index=False))


@data.command("fetch")
def data_fetch(name: Annotated[str, typer.Argument(help="a name of `companion data list`")]) -> None:
    """Download a registered data set and convert it (from COMPANION_DATA_MIRROR where that is set)."""
    from companion.micrographs.registry import fetch

    print(fetch(name))


@data.command("check")
def data_check(path: Annotated[str, typer.Argument(help="folder (images/, annotations.json), or a name")]) -> None:
    """Validate a data set folder and print its card, or list everything that is wrong with it."""
    from companion.micrographs.check import check_dataset
    from companion.micrographs.registry import obtain

    P = _profile("reference", None, None, None)  # whose phantom is the one that is meant
    _, card, classes, notes = check_dataset(obtain(path, P.phantom, P.root_seed))
    print("\n".join(f"{name}: {text}" for name, text in card.items()))
    print(classes.to_string(index=False, float_format="{:.3f}".format))
    print("\n".join(f"look twice: {note}" for note in notes) or "no problem found")


@data.command("import")
def data_import(
    images: Annotated[Path, typer.Option(help="folder with the micrographs")],
    labels: Annotated[Path, typer.Option(help="annotation file, or folder with one file per micrograph")],
    out: Annotated[Path, typer.Option(help="data set folder to make")],
    format: Annotated[
        str, typer.Option(help="coco, labelmap, instances, yolo-seg, yolo-boxes, via, labelme, imagej or detectron2")
    ] = "coco",
    classes: Annotated[str | None, typer.Option(help="names in the order of their codes, with commas")] = None,
    pixel_size_nm: Annotated[
        str | None, typer.Option(help="nm per px; or 70kx=0.8805,300kx=0.4785 for texts in file names; or a CSV file")
    ] = None,
    merge: Annotated[str | None, typer.Option(help="COCO sub-labels of a class: 'a,b=<100> loop'; more with ;")] = None,
    crop_bottom: Annotated[str, typer.Option(help="rows to leave out at the bottom, px; auto: data bars")] = "0",
) -> None:
    """Convert micrographs and annotations to the one format, or say everything that is wrong with them."""
    from companion.micrographs.importers import import_dataset, parse_merge

    names = [name.strip() for name in classes.split(",")] if classes else None
    parts = parse_merge(merge) if merge else None
    dataset = import_dataset(format, images, labels, names, pixel_size_nm, out, parts, crop_bottom=_rows(crop_bottom))
    for note in dataset.card["notes"]:
        print(f"note: {note}")
    counts = Counter(dataset.classes[m.codes[a["category_id"]] - 1] for m in dataset.micrographs for a in m.annotations)
    empty = sum(not micrograph.annotations for micrograph in dataset.micrographs)
    shown = ", ".join(f"{name} {counts[name]}" for name in dataset.classes)
    print(f"{out}: {len(dataset.micrographs)} micrographs ({empty} empty), {counts.total()} instances: {shown}")


def _rows(crop_bottom: str) -> int | str:
    if crop_bottom != "auto" and not crop_bottom.isdecimal():
        raise CompanionError(f"--crop-bottom {crop_bottom}: should be a number of rows, or auto")
    return crop_bottom if crop_bottom == "auto" else int(crop_bottom)


def _profile(name: str, dataset: str | None, split: str | None, changes: list[str] | None):
    """The profile with what the command line changes; a split's path is made absolute, since jobs run elsewhere."""
    from companion.config import load_profile

    pairs = [(text, *text.partition("=")) for text in changes or []]
    if wrong := [text for text, _, equals, _ in pairs if not equals]:
        raise CompanionError(f"--set {wrong[0]}: should be an entry of the profile and its value, evaluation.iou=0.3")
    if dataset and not Path(dataset).is_dir():
        from companion.micrographs.registry import entries

        if dataset not in (known := entries()):
            raise CompanionError(f"--dataset {dataset}: {nearest(dataset, known)} (or give the path of a folder)")
    if split is not None and not split.isdecimal() and not Path(split).is_file():
        raise CompanionError(f"--split {split}: neither a number nor an existing split file (YAML)")
    splits = [int(split) if split.isdecimal() else str(Path(split).resolve())] if split else None
    named = str(Path(name).resolve()) if name.endswith((".yaml", ".yml")) else name
    given = {key.strip(): "null" if (v := yaml.safe_load(value)) is None else v for _, key, _, value in pairs}
    return load_profile(named, dataset=dataset, splits=splits, changes=given)


def main() -> None:
    """Entry point: an unusable input is one message on stderr and exit code 2."""
    gc.set_threshold(100_000)  # torch makes a million objects that stay: to look through them often takes a second,
    try:
        app()
    except (CompanionError, OSError, yaml.YAMLError) as error:  # of a folder that cannot be made, of --set
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    finally:
        gc.freeze()  # and once more at the end another one


if __name__ == "__main__":
    main()
