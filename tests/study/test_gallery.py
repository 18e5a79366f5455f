"""Pictures, players and tables of the notebooks, on made-up clips and tiny models."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from toy_features import make_recipe

from freedoom_sounds.files import write_clip
from mmtlib.config import Trial
from mmtlib.data.augment import Augmenter
from mmtlib.data.dataset import FeatureDataset
from mmtlib.data.features import extract_features
from mmtlib.data.manifest import write_manifest
from mmtlib.data.media import read_clip
from mmtlib.data.spectrogram import LogMel
from mmtlib.models import build_model
from study import gallery

RATE = 16_000


def pixels(picture) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(picture._repr_png_())).convert("RGB"))


def write(path, *, sound=True, picture=True):
    rng = np.random.default_rng(0)
    frames = np.repeat(rng.integers(0, 255, (1, 48, 64, 3), dtype=np.uint8), 20, axis=0) if picture else None
    wave = (8000 * np.sin(np.arange(2 * RATE) * 0.2)).astype(np.int16)[:, None] if sound else None
    write_clip(path, frames, 10, wave, RATE)
    return path


@pytest.fixture(scope="module")
def split(tmp_path_factory):
    """The training split of four clips of two classes; the last has no sound."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for index in range(4):
        write(folder / f"{index}.mp4", sound=index < 3)
        label = "turn_left" if index % 2 else "door_opens"
        rows.append([f"c{index}", f"{index}.mp4", "", "", label, "train"])
    columns = ["clip_id", "path", "start", "end", "label", "split"]
    write_manifest(pd.DataFrame(rows, columns=columns), folder / "manifest.csv")
    settings = {"sample_rate": RATE, "mel_bins": 64, "window_ms": 25, "hop_ms": 10}
    settings |= {"frames": 4, "size": 32, "seconds": 2.0, "workers": 1}
    extract_features(folder / "manifest.csv", folder / "features", **settings)
    return FeatureDataset(folder / "features", "train")


def test_a_picture_is_a_small_png_whose_text_names_no_address():
    picture = gallery.positives_figure(["a", "a", "b"])
    assert repr(picture) == "Picture: positives of AVC and IMC among 3 clips"
    assert picture._repr_png_().startswith(b"\x89PNG")
    assert picture._repr_png_() == gallery.positives_figure(["a", "a", "b"])._repr_png_()
    assert picture._repr_png_() != gallery.positives_figure(["a", "b", "b"])._repr_png_()
    assert len(picture.png) < 30_000


def test_a_picture_file_is_scaled_down_but_never_up(tmp_path):
    for width in (1000, 500):
        Image.new("RGB", (width, 100), "red").save(tmp_path / "x.png")
        image = Image.open(io.BytesIO(gallery.file_picture(tmp_path / "x.png", "x").png))
        assert image.size == ((800, 80) if width == 1000 else (500, 100))


def test_a_contact_sheet_grows_with_its_clips_and_says_what_a_clip_lacks(tmp_path):
    both, silent = write(tmp_path / "a.mp4"), write(tmp_path / "b.mp4", sound=False)
    blind = write(tmp_path / "c.mp4", picture=False)
    one = pixels(gallery.clip_sheet({"both": both}))
    three = pixels(gallery.clip_sheet({"both": both, "silent": silent, "blind": blind}))
    assert one.shape[1] == three.shape[1]
    assert three.shape[0] > 2 * one.shape[0]
    with pytest.raises(ValueError, match="does not exist"):
        gallery.clip_sheet({"gone": tmp_path / "gone.mp4"})


@pytest.mark.parametrize(("sound", "picture"), [(True, True), (False, True), (True, False)])
def test_a_preview_is_the_clip_in_small(tmp_path, sound, picture):
    data = gallery.preview(write(tmp_path / "a.mp4", sound=sound, picture=picture))
    assert len(data) < 60_000
    (tmp_path / "small.mp4").write_bytes(data)
    clip = read_clip(tmp_path / "small.mp4", num_frames=2, size=96, sample_rate=RATE, seconds=None)
    assert clip.duration == pytest.approx(2.0, abs=0.11)
    assert (clip.waveform is not None, clip.frames is not None) == (sound, picture)


def test_sound_and_patch_figures_show_what_they_are_given():
    log_mel, wave = LogMel(RATE, 64), np.sin(np.arange(RATE) * 0.3).astype(np.float32)
    assert gallery.sound_figure(wave, log_mel, RATE).png != gallery.sound_figure(wave * 0.1, log_mel, RATE).png
    picture = gallery.patch_figure(torch.zeros(198, 128), build_model("mat_t", 3, stem=0).encoder)
    assert repr(picture) == "Picture: 19 x 12 patches on a log-mel"


def test_sheets_of_features_show_stored_and_augmented_clips(split):
    assert repr(gallery.feature_sheet(split, [0, 1])) == "Picture: 2 clips as they are stored"
    masks = {"time_masks": 2, "time_width": 90, "freq_masks": 0, "freq_width": 0}
    plain, strong = (Augmenter(split.classes, make_recipe(**more)) for more in ({}, {"spec_augment": masks}))
    sheets = [gallery.augmentation_sheet(split, augment, [0]).png for augment in (plain, strong, strong)]
    assert sheets[0] != sheets[1]
    assert sheets[1] == sheets[2]


