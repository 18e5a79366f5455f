"""Predictions as figures: the tables of `mmtlib.predict` in, colours as in the report's."""

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mmtlib.figures import _STYLE, _WIDTH, COLOURS, READS, _figure, _grid, _lighter

_ROWS = 12  # classes told apart over time


def best_classes(verdict: pd.DataFrame) -> Figure:
    """The best classes of a file as bars, a panel for what the model was given; one row of panels for each head."""
    heads, modalities = verdict["head"].unique(), verdict["modality"].unique()
    with rc_context(_STYLE):
        height = len(heads) * (0.9 + 0.4 * verdict["rank"].max())
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        panels = figure.subplots(len(heads), len(modalities), squeeze=False, sharex=True)
        for head, row in zip(heads, panels, strict=True):
            for modality, ax in zip(modalities, row, strict=True):
                table = verdict[(verdict["head"] == head) & (verdict["modality"] == modality)]
                ax.barh(-table["rank"], 100 * table["probability"], 0.8, color=_lighter(COLOURS[modality]))
                for line in table.itertuples():  # names on the bars: they may be long
                    ax.text(1, -line.rank, f"{line.label}  {line.probability:.1%}", va="center", fontsize=9)
                title = READS[modality] if len(heads) == 1 else f"{head}, {READS[modality]}"
                ax.set_title(title, loc="left", color=COLOURS[modality], weight="bold")
                ax.set(xlim=(0, 100), yticks=[])
        for ax in panels[-1]:
            ax.set_xlabel("probability (%)")
    return figure


def over_time(windows: pd.DataFrame, head: str) -> Figure:
    """The best class of each window against time: a bar as long as the window, the paler the less probable.

    Rows are the classes that are best somewhere, in the order of their appearance; of more than 12 those that are so
    most often, and the title says so.
    """
    best = windows[(windows["head"] == head) & (windows["rank"] == 1)]
    classes = best.sort_values("start", kind="stable")["label"].unique()
    rows = [label for label in classes if label in best["label"].value_counts().index[:_ROWS]]
    shown = [modality for modality in COLOURS if modality in set(best["modality"])]
    with rc_context(_STYLE):
        figure, (ax,) = _figure(1, 1.3 + 0.42 * len(rows))
        for place, modality in enumerate(shown):
            table = best[(best["modality"] == modality) & best["label"].isin(rows)]
            y = -table["label"].map(rows.index) + 0.27 - 0.27 * place
            shades = [(COLOURS[modality], 0.15 + 0.85 * probability) for probability in table["probability"]]
            ax.barh(y, table["end"] - table["start"], 0.24, left=table["start"], color=shades)
        ax.set_yticks(range(0, -len(rows), -1), rows)
        ax.set(xlabel="time (s)", xlim=(0, best["end"].max()), ylim=(0.6 - len(rows), 0.6))
        if len(rows) < len(classes):
            ax.set_title(f"{len(rows)} of {len(classes)} classes: those that are best most often", loc="left")
        _grid(ax)
        handles = [Patch(color=COLOURS[modality], label=READS[modality]) for modality in shown]
        figure.legend(handles=handles, loc="outside upper right", ncols=3)
    return figure
