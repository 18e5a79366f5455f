"""Where the files of a study lie. Nothing slow is imported here: the runner of the stages waits for it each time."""

from dataclasses import dataclass
from pathlib import Path

from mmtlib.config import STAGES


@dataclass(frozen=True)
class Folders:
    """The folders of a study below `root`, the repository: another study has others, so none overwrites another's."""

    root: Path
    study: str

    @property
    def clips(self) -> Path:
        """manifest.csv, dataset.json and, of a generated set, the clips."""
        return self.root / "data" / self.study / "clips"

    @property
    def features(self) -> Path:
        return self.root / "data" / self.study / "features"

    @property
    def report(self) -> Path:
        """README.md, tables/, figures/ and notebooks/, the executed copies."""
        return self.root / "reports" / self.study

    @property
    def runs(self) -> Path:
        """Checkpoints and finished runs by their keys, of all studies."""
        return self.root / "runs"

    def weights(self, name: str, seed: int, fold: int | None = None) -> Path:
        """The weights of a run; beside them a .md, their card, a .csv, the learning curve, and a .json, the parts."""
        return self.root / "models" / self.study / stage_of(name) / f"{_trial(name, seed, fold)}.safetensors"

    def predictions(self, name: str, seed: int, fold: int | None = None) -> Path:
        return self.root / "predictions" / self.study / stage_of(name) / f"{_trial(name, seed, fold)}.parquet"


def _trial(name: str, seed: int, fold: int | None) -> str:
    return f"{name}-seed{seed}" + ("" if fold is None else f"-fold{fold}")


def stage_of(name: str) -> str:
    """The folder of a run: its own stage, or a folder of the stage `ablations` for a row of that table."""
    return name if name in STAGES else f"ablations/{name}"
