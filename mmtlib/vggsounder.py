"""VGGSounder, the re-labelled test set of VGGSound: several labels a clip, each heard (A), seen (V) or both (AV).

    python -m mmtlib.vggsounder PREDICTIONS.parquet [--labels CSV]

Scores as in the `vggsounder` package's benchmark, whose labels are used where no file is given: pip install it, or
this project with its extra `vggsounder`.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd

from mmtlib.evaluation.predictions import read_predictions
from mmtlib.files import write_text

LABEL_SETS = {"A": ("A", "AV"), "V": ("V", "AV"), "AV": ("AV",), "all": ("A", "V", "AV")}
"""The labels that count: those heard, those seen, those both heard and seen, all."""

KS = (1, 3, 5)


class LabelsError(ValueError):
    """Labels or predictions that cannot be scored; the text is one sentence that names file, field and remedy."""


def read_labels(path: Path | None = None) -> pd.DataFrame:
    """Read VGGSounder's labels, one row a clip and label: video_id, label, modality ("A", "V" or "AV").

    Without `path` those of the installed package, clips with background music included, as in its benchmark.
    Raises LabelsError.
    """
    if path is None:
        package = find_spec("vggsounder")
        if package is None:
            raise LabelsError("The package vggsounder is not installed; pip install it, or give its CSV by --labels.")
        path = Path(package.origin).parent / "data" / "vggsounder+background-music.csv"
    columns = ["video_id", "label", "modality"]
    try:
        table = pd.read_csv(path, usecols=columns, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise LabelsError(f"{path}: no CSV with columns {','.join(columns)} ({reason}); give VGGSounder's.") from error
    if unknown := sorted(set(table["modality"]) - set(LABEL_SETS["all"])):
        raise LabelsError(f"{path}: modality is {unknown[0]!r}; use A, V or AV.")
    return table


def score(predictions: pd.DataFrame, labels: pd.DataFrame) -> pd.DataFrame:
    """Score predictions for the test clips, in percent; a row for each modality given and set of labels.

    Columns: modality (what the model was given), labels (of LABEL_SETS), listed (clips that have such labels), n (of
    these, clips that were predicted), hit_rate@k (clips with one of their labels among the k largest logits), f1@k
    (micro-averaged: the k largest logits are the guesses), mu (modality confusion, in the rows of all labels:
    clips where the modality alone is right at k = 1 but the fusion wrong; for "av", where each alone is right).
    Raises LabelsError where a label is no class of the predictions, or there is no clip to score.
    """
    index = predictions.drop_duplicates("label").set_index("label")["label_index"]
    if unknown := sorted(set(labels["label"]) - set(index.index)):
        raise LabelsError(f"No predicted clip is of class {unknown[0]!r}; score predictions for the whole VGGSound.")
    rows, right = [], {}
    for modality, found in predictions[predictions["split"] == "test"].groupby("modality", sort=False):
        logits = np.stack(found["logits"].tolist())
        best = pd.DataFrame(np.argsort(logits, axis=1)[:, ::-1][:, : max(KS)], index=found["clip_id"])
        for name, kinds in LABEL_SETS.items():
            wanted = labels[labels["modality"].isin(kinds)]
            chosen = wanted[wanted["video_id"].isin(best.index)]
            if chosen.empty:
                raise LabelsError(
                    f"No test clip predicted from {modality} has VGGSounder labels of set {name}; is this VGGSound?"
                )
            clip, clip_ids = pd.factorize(chosen["video_id"])
            truth = np.zeros((len(clip_ids), logits.shape[1]), dtype=bool)
            truth[clip, index[chosen["label"]]] = True
            hits = np.take_along_axis(truth, best.loc[clip_ids].to_numpy(), axis=1)  # of the best guess, the next ...
            row = {"modality": modality, "labels": name, "listed": wanted["video_id"].nunique(), "n": len(clip_ids)}
            row |= {f"hit_rate@{k}": 100 * hits[:, :k].any(1).mean() for k in KS}
            row |= {f"f1@{k}": 200 * hits[:, :k].sum() / (hits[:, :k].size + truth.sum()) for k in KS}
            rows.append(row)
        right[modality] = pd.Series(hits[:, 0], index=clip_ids)  # by all labels, the last set
    if not rows:
        raise LabelsError("The predictions have no clip of the test split; give those of a finished run.")
    table = pd.DataFrame(rows)
    if {"av", "audio", "video"} <= right.keys():
        each = pd.concat(right, axis=1, join="inner")  # clips that were predicted in all three ways
        confused = {name: each[name] & ~each["av"] for name in ("audio", "video")}
        confused["av"] = confused["audio"] & confused["video"]
        mu = table["modality"].map({name: 100 * column.mean() for name, column in confused.items()})
        table["mu"] = mu.where(table["labels"] == "all")
    return table


def main(arguments: list[str] | None = None) -> int:
    """Print the scores and write them beside the predictions; return 0, or 1 with a sentence on standard error."""
    parser = argparse.ArgumentParser(prog="python -m mmtlib.vggsounder", description="Score with VGGSounder's labels.")
    parser.add_argument("predictions", type=Path, help="predictions of a model trained on VGGSound, Parquet")
    parser.add_argument("--labels", type=Path, help="VGGSounder's CSV (default: of the installed package)")
    given = parser.parse_args(arguments)
    try:
        table = score(read_predictions(given.predictions), read_labels(given.labels))
    except (LabelsError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return 1
    except (ValueError, KeyError, OSError) as error:
        reason = str(error).splitlines()[0]
        print(f"{given.predictions}: no table of predictions ({reason}); give one of a training stage", file=sys.stderr)
        return 1
    print(table.to_markdown(index=False, floatfmt=".2f"))
    write_text(given.predictions.with_suffix(".vggsounder.csv"), table.to_csv(index=False, float_format="%.4f"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
