"""Figures: the right marks in the right colours, whatever the tables hold."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.legend import Legend
from matplotlib.text import Text

from study.figures import results as figures
from study.figures.style import png


def headline(**more):
    table = pd.DataFrame(
        {
            "model": ["mmt_t", "mat_t", "ast_t"],
            "modality": ["av", "audio", "audio"],
            "ours": [True, True, False],
            "top1": [90.0, 60.0, 50.0],
            "low": [85.0, 55.0, 45.0],
            "high": [95.0, 65.0, 55.0],
        }
    )
    return figures.headline(table.assign(**more), {"audio": 80.0}, 25.0)


def ablations():
    rows = {
        "group": ["baseline", "fusion", "fusion"],
        "row": ["ast_t", "mmt_late", "mmt_concat"],
        "modality": ["audio", "av", "av"],
        "difference": [-3.0, 1.0, 0.0],
        "low": [-5.0, -1.0, -2.0],
        "high": [-1.0, 3.0, 2.0],
    }
    return figures.ablations(pd.DataFrame(rows))


def test_bars_have_their_lengths_and_the_colour_of_what_they_read():
    bars = headline().axes[0].patches
    assert [bar.get_width() for bar in bars] == [60.0, 50.0, 90.0]  # sound first
    assert to_hex(bars[0].get_facecolor()) == figures.COLOURS["audio"]
    assert to_hex(bars[2].get_facecolor()) == figures.COLOURS["av"]
    assert to_hex(bars[1].get_facecolor()) not in figures.COLOURS.values()  # a baseline is lighter
    assert [text.get_text() for text in headline().axes[0].texts] == ["60.0", "50.0", "90.0", "ceiling 80.0"]


def test_numbers_stand_beyond_the_intervals_and_the_axis_ends_a_little_later():
    axes = headline().axes[0]
    assert all(text.get_position()[0] > high for text, high in zip(axes.texts, [65.0, 55.0, 95.0], strict=False))
    assert axes.get_xlim() == (0, 107)
    low = headline(top1=9.0, low=8.0, high=10.0).axes[0]
    assert low.get_xlim() == (0, pytest.approx(1.2 * 80))  # that of the ceiling


def test_png_is_the_same_each_time_and_changes_with_the_numbers():
    first = png(headline())
    assert first == png(headline())
    assert first != png(headline(top1=[91.0, 60.0, 50.0]))
    assert first.startswith(b"\x89PNG")


def test_confusion_is_in_percent_of_the_row_even_of_an_empty_one():
    figure = figures.confusion({"a": np.array([[3.0, 1.0], [0.0, 0.0]])}, ["x", "y"])
    np.testing.assert_allclose(figure.axes[0].images[0].get_array(), [[75, 25], [0, 0]])


def test_classes_are_sorted_by_what_both_senses_reach():
    table = pd.DataFrame({"class": ["a", "b", "c"], "audio": 1.0, "video": 2.0, "av": [5.0, 50.0, 20.0]})
    axes = figures.per_class(table).axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "c", "b"]  # the best on top


def test_learning_curves_mark_the_mean_of_the_kept_epochs():
    rows = {"run": "mat_t", "modality": "audio", "ours": True, "seed": [0, 0, 1, 1], "fold": None}
    rows |= {"epoch": [1, 2, 1, 2], "ce": [2.0, 1.0] * 2, "val_top1": [40.0, 30.0, 20.0, 50.0]}
    curve = pd.DataFrame(rows | {"kept": [True, False, False, True]})
    dots = [line for line in figures.learning_curves(curve).axes[1].lines if line.get_marker() == "o"]
    assert [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in dots] == [([1.5], [45.0])]


def test_ablations_show_each_row_once_below_its_group():
    axes = ablations().axes[0]
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert names == ["ast_t", "mmt_late", "mmt_concat"]
    assert [text.get_text() for text in axes.texts] == ["baseline", "fusion"]


def test_more_classes_than_colours_are_told_apart():
    names = [f"class{index}" for index in range(23)]
    points = pd.DataFrame({"x": range(23), "y": range(23), "label": names})
    lines = figures.tsne({"a": points}, names).axes[0].lines
    assert len({(to_hex(line.get_color()), line.get_marker()) for line in lines}) == 23


@pytest.mark.parametrize("figure", [headline, ablations])
def test_text_is_readable(figure):
    made = figure()
    png(made)
    assert min(text.get_fontsize() for text in made.findobj(Text) if text.get_text()) >= 9


MANY = [f"class {index:03d}" for index in range(309)]


def test_of_many_classes_those_are_shown_in_which_the_senses_differ_by_the_most_clips():
    table = pd.DataFrame({"class": MANY, "n": 50, "audio": 50.0, "video": 50.0 + np.arange(309) / 10, "av": 60.0})
    table.loc[0, ["n", "audio", "video"]] = 1, 100.0, 0.0  # one clip: the widest gap, and the least to go by
    axes = figures.per_class(table).axes[0]
    assert sorted(text.get_text() for text in axes.get_yticklabels()) == MANY[-40:]
    assert axes.get_title(loc="left").startswith("40 of 309 classes")
    assert not figures.per_class(table[:40]).axes[0].get_title(loc="left")


def test_a_confusion_of_many_classes_says_how_many_and_names_none():
    axes = figures.confusion({"a": np.eye(309)}, MANY).axes[0]
    assert (axes.get_yticklabels(), axes.get_ylabel()) == ([], "true, 309 classes")


def test_a_map_of_many_classes_colours_the_most_frequent_and_keeps_every_clip():
    labels = MANY + 2 * MANY[200:210]
    points = pd.DataFrame({"x": range(len(labels)), "y": 0, "label": labels})
    figure = figures.tsne({"a": points, "b": points}, MANY)
    rest, *coloured = figure.axes[0].lines
    assert [line.get_label() for line in coloured] == MANY[200:210]
    assert len({to_hex(line.get_color()) for line in coloured}) == 10
    assert (rest.get_label(), len(rest.get_xdata())) == ("299 others", 299)


@pytest.mark.parametrize("titles", ["ab", "abc"])
def test_legends_of_many_classes_with_long_names_stay_inside_the_picture(titles):
    names = [f"{index} opening or closing car electric windows" for index in range(309)]
    points = pd.DataFrame({"x": range(309), "y": 0, "label": names})
    figure = figures.tsne(dict.fromkeys(titles, points), names)
    png(figure)
    (legend,) = figure.findobj(Legend)
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
