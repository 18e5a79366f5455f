"""A trained model on any file: the pipeline's own predictions are the reference."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from toy_features import OVERRIDES
from typer.testing import CliRunner

from freedoom_sounds.files import write_clip
from mmtlib import predict
from mmtlib.__main__ import MODEL as COMMITTED
from mmtlib.__main__ import app
from mmtlib.config import ROOT
from mmtlib.data.dataset import FeatureDataset
from mmtlib.data.features import extract_features
from mmtlib.data.media import CUT_OFF_S
from mmtlib.evaluation.predictions import predict as pipeline_predict
from mmtlib.models import build_model
from mmtlib.models.hub import WeightsError, load_model, load_weights, save_model
from mmtlib.predict import PredictionError, predict_file, window_spans
from study.figures import predict as predict_figures
from study.figures import results as figures

SETTINGS = dict(sample_rate=8000, mel_bins=32, window_ms=25, hop_ms=20, frames=4, size=16, seconds=1.0)
FPS, HZ = 8, 8000
HEADS = {"verb": ["open", "shut"], "noun": ["door", "lid", "tap"]}


def write(path, seconds, *, sound=None, picture=True, silent_from=None):
    """A clip of noise: `seconds` of picture, `sound` seconds of sound (None: as many; 0: none)."""
    rng = np.random.default_rng(len(path.name))
    sound = seconds if sound is None else sound
    frames = rng.integers(0, 256, (round(seconds * FPS), 24, 48, 3), dtype=np.uint8) if picture else None
    pcm = rng.integers(-9000, 9000, (round(sound * HZ), 1)).astype(np.int16) if sound else None
    if silent_from is not None:
        pcm[round(silent_from * HZ) :] = 0
    write_clip(path, frames, FPS, pcm, HZ)
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    write(folder / "one.mp4", 1.0)
    write(folder / "longer.mp4", 1.125)  # hardly longer than a window
    write(folder / "short.mp4", 0.75)
    write(folder / "mute.mp4", 1.0, sound=0)
    write(folder / "blind.mp4", 1.0, picture=False)
    write(folder / "film.mp4", 3.5)
    rows = [(path.stem, path.name, None, None, "test") for path in sorted(folder.iterdir())]
    rows += [("part", "film.mp4", 1.0, 2.0, "test"), ("a", "one.mp4", None, None, "train")]
    rows += [("b", "film.mp4", None, None, "val")]
    manifest = pd.DataFrame(rows, columns=["clip_id", "path", "start", "end", "split"])
    manifest["verb"], manifest["noun"], manifest["label"] = "open", "tap", "open tap"
    manifest.to_csv(folder / "manifest.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def trained(clips):
    """weights(name, several, ...) -> the file of an untrained model, and what the pipeline predicts with it."""

    def make(name, several=False, **settings):
        heads = HEADS if several else {"label": ["open tap", "shut tap", "shut lid"]}
        described = {"heads": HEADS} if several else {"classes": heads["label"]}
        (clips / "dataset.json").write_text(json.dumps({"name": "toy", **described}))
        extract_features(clips / "manifest.csv", clips.parent / "features", workers=1, **SETTINGS | settings)
        test = FeatureDataset(clips.parent / "features", "test")
        sizes = {"audio_size": (48, 32), "video_size": (4, 16, 16)}
        model = build_model(name, test.num_logits, **sizes, **OVERRIDES[name])
        for parameter in model.parameters():  # far apart, so that the classes are too
            parameter.data.mul_(1.5)
        path = clips.parent / f"{name}.safetensors"
        about = {"overrides": sizes | OVERRIDES[name], "heads": test.heads, "stats": test.stats}
        save_model(path, model, name=name, num_classes=test.num_logits, **about)
        return path, pipeline_predict(model, test), test.heads

    return make


@pytest.fixture(scope="module")
def mmt(trained):
    return trained("mmt_t")[0]


def probabilities(table, modality, heads):
    """Of all classes, the heads one after the other in the order of their classes."""
    table = table[table["modality"] == modality].set_index(["head", "label"])["probability"]
    return np.array([table[head, label] for head, labels in heads.items() for label in labels])


@pytest.mark.parametrize(
    ("name", "several", "settings"),
    [("mmt_t", False, {}), ("mmt_t", True, {"crops": 3}), ("mat_t", False, {}), ("mvitv2_t", False, {"crops": 3})],
)
def test_a_test_clip_gets_the_probabilities_that_the_pipeline_stored(clips, trained, name, several, settings):
    weights, stored, heads = trained(name, several, **settings)
    compared = set()
    sizes = np.cumsum([len(labels) for labels in heads.values()])[:-1]
    for row in stored.itertuples():
        if row.clip_id == "film":
            continue  # the pipeline reads its central window only
        file = clips / ("film.mp4" if row.clip_id == "part" else f"{row.clip_id}.mp4")
        found = predict_file(weights, file, top=99)
        table = found.windows[found.windows["start"] == 1.0] if row.clip_id == "part" else found.verdict
        parts = [np.exp(part) / np.exp(part).sum() for part in np.split(row.logits, sizes)]
        np.testing.assert_allclose(probabilities(table, row.modality, heads), np.concatenate(parts), atol=1e-4)
        compared.add((row.clip_id, row.modality))
    wanted = {"mmt_t": ("audio", "video", "av"), "mat_t": ("audio",), "mvitv2_t": ("video",)}[name]
    assert {modality for _, modality in compared} == set(wanted)
    assert {clip for clip, _ in compared} >= {"one", "longer", "short", "part"}


def test_windows_follow_each_other_and_the_verdict_is_their_mean(clips, mmt):
    found = predict_file(mmt, clips / "film.mp4", top=99)
    assert found.seconds == pytest.approx(3.5, abs=0.01)
    spans = found.windows[["start", "end"]].drop_duplicates().round(2).values.tolist()
    assert spans == [[0, 1], [1, 2], [2, 3], [2.5, 3.5]]
    assert found.notes == []
    keys = ["modality", "label"]
    mean = found.windows.groupby(keys)["probability"].mean()
    pd.testing.assert_series_equal(found.verdict.set_index(keys)["probability"].sort_index(), mean, rtol=1e-5)
    assert list(found.verdict["modality"].unique()) == ["audio", "video", "av"]
    assert found.verdict.groupby("modality")["probability"].sum().values == pytest.approx(1)
    for _, table in found.windows.groupby(["start", "modality"]):
        assert table["rank"].tolist() == [1, 2, 3]
        assert table["probability"].is_monotonic_decreasing
    assert len(predict_file(mmt, clips / "film.mp4", top=1, seconds=2, hop=0.5).windows) == 3 * 4


@given(st.floats(0.1, 500), st.floats(0.5, 20), st.floats(0.3, 3))
def test_windows_cover_the_file_from_end_to_end(length, seconds, share):
    hop = share * seconds
    spans = window_spans(length, seconds, hop)
    starts, ends = np.array(spans).T
    assert 0 <= starts[0] <= CUT_OFF_S / 2
    assert length - CUT_OFF_S / 2 <= ends[-1] <= length
    assert np.all(ends - starts <= seconds + 1e-9)
    assert np.all(np.diff(starts) > 0)
    assert np.all(starts[1:] - starts[:-1] <= hop + min(CUT_OFF_S, hop / 2) + 1e-9)
    assert len(spans) == 1 or ends[-1] == pytest.approx(length)


@pytest.mark.parametrize(
    ("shape", "note", "given"),
    [
        ({"sound": 0}, "no audio in it; audio-visual is video alone", {"video", "av"}),
        ({"picture": False}, "no video in it; audio-visual is audio alone", {"audio", "av"}),
        ({"silent_from": 0}, "no audio in it; audio-visual is video alone", {"video", "av"}),
        ({"sound": 1.0}, "2 of 3 windows without audio; audio-visual is video alone there", {"audio", "video", "av"}),
    ],
)
def test_what_a_file_lacks_is_said_and_withheld(tmp_path, mmt, shape, note, given):
    found = predict_file(mmt, write(tmp_path / "x.mp4", 3.0, **shape))
    assert found.notes == [note]
    assert set(found.verdict["modality"]) == given
    last = found.windows[found.windows["start"] == found.windows["start"].max()].set_index(["modality", "label"])
    assert set(last.loc["av"].index) == set(last.loc[(given - {"av"}).pop() if len(given) == 2 else "video"].index)
    if len(given) == 2:
        alone = (given - {"av"}).pop()
        assert np.allclose(last.loc["av"]["probability"].sort_index(), last.loc[alone]["probability"].sort_index())


def test_a_window_with_neither_is_left_out(tmp_path, mmt):
    found = predict_file(mmt, write(tmp_path / "x.mp4", 3.0, picture=False, silent_from=0.7))  # a codec rings on
    assert set(found.windows["start"]) == {0.0}
    assert "2 of 3 windows with neither" in found.notes


def test_what_cannot_be_predicted_is_one_sentence(tmp_path, clips, mmt, trained):
    text = tmp_path / "text.mp4"
    text.write_text("no film")
    cases = {tmp_path / "gone.mp4": "does not exist", text: "is not a media file", tmp_path: "is no file but a folder"}
    cases[write(tmp_path / "still.mp4", 1.0, picture=False, silent_from=0)] = "nothing of what mmt_t reads"
    for path, reason in cases.items():
        with pytest.raises(PredictionError, match=rf"^{path} .*{reason}.*; give another file\.$"):
            predict_file(mmt, path)
    with pytest.raises(PredictionError, match="hop is 0"):
        predict_file(mmt, clips / "one.mp4", hop=0)
    with pytest.raises(PredictionError, match=r"nothing of what mat_t reads \(audio\)"):
        predict_file(trained("mat_t")[0], clips / "mute.mp4")
    path = tmp_path / "bare.safetensors"
    save_model(path, build_model("mat_t", 3, **OVERRIDES["mat_t"]), name="mat_t", num_classes=3, overrides={})
    with pytest.raises(WeightsError):
        predict_file(path, clips / "one.mp4")


def command(*arguments):
    return CliRunner().invoke(app, ["predict", *map(str, arguments)])


def test_the_command_goes_on_after_a_bad_file(clips, mmt):
    files = [str(clips / name) for name in ("film.mp4", "gone.mp4", "mute.mp4")]
    done = command(*files, "--model", mmt, "--top", 2, "--json", "--windows")
    assert (done.exit_code, done.stderr) == (1, f"{files[1]} does not exist; give another file.\n")
    film, mute = map(json.loads, done.stdout.splitlines())
    assert (film["file"], film["notes"], len(film["verdict"]), len(film["windows"])) == (files[0], [], 6, 24)
    assert mute["notes"] == ["no audio in it; audio-visual is video alone"]
    assert film["verdict"][0].keys() == {"modality", "head", "rank", "label", "probability"}

    done = command(files[0], "--model", mmt, "--windows")
    assert done.exit_code == 0
    assert done.stdout.startswith(f"{files[0]}: 3.5 s, 4 windows\n")
    assert done.stdout.splitlines()[1].split() == ["rank", "audio", "video", "audio-visual"]
    assert [line.split()[0] for line in done.stdout.splitlines()[2:5]] == ["1", "2", "3"]
    assert done.stdout.count("%") == 3 * 3 + 3 * 4
    assert command(files[0], "--top", 0).exit_code == 2


def test_the_committed_weights_are_taken_unless_others_are_named(clips, mmt, tmp_path):
    words = [sys.executable, "-m", "mmtlib.predict", str(clips / "one.mp4"), "--json", "--top", "3"]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
    assert json.loads(done.stdout)["verdict"][0]["label"] in load_weights(Path(COMMITTED))[1]["heads"]["label"]
    save_model(tmp_path / "half.safetensors", load_model(mmt)[0].half())
    told = json.loads(command(clips / "one.mp4", "--json", "--model", tmp_path / "half.safetensors").stdout)["verdict"]
    want = predict_file(mmt, clips / "one.mp4").verdict.set_index(["modality", "label"])["probability"]
    for row in told:
        assert row["probability"] == pytest.approx(want[row["modality"], row["label"]], abs=0.02)


def test_the_command_imports_nothing_that_it_does_not_need():
    """What it answers in is mostly imports."""
    code = "import sys, mmtlib.predict; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"matplotlib", "transformers", "sklearn", "scipy", "seaborn", "jinja2"} & set(loaded)


def test_its_words_are_those_of_the_figures():
    assert dict(figures.READS) == predict._WORDS


def test_the_figures_show_the_tables(clips, trained):
    found = predict_file(trained("mmt_t", several=True)[0], clips / "film.mp4", top=2)
    figure = predict_figures.best_classes(found.verdict)
    assert len(figure.axes) == 6
    assert [ax.get_title(loc="left") for ax in figure.axes[:2]] == ["verb, audio", "verb, video"]
    drawn = [bar.get_width() for ax in figure.axes[:3] for bar in ax.patches]
    verbs = found.verdict[found.verdict["head"] == "verb"]
    assert drawn == pytest.approx((100 * verbs["probability"]).tolist())

    best = found.windows[(found.windows["head"] == "noun") & (found.windows["rank"] == 1)]
    (ax,) = predict_figures.over_time(found.windows, "noun").axes
    rows = [label.get_text() for label in ax.get_yticklabels()]
    bars = {(bar.get_x(), to_hex(bar.get_facecolor()), round(bar.get_y() + 0.12)) for bar in ax.patches}
    colours = best["modality"].map(figures.COLOURS)
    assert bars == set(zip(best["start"], colours, -best["label"].map(rows.index), strict=True))
    many = pd.concat([best.assign(label=f"class {index}", start=index) for index in range(20)])
    (ax,) = predict_figures.over_time(many, "noun").axes
    assert ax.get_title(loc="left") == "12 of 20 classes: those that are best most often"
