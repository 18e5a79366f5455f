"""Stage `download`: bring a data set's manifest to one folder, by the name of its source."""

import json
from pathlib import Path

import pandas as pd

from freedoom_sounds import generate as freedoom
from mmtlib import files
from mmtlib.data.manifest import write_manifest
from mmtlib.data.sources.listing import SourceError
from mmtlib.data.sources.survey import SOURCES, survey


def download(
    out: Path,
    *,
    source: str,
    seed: int | None = None,
    clips_per_class: dict[str, int] | None = None,
    annotations: str | None = None,
    media: str | None = None,
    class_list: str | None = None,
    val_share: float | int = 0.05,
    workers: int = 0,
) -> pd.DataFrame:
    """Write manifest.csv and dataset.json of a data set to `out`; return the manifest.

    freedoom-sounds is generated: seed and clips_per_class (split -> clips of each class) say what, the clips go
    to `out` and those that an interrupted call left are kept. Of a real set (sources.survey) the files stay in
    `media`, and coverage.csv and problems.csv say which of them cannot be used; what was learned of each file is
    kept in the folder `probe` beside `out`. workers: processes (0: one for each core). Raises SourceError, and
    what the source itself raises.
    """
    if source == freedoom.NAME:
        return freedoom.generate(out, seed=seed, clips_per_class=clips_per_class, workers=workers)
    if source not in SOURCES:
        known = ", ".join([freedoom.NAME, *SOURCES])
        raise SourceError(f"download.source: no data set is called {source!r}; use {known}.")
    if media is None:
        raise SourceError(f"download.media: {source} is not downloaded; give the folder with its files.")
    found = survey(
        source,
        annotations,
        media,
        class_list=class_list,
        val_share=val_share,
        workers=workers,
        cache=Path(out).parent / "probe",
    )
    out = Path(out)
    # Not sorted by key: the order of the heads counts. First of all: write_manifest looks up where paths start.
    files.write_text(out / "dataset.json", json.dumps(found.dataset, indent=1) + "\n")
    for name in ("coverage", "problems"):
        files.write_text(out / f"{name}.csv", getattr(found, name).to_csv(index=False, lineterminator="\n"))
    write_manifest(found.manifest, out / "manifest.csv")
    return found.manifest
