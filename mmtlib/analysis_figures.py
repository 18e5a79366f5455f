"""The figures of the analyses beyond accuracy; colours as in the report's."""

from collections.abc import Sequence

import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mmtlib.figures import _STYLE, _WIDTH, COLOURS, READS, _lighter


@rc_context(_STYLE)
def calibration(table: pd.DataFrame, bins: Sequence[pd.DataFrame], surest: Sequence[pd.Series]) -> Figure:
    """Above, accuracy against confidence; below, accuracy over the clips that a model is surest of. Ours and peers.

    `table`: model, modality, ours; for each of its rows `bins` has confidence, right (0 to 1) and n, and `surest`
    accuracy by share (percent). The area of a dot is the share of the clips in its bin.
    """
    figure = Figure(figsize=(_WIDTH, 6.4), layout="constrained")
    axes = figure.subplots(2, len(COLOURS), sharex="row", sharey="row")
    for column, modality in enumerate(COLOURS):
        above, below = axes[:, column]
        above.plot([0, 100], [0, 100], color="#888888", linewidth=0.8, linestyle=":")
        handles = []
        for row in table[table["modality"] == modality].sort_values("ours").itertuples():  # ours on top
            colour = COLOURS[modality] if row.ours else _lighter(COLOURS[modality])
            style = {"color": colour, "linestyle": "-" if row.ours else "--", "linewidth": 1.6}
            found = 100 * bins[row.Index][["confidence", "right"]]
            above.plot(found["confidence"], found["right"], **style)
            sizes = 400 * bins[row.Index]["n"] / bins[row.Index]["n"].sum()
            above.scatter(found["confidence"], found["right"], sizes, color=colour, edgecolors="white", zorder=3)
            below.plot(surest[row.Index], **style)
            handles.insert(0, Line2D([], [], label=row.model, **style))
        above.set(title=READS[modality], xlabel="top probability (%)", xlim=(0, 104), ylim=(0, 104))
        below.set(xlabel="clips answered, surest first (%)", ylim=(0, 104), xticks=range(20, 101, 20))
        below.legend(handles=handles, loc="lower left")
    axes[0, 0].set_ylabel("recognised (%)")
    axes[1, 0].set_ylabel("of these recognised (%)")
    return figure
