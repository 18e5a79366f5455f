"""The card of weights, for made-up headers; that a run's card has the run's figures is tested in test_training.py."""

import pandas as pd
import pytest
from toy_features import make_recipe, make_run

from freedoom_sounds.generate import NAME
from mmtlib.models import MODALITY
from mmtlib.models.card import GENERATED, model_card
from mmtlib.training.loop import plain

SETTINGS = dict(sample_rate=16000, mel_bins=128, window_ms=25.0, hop_ms=10.0, frames=16, size=64, seconds=2.0)


def header(name, data=NAME, heads=None, **changes):
    stats = {
        "name": data,
        "fingerprint": "f" * 64,
        "settings": SETTINGS | changes,
        "log_mel": {"shape": [9, 198, 128]},
        "frames": {"shape": [9, 16, 64, 64, 3]},
    }
    run, recipe = plain(make_run(name)), make_recipe(kept="somewhere/private").model_dump()
    heads = heads or {"label": ["door opens", "teleport"]}
    facts = dict(name=name, heads=heads, stats=stats, run=run, recipe=recipe, seed=3, key="0123456789abcdef")
    return facts | dict(clips=1800, encoders={})


def card(head, encoders=None, **columns):
    scores = {
        "split": ["val", "test", "test: picture frozen"],
        "modality": "av",
        "n": [5, 7, 7],
        "top1": [80.0, 71.43, 9],
    }
    scores = pd.DataFrame(scores | {"top5": 100.0} | columns)
    head = head | {"encoders": encoders or {}}
    return str(model_card(head, parameters=3_112_345, file="models/x.safetensors", scores=scores))


def fact(text, name):
    return next(line.split(": ", 1)[1] for line in text.splitlines() if line.startswith(f"- {name}: "))


def test_the_generated_set_is_the_one_of_that_name():
    assert GENERATED == NAME
    assert "The clips are made by a game engine." in card(header("mmt_t"))
    text = card(header("mmt_t", "vggsound", clips=10, crops=3))
    assert "The clips are those of vggsound." in text
    assert "10 window(s) x 3 crop(s)" in text


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("ast_t", ["log-mel (batch, 1, 198, 128): 2 s at 16000 Hz"]),
        ("mvitv2_t", ["frames (batch, 3, 16, 64, 64), evenly spaced over 2 s"]),
        ("vit_audio_t", ["log-mel (batch, 1, 198, 128): 2 s at 16000 Hz"]),
        ("resnet18_video", ["frames (batch, 3, 16, 64, 64), evenly spaced over 2 s"]),
        ("resnet18_av", ["log-mel (batch, 1, 198, 128)", "frames (batch, 3, 16, 64, 64)", "either may be missing"]),
        ("mbt_t", ["log-mel (batch, 1, 198, 128)", "frames (batch, 3, 16, 64, 64)", "either may be missing"]),
    ],
)
def test_it_says_what_the_model_reads(name, wanted):
    reads = fact(card(header(name)), "reads")
    assert all(part in reads for part in wanted)
    assert ("log-mel" in reads, "frames" in reads) == (MODALITY[name] != "video", MODALITY[name] != "audio")


def test_it_says_what_was_trained_how_and_on_what():
    text = card(header("mmt_t"))
    metadata, text = text.removeprefix("---\n").split("\n---\n\n", 1)
    assert "license: apache-2.0" in metadata
    assert text.startswith("# mmt_t, seed 3\n")
    assert fact(text, "model") == "mmt_t, 3,112,345 parameters"
    assert fact(text, "trained on") == f"{NAME}, fingerprint {'f' * 16}; 1,800 clips"
    assert fact(text, "classes (label, 2)") == "door opens, teleport"
    assert fact(text, "epochs") == "3"
    assert fact(text, "objective") == '{"avc": 0.0, "imc": 0.0, "temperature": 0.1}'
    assert fact(text, "batch_size") == "8"
    assert "somewhere/private" not in text, "a folder of this machine says nothing of the weights"


def test_scores_are_of_val_and_test_with_every_head():
    heads = {"verb": ["open", "shut"], "noun": ["lid", "tap", "door"]}
    text = card(header("mmt_t", heads=heads), verb_top1=88.0)
    assert (fact(text, "classes (verb, 2)"), fact(text, "classes (noun, 3)")) == ("open, shut", "lid, tap, door")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    assert rows == [
        ["split", "given", "clips", "top1", "top5", "verb_top1"],
        ["val", "av", "5", "80.0", "100.0", "88.0"],
        ["test", "av", "7", "71.4", "100.0", "88.0"],
    ]


def test_data_from_outside_are_named():
    assert fact(card(header("mmt_t")), "starts from") == "random weights, no other data"
    other = {"audio": header("mat_t", "audioset"), "video": {"name": "mvitv2_t", "stats": {"fingerprint": None}}}
    said = fact(card(header("mmt_t"), other), "starts from")
    audio, video = said.split("; ")
    assert audio == f"audio: mat_t, run 0123456789abcdef, trained on audioset, fingerprint {'f' * 16}"
    assert video == "video: mvitv2_t, trained on data that its file does not state"


def test_a_model_that_was_not_trained_has_a_card_without_what_training_says():
    text = str(model_card({"name": "mat_t", "num_classes": 3, "overrides": {}}, parameters=1234))
    assert fact(text, "model") == "mat_t, 1,234 parameters"
    assert "## Scores" not in text
    assert "The clips are" not in text
    assert "from_pretrained(" in text