# The models' own settings are tuned now and then; these are not.
FOUR = {"depths": (1, 1, 2, 1), "dim": 32, "drop_path": 0.0}
SOUND = FOUR | {"pooling": ("time", "time", "both", "both"), "stride_kv": (4, 4), "stem": 0, "patch_stride": 10}
VIDEO = FOUR | {"stem": (), "stride_kv": (1, 2, 2), "patch_kernel": (3, 9, 9), "patch_stride": (2, 8, 8)}


@pytest.mark.parametrize(
    ("name", "settings", "size", "grids", "keys"),
    [
        ("mat_t", SOUND, (198, 128), ["19 x 12", "19 x 12", "10 x 12", "5 x 6", "5 x 6", "3 x 3"], 60),
        ("mvitv2_t", VIDEO, (8, 64, 64), ["4 x 8 x 8", "4 x 8 x 8", "4 x 4 x 4", *["4 x 2 x 2"] * 2, "4 x 1 x 1"], 64),
    ],
)
def test_token_grids_are_those_of_a_forward_pass(name, settings, size, grids, keys):
    encoder, seen = build_model(name, 5, **settings).encoder, []
    for block in encoder.blocks:
        block.register_forward_hook(lambda *given: seen.append(given[-1][1]))
    encoder(torch.zeros(1, 1 if len(size) == 2 else 3, *size))
    table = gallery.token_grids(encoder, size)
    assert table.grid.tolist() == grids
    assert table.grid.tolist()[1:] == [" x ".join(map(str, grid)) for grid in seen]
    assert table.tokens.tolist() == [int(np.prod([int(n) for n in grid.split(" x ")])) for grid in grids]
    assert table["keys"].tolist()[1] == keys
    assert table.dim.tolist() == [32, *(block.attention.project.out_features for block in encoder.blocks)]


def test_token_grids_count_the_keys_that_attention_is_given(monkeypatch):
    encoder, seen = build_model("mat_t", 5).encoder, []
    attention = type(encoder.blocks[0].attention)
    prepare = attention.prepare  # before it adds the spare keys, which get no weight

    def noting(self, q_prefix, k_prefix, v_prefix, q, k, *rest):
        seen.append(k_prefix.shape[1] + k.shape[1])
        return prepare(self, q_prefix, k_prefix, v_prefix, q, k, *rest)

    monkeypatch.setattr(attention, "prepare", noting)
    encoder(torch.zeros(1, 1, 198, 128))
    assert gallery.token_grids(encoder, (198, 128))["keys"].tolist()[1:] == seen


def test_costs_are_of_the_models_as_they_are_built():
    table = gallery.costs(["mat_t", "mmt_t"], 5, (98, 64), (4, 32, 32), mmt_t={"fusion": "late"})
    assert table.reads.tolist() == ["audio", "av"]
    plain = gallery.costs(["mmt_t"], 5, (98, 64), (4, 32, 32))
    assert float(plain.params_m[0]) > float(table.params_m[1]) > float(table.params_m[0])
    assert float(plain.mmacs[0]) > float(table.mmacs[1]) > float(table.mmacs[0])


def test_a_learning_curve_marks_the_kept_epoch_of_each_seed():
    history = pd.DataFrame({"epoch": [1, 2], "ce": [2.0, 1.0], "val_loss": [2.0, 1.5], "val_top1": [10.0, 10.0]})
    better = history.assign(val_loss=[1.0, 1.5])
    first, other = (gallery.curve_figure("x", {Trial(0, None): table}, "audio") for table in (history, better))
    assert repr(first) == "Picture: learning curves of x"
    assert first.png != other.png  # of equal top-1 the lower loss is kept
    assert gallery.curve_figure("x", {Trial(0, None): history, Trial(1, None): better}, "audio").png != first.png


def test_claims_print_what_is_stable_and_say_what_is_wrong():
    lines = gallery.claims(
        [("same", [1], [1]), ("other", 2, 3), ("near", 0.30000001, 0.3, 1e-3), ("far", 0.5, 0.3, 1e-3)]
    ).splitlines()
    assert [line.split()[-1] for line in lines] == ["ok", "True", "False", "True", "False"]
    assert "0.30000001" not in lines[3]
    assert "within" in lines[3]
    assert "0.5" in lines[4]
    assert gallery.claims([("not a number", float("nan"), 0.0, 0.1)]).endswith("False")


def test_changes_lists_each_field_that_differs_and_no_other():
    default = {"model": "mmt_t", "lr": 1.0, "objective": {"avc": 0.1, "imc": 0.1}, "overrides": {}}
    row = {"model": "mmt_t", "lr": 1.0, "objective": {"avc": 0.0, "imc": 0.1}, "overrides": {"fusion": "late"}}
    table = gallery.changes(row, default)
    assert table.to_dict("list") == {
        "field": ["objective.avc", "overrides.fusion"],
        "default": [0.1, "-"],
        "row": [0.0, "late"],
    }
    assert gallery.changes(default, default).empty
