"""The benchmark's figures: tables in, matplotlib figures out; colours as in the report's."""

import numpy as np
import pandas as pd
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mmtlib.figures import _STYLE, COLOURS, READS, _figure, _lighter

KIND_COLOURS = {"linear": "#56b4e9", "attention": "#cc79a7", "convolution": "#e69f00", "positions": "#444444"}
"""One for each kind of operation, none of them a modality's (Okabe and Ito)."""


def efficiency(table: pd.DataFrame) -> Figure:
    """Ratios to the peer of each pair: speed in training and inference, and memory; the line at 1 is the peer."""
    panels = {
        "train_step_ratio": "training step:\npeer's seconds / ours",
        "inference_ratio": "inference:\npeer's seconds / ours",
        "peak_memory_ratio": "memory in training:\nours / peer's",
    }
    y = -np.arange(len(table), dtype=float)
    with rc_context(_STYLE):
        figure, axes = _figure(len(panels), 1.6 + 0.34 * len(table))
        for ax, (column, title) in zip(axes, panels.items(), strict=True):
            for place, row in zip(y, table.to_dict("records"), strict=True):
                value = row.get(column, float("nan"))
                if pd.isna(value):
                    continue
                colour = COLOURS[row["modality"]]
                ax.barh(place, value, 0.7, color=colour if row["precision"] == "fp32" else _lighter(colour))
                low, high = row.get(f"{column}_low", value), row.get(f"{column}_high", value)
                ax.errorbar(value, place, xerr=[[value - low], [high - value]], color="#222222", capsize=3)
                style = {"va": "center", "fontsize": 9, "bbox": {"color": "white", "pad": 0}}
                ax.annotate(f"{value:.2f}", (high, place), (6, -1), textcoords="offset points", **style)
            ax.axvline(1, color="#222222", linewidth=1, linestyle=":")
            ax.set_title(title)
            ax.set_yticks(y, [""] * len(table))
            ax.margins(x=0.2)
            ax.set_xlim(left=0)
        names = [f"{row.model} / {row.peer}, {row.precision}" for row in table.itertuples()]
        axes[0].set_yticks(y, names)
        used = [modality for modality in COLOURS if modality in set(table["modality"])]
        handles = [Patch(color=COLOURS[modality], label=f"reads {READS[modality]}") for modality in used]
        figure.legend(handles=handles, loc="outside lower right", ncols=3)
    return figure


def efficiency_length(table: pd.DataFrame) -> Figure:
    """Seconds and memory of a training step against the length of the sound, ours and the peer's, and their ratio.

    A length that was not timed has no seconds: its points are missing.
    """
    ours, peer = table["model"].iloc[0], table["peer"].iloc[0]
    panels = [("train_s", f"training step of\n{table['batch'].iloc[0]} clips (s)")]
    panels += [("clip_memory_gib", "peak memory of\na step of one clip (GiB)")]
    with rc_context(_STYLE):
        figure, axes = _figure(3, 3.6)
        for ax, (column, title) in zip(axes, panels, strict=False):
            for name, key, colour in ((ours, "", COLOURS["audio"]), (peer, "peer_", _lighter(COLOURS["audio"]))):
                values = table.reindex(columns=[key + column])[key + column]
                ax.plot(table["seconds"], values, "o-", color=colour, label=name if column == "train_s" else None)
            ax.set_title(title)
        axes[2].plot(table["seconds"], table.reindex(columns=["train_step_ratio"]), "o-", color=COLOURS["audio"])
        axes[2].axhline(1, color="#222222", linewidth=1, linestyle=":")
        axes[2].set_title("training step:\npeer's seconds / ours")
        for ax in axes:
            ax.set_xlabel("seconds of sound")
            ax.set_ylim(bottom=0)
        figure.legend(loc="outside lower right", ncols=2)
    return figure


def efficiency_stages(table: pd.DataFrame) -> Figure:
    """The operations of each model, stage by stage, as stacked bars: which kind, and how many (GMAC)."""
    models = list(dict.fromkeys(table["model"]))
    with rc_context(_STYLE):
        figure, axes = _figure(len(models), 3.8)
        for ax, name in zip(axes, models, strict=True):
            part = table[(table["model"] == name) & (table["blocks"] > 0)]
            bottom = np.zeros(len(part))
            for kind, colour in KIND_COLOURS.items():
                values = part[f"{kind}_gmacs"].to_numpy()
                ax.bar(np.arange(len(part)), values, 0.75, bottom, color=colour, label=kind if ax is axes[0] else None)
                bottom += values
            labels = [
                f"stage {row.stage}\n{row.blocks} x {row.width} wide\n{row.tokens} tokens\n{row.keys} keys"
                for row in part.itertuples()
            ]
            ax.set_xticks(np.arange(len(part)), labels)
            ax.set_title(f"{name}, GMAC for a clip")
        figure.legend(loc="outside lower center", ncols=4)
    return figure
