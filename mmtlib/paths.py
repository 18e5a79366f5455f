"""Where things lie: the repository root, and the workspace a stage reads from and writes to."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The repository root of this (editable) install."""


def workspace(path: str | Path = ".") -> Path:
    """Return the workspace folder as an absolute path; a relative one is taken from the repository root.

    JupyterLab and nbval run a notebook in `notebooks/`, DVC in the root: both must find the same folder.
    """
    return (ROOT / Path(path).expanduser()).resolve()
