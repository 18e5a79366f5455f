"""Stage `download`: bring a data set's clips and manifest to one folder, by the name of its source."""

from pathlib import Path

import pandas as pd

from mmtlib.data import freedoom

SOURCES = {freedoom.NAME: freedoom.generate}
"""Name of a data set -> function(out, *, seed, clips_per_class, workers) that makes it, to its manifest."""


class SourceError(ValueError):
    """No data set has that name; the text lists the ones there are."""


def download(out: Path, *, source: str, seed: int, clips_per_class: dict[str, int], workers: int = 0) -> pd.DataFrame:
    """Write manifest.csv, dataset.json and the clips of a data set to `out`; return the manifest.

    clips_per_class: split -> clips of each class. workers: processes (0: one for each core). Clips that an
    interrupted call left are kept. Raises SourceError, and what the source itself raises.
    """
    if source not in SOURCES:
        raise SourceError(f"download.source: no data set is called {source!r}; use {', '.join(SOURCES)}.")
    return SOURCES[source](out, seed=seed, clips_per_class=clips_per_class, workers=workers)
