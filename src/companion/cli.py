"""The command line: the same package for people who live in a shell."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from companion.errors import CompanionError

app = typer.Typer(
    help="Executable companion to arXiv:2606.02532.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False,
)  # fmt: skip
data = typer.Typer(help="Data sets: list, fetch, check, import.", no_args_is_help=True)
app.add_typer(data, name="data")

ProfileName = Annotated[str, typer.Argument(help="smoke, mini, course, paper, or the path of a YAML file")]
DatasetName = Annotated[str | None, typer.Option(help="registered name or path of a data set folder")]
SplitName = Annotated[str | None, typer.Option(help="number of a drawn split, or path of a split file (YAML)")]


@app.command()
def run(
    profile: ProfileName,
    dataset: DatasetName = None,
    split: SplitName = None,
    cores: Annotated[int, typer.Option(min=1, help="processor cores for all jobs together")] = 2,
) -> None:
    """Run every notebook whose result is missing or stale."""
    from companion import orchestrate

    raise typer.Exit(orchestrate.run(*_profile(profile, dataset, split), cores=cores, console=_console()))


@app.command()
def status(profile: ProfileName = "smoke", dataset: DatasetName = None, split: SplitName = None) -> None:
    """List every stage as fresh, stale (and because of what) or missing."""
    from companion import orchestrate

    orchestrate.status(_profile(profile, dataset, split)[0], _console())


@app.command()
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="predictions.parquet or COCO results JSON")],
    truth: Annotated[Path, typer.Argument(help="patches folder or COCO annotations JSON")],
    iou: Annotated[list[float] | None, typer.Option(min=0, max=1, help="IoU threshold; repeat for several")] = None,
    confidence: Annotated[list[float] | None, typer.Option(min=0, max=1, help="score threshold; repeatable")] = None,
    matching: Annotated[str, typer.Option(help="truth-greedy, score-greedy or optimal")] = "truth-greedy",
    as_json: Annotated[bool, typer.Option("--json", help="print rows with the columns of scores.parquet")] = False,
) -> None:
    """Score anyone's predictions against anyone's truth."""
    from companion.evaluation.scores import evaluate_files

    rows = evaluate_files(predictions, truth, iou or [0.5], confidence or [0.5], matching)
    if as_json:
        from companion.provenance import plain

        print(json.dumps(plain(rows.to_dict("records")), indent=1))
    else:
        _print_table(rows.dropna(axis=1, how="all"))


def _profile(name: str, dataset: str | None, split: str | None):
    from companion.execute import parse_split
    from companion.params import load_profile

    if name.endswith((".yaml", ".yml")):
        name = str(Path(name).resolve())
    overrides = {"dataset": str(Path(dataset).resolve()) if Path(dataset).is_dir() else dataset} if dataset else {}
    if split is not None:
        overrides["splits"] = [parse_split(split)]
    return load_profile(name, **overrides), name


def _console():
    from rich.console import Console

    # Piped output keeps whole lines: there is no window to fit.
    return Console() if sys.stdout.isatty() else Console(width=240)


def _print_table(rows) -> None:
    from rich.table import Table

    table = Table()
    for column in rows.columns:
        table.add_column(str(column), justify="right")
    for row in rows.itertuples(index=False):
        table.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row))
    _console().print(table)


def main() -> None:
    """Entry point: an unusable input is one message on stderr and exit code 2."""
    try:
        app()
    except CompanionError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
