"""The figures of `make bench`, from its committed tables, and the pictures that notebooks show."""

import io

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from mmtlib.config import ROOT
from study import gallery
from study.figures.analysis import efficiency
from study.figures.style import png


def test_the_figure_is_drawn_from_its_table_and_shows_what_changes_in_it():
    table = pd.read_csv(ROOT / "reports/efficiency/efficiency.csv")
    other = table[table["model"] == table["model"].iloc[0]].iloc[:2]
    drawn = [png(efficiency(part)) for part in (table, table, other)]
    assert drawn[0] == drawn[1] != drawn[2]
    pixels = np.asarray(Image.open(io.BytesIO(drawn[0])).convert("L"))
    assert pixels.std() > 5


def test_a_picture_says_what_it_shows_and_is_the_same_in_every_run():
    def figure() -> Figure:
        drawn = Figure(figsize=(2, 1))
        drawn.subplots().plot([0, 1], [1, 0])
        return drawn

    first, second = (gallery.picture_of(figure(), "a falling line") for _ in range(2))
    assert repr(first) == "Picture: a falling line"
    assert first._repr_png_() == second._repr_png_()
