"""Stage `download`: bring a data set's manifest to one folder, by the name of its source.

Sources are those of survey.SOURCES, and those that other packages add through the entry-point group "mmtlib.sources":
each a function(out, *, workers, **settings) that writes manifest.csv, dataset.json and clips to the folder `out` and
returns the manifest.
"""

import json
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pandas as pd

from mmtlib import files
from mmtlib.data.manifest import write_manifest
from mmtlib.data.sources.listing import SourceError
from mmtlib.data.sources.survey import SOURCES, survey

_OF_FILES = ("annotations", "val_share", "follow_links")  # settings of sets whose files are there, in `media`


def download(
    out: Path, *, source: str, media: str | None = None, workers: int | str = 0, **settings: Any
) -> pd.DataFrame:
    """Write manifest.csv and dataset.json of a data set to `out`; return the manifest.

    Of a real set (sources.survey) the files stay in `media`, and coverage.csv and problems.csv say which of them
    cannot be used; what was learned of each file is kept in the folder `probe` beside `out`. `settings` are those
    of `survey`, or of a source from another package; None is not passed on. workers: as cluster.connect takes them.
    Raises SourceError, and what the source itself raises.
    """
    out, others = Path(out), {entry.name: entry for entry in entry_points(group="mmtlib.sources")}
    settings = {name: value for name, value in settings.items() if value is not None}
    own = {name: value for name, value in settings.items() if name not in _OF_FILES}
    if source in others:
        if isinstance(workers, str):
            raise SourceError(f"download.workers is {workers}, but {source} is made on this machine; give a number.")
        return others[source].load()(out, workers=workers, **own)
    if source not in SOURCES:
        known = ", ".join([*others, *SOURCES])
        raise SourceError(f"download.source: no data set is called {source!r}; use {known}.")
    own.pop("class_list", None)
    if media is None or own:
        wrong = ", ".join(own) or "media"
        raise SourceError(f"download.{wrong}: {source} is files that are there; give their folder as media, no more.")
    annotations = settings.pop("annotations", None)
    found = survey(source, annotations, media, **settings, workers=workers, cache=out.parent / "probe")
    # Not sorted by key: the order of the heads counts. First of all: write_manifest looks up where paths start.
    files.write_text(out / "dataset.json", json.dumps(found.dataset, indent=1) + "\n")
    for name in ("coverage", "problems"):
        files.write_text(out / f"{name}.csv", getattr(found, name).to_csv(index=False, lineterminator="\n"))
    write_manifest(found.manifest, out / "manifest.csv")
    return found.manifest
