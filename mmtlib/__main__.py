"""One command line: `mmt download | features | train | predict | report | runs` (or `python -m mmtlib ...`).

The commands work on params.yaml, or on the parameter file that is named, as the stages of `dvc repro` do, but without
notebooks. Other packages add commands through the entry-point group "mmtlib.commands", each a function of that file.
"""

import errno
import sys
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import resolve_name
from typing import Annotated

import typer

options = dict(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
app = typer.Typer(help=__doc__.splitlines()[0], no_args_is_help=True, **options)
_REMEDIES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), "free space there, and run this again: what is finished is kept"),
    errno.EROFS: "make that folder writable, or work in another one",
    errno.EACCES: "make it readable and writable for you, or work in another folder",
}
File = Annotated[str, typer.Option("--params", help="parameter file: params.yaml or one of params/")]
MODEL = str(Path(__file__).parents[1] / "weights/mmt_t.safetensors")  # the MMT that comes with the code
Workers = Annotated[str, typer.Option(help="processes (0: one for each core), or the address of a Dask scheduler")]


def study(file: str):
    """The parameters of a file and the folders of its study."""
    from mmtlib.config import ROOT, load
    from mmtlib.folders import Folders

    params = load(file)
    return params, Folders(ROOT, params.study)


def number(workers: str) -> int | str:
    return int(workers) if workers.isdigit() else workers


@app.command()
def download(params: File = "params.yaml") -> None:
    """Bring a data set's manifest, and a generated set's clips, to the study's folder."""
    from mmtlib.data.download import download

    values, folders = study(params)
    manifest = download(folders.clips, **values.download.model_dump())
    print(f"{len(manifest)} clips: {folders.clips}")


@app.command()
def features(params: File = "params.yaml", workers: Workers | None = None) -> None:
    """Decode the clips into log-mel spectrograms and frames."""
    from mmtlib.data.features import extract_features

    values, folders = study(params)
    settings = values.features.model_dump() | ({} if workers is None else {"workers": number(workers)})
    coverage = extract_features(folders.clips / "manifest.csv", folders.features, **settings)
    print(f"{sum(split['used'] for split in coverage.values())} clips: {folders.features}")


@app.command()
def train(params: File = "params.yaml", workers: Workers = "0") -> None:
    """Train all runs of a study, side by side unless each has several processes (training.nproc)."""
    from mmtlib.training.study import train_all

    train_all(*study(params), number(workers))


@app.command()
def predict(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="files of audio, video or both")],
    model: Annotated[str, typer.Option(help="weights: a file, a folder or a name on the hub")] = MODEL,
    top: Annotated[int, typer.Option(min=1, help="classes shown")] = 5,
    windows: Annotated[bool, typer.Option("--windows", help="what is said of each window, too")] = False,
    json: Annotated[bool, typer.Option("--json", help="a line of JSON for each file")] = False,
) -> None:
    """Name the classes of any media file."""
    from mmtlib.predict import as_json, as_text, predict_file, ready

    weights, failed = ready(model), False
    for file in files:
        try:
            print((as_json if json else as_text)(predict_file(weights, file, top=top), windows), flush=True)
        except ValueError as error:  # the others may be good
            print(error, file=sys.stderr)
            failed = True
    raise typer.Exit(failed)


@app.command()
def runs(params: File = "params.yaml") -> None:
    """List the runs that are kept, and of one that is not what sets it apart."""
    from mmtlib.training.study import list_runs

    raise typer.Exit(list_runs(*study(params)))


def add(name: str, target: str) -> None:
    """Make `target` (module:function) of another package one of our commands; it is imported when it is called."""

    def command(params: File = "params.yaml") -> None:
        resolve_name(target)(params)

    app.command(name, help=f"The command {name} of {target.split('.')[0]}.")(command)


for entry in entry_points(group="mmtlib.commands"):
    add(entry.name, entry.value)


def main() -> None:
    """The command `mmt`: a failure that has words for the user is said in one sentence."""
    try:
        app()
    except (ValueError, OSError, RuntimeError) as error:
        remedy = _REMEDIES.get(getattr(error, "errno", None))
        where = getattr(error, "filename", None) or "a temporary file or /dev/shm"
        print(f"{where}: {error.strerror}; {remedy}." if remedy else error, file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
