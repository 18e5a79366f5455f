"""Predictions and the scores that follow from them."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from toy_features import AUDIO, CLASSES, OVERRIDES, VIDEO, make_recipe, make_run, write_features

from mmtlib.data.dataset import FeatureDataset
from mmtlib.evaluation.predictions import outputs, predict, read_predictions, usable
from mmtlib.evaluation.scores import head_sizes, scores
from mmtlib.models import build_model
from mmtlib.training.loop import Trainer

TRAIN, VAL = 32, 12  # clips; rows 32 to 43 of the folder are the validation split
SIZES = {"mat_t": {"audio_size": AUDIO}, "mvitv2_t": {"video_size": VIDEO}}
SIZES["mmt_t"] = SIZES["mat_t"] | SIZES["mvitv2_t"]


@pytest.fixture
def val(tmp_path) -> FeatureDataset:
    """Twelve clips: the second has no sound, the third no picture, the fourth neither."""
    folder = write_features(tmp_path, silent=(TRAIN + 1, TRAIN + 3), blind=(TRAIN + 2, TRAIN + 3))
    val = FeatureDataset(folder, "val")
    val.split = "test"  # of which embeddings are kept
    return val


def make(name: str) -> torch.nn.Module:
    model = build_model(name, len(CLASSES), **SIZES[name], **OVERRIDES[name])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.3)
    return model.eval()


def stacked(table: pd.DataFrame, column: str) -> torch.Tensor:
    return torch.from_numpy(np.stack(table[column].tolist()))


def test_usable_clips_have_what_a_model_needs(val):
    everyone = list(range(VAL))
    assert usable(val, "audio").tolist() == [i for i in everyone if i not in (1, 3)]
    assert usable(val, "video").tolist() == [i for i in everyone if i not in (2, 3)]
    assert usable(val, "av").tolist() == [i for i in everyone if i != 3]


@pytest.mark.parametrize(("name", "modality"), [("mat_t", "audio"), ("mvitv2_t", "video")])
def test_a_model_of_one_modality_gives_a_row_for_each_clip_it_can_read(val, name, modality):
    model = make(name)
    table = predict(model, val)
    rows = usable(val, modality)
    assert list(table.columns) == ["clip_id", "split", "label", "label_index", "modality", "logits", "embedding"]
    assert table["clip_id"].tolist() == [f"c{TRAIN + int(i)}" for i in rows]
    assert set(table["modality"]) == {modality}
    assert set(table["split"]) == {"val"}
    assert [CLASSES[i] for i in table["label_index"]] == table["label"].tolist()
    assert table["label"].tolist() == [val.index["label"][int(i)] for i in rows]
    batch = val.batch(rows)
    with torch.no_grad():
        want = model(batch.audio if modality == "audio" else batch.video)
    torch.testing.assert_close(stacked(table, "logits"), want, rtol=1e-4, atol=1e-5)
    # The embedding is what the last linear layer reads.
    with torch.no_grad():
        embedding = stacked(table, "embedding").float()
        torch.testing.assert_close(model.head(embedding), want, rtol=1e-2, atol=1e-2)
    assert not model.head._forward_pre_hooks


def test_a_model_of_both_is_read_with_both_and_with_each_withheld(val):
    model = make("mmt_t")
    table = predict(model, val)
    assert table["modality"].value_counts().to_dict() == {"av": 11, "audio": 10, "video": 10}
    for modality, part in table.groupby("modality"):
        rows = usable(val, modality)
        assert part["clip_id"].tolist() == [f"c{TRAIN + int(i)}" for i in rows]
        for row, index in zip(part.to_dict("records"), rows.tolist(), strict=True):
            clip = val.batch([index])
            with torch.no_grad():  # one clip at a time, the other modality None
                out = model(
                    clip.audio if modality != "video" and clip.has_audio else None,
                    clip.video if modality != "audio" and clip.has_video else None,
                )
            torch.testing.assert_close(torch.from_numpy(row["logits"]), out.logits[0], rtol=1e-4, atol=1e-5)
            whole = [z[0] for z in (out.audio_embedding, out.video_embedding) if z is not None]
            if modality != "av":
                assert row["embedding"] is None
            elif len(whole) == 2:
                embedding = torch.from_numpy(row["embedding"]).float()
                torch.testing.assert_close(embedding, torch.cat(whole), rtol=1e-3, atol=1e-3)
    both, sound = (stacked(table[table["modality"] == m].iloc[:1], "logits") for m in ("av", "audio"))
    assert not torch.allclose(both, sound, atol=1e-3), "or withholding would have no effect"


def test_the_result_depends_neither_on_the_batch_size_nor_on_the_mode(val):
    model = make("mmt_t")
    want = predict(model, val)
    model.train()  # dropped paths would make noise
    got, _ = outputs(model, val, usable(val, "av"), "av", batch_size=5)
    torch.testing.assert_close(got, stacked(want[want["modality"] == "av"], "logits"), rtol=1e-4, atol=1e-5)


def test_a_split_without_sound_has_no_audio_rows(tmp_path):
    folder = write_features(tmp_path, silent=tuple(range(TRAIN, TRAIN + VAL)))
    table = predict(make("mmt_t"), FeatureDataset(folder, "val"))
    assert table["modality"].value_counts().to_dict() == {"av": VAL, "video": VAL}


def test_prediction_does_not_spoil_a_model_for_training(val):
    model = make("mmt_t")
    predict(model, val)
    batch = val.batch([0, 4])
    model.train()(batch.audio, batch.video).logits.sum().backward()


def test_predictions_come_back_from_disk_and_missing_ones_say_what_to_run(val, tmp_path):
    table = predict(make("mat_t"), val)
    table.to_parquet(tmp_path / "p.parquet", index=False)
    again = read_predictions(tmp_path / "p.parquet")
    assert torch.equal(stacked(again, "logits"), stacked(table, "logits"))
    pd.testing.assert_frame_equal(scores(again), scores(table))
    with pytest.raises(FileNotFoundError, match=r"gone.parquet does not exist.*mmt train --params FILE"):
        read_predictions(tmp_path / "gone.parquet")


# Several heads, several views.


def with_heads(folder) -> dict[str, list[str]]:
    """Give the toy set two heads, so that its four classes are the pairs of two verbs and two of three nouns."""
    heads = {"verb": ["open", "close"], "noun": ["door", "lid", "box"]}
    index = pd.read_csv(folder / "index.csv")
    number = index["label"].map(CLASSES.index)
    index["verb"], index["noun"] = np.take(heads["verb"], number // 2), np.take(heads["noun"], number % 2)
    index.to_csv(folder / "index.csv", index=False)
    described = json.loads((folder / "features.json").read_text()) | {"heads": heads}
    (folder / "features.json").write_text(json.dumps(described))
    return heads


def test_an_action_is_right_only_when_every_head_is(tmp_path):
    heads = with_heads(write_features(tmp_path))
    val = FeatureDataset(tmp_path, "val")
    model = build_model("mat_t", 5, **SIZES["mat_t"], **OVERRIDES["mat_t"])
    table = predict(model, val)
    logits = stacked(table, "logits")
    assert logits.shape == (VAL, 5)
    assert head_sizes(table) == {"verb": 2, "noun": 3}
    verb, noun = (torch.tensor([heads[name].index(word) for word in val.index[name]]) for name in heads)
    assert table["label_index"].tolist() == (3 * verb + noun).tolist()
    right_verb, right_noun = logits[:, :2].argmax(1) == verb, logits[:, 2:].argmax(1) == noun
    got = scores(table).iloc[0]
    assert got["verb_top1"] == pytest.approx(100 * right_verb.float().mean().item())
    assert got["noun_top1"] == pytest.approx(100 * right_noun.float().mean().item())
    assert got["top1"] == pytest.approx(100 * (right_verb & right_noun).float().mean().item())
    assert got["top5"] == got["verb_top5"] == got["noun_top5"] == 100.0


def test_a_model_of_two_heads_learns_both(tmp_path):
    with_heads(write_features(tmp_path / "features"))
    run = make_run("mmt_t", epochs=8, objective={"avc": 0.1, "imc": 0.1})
    trainer = Trainer(run, make_recipe(), seed=0, features=tmp_path / "features", runs=tmp_path, init={}, device="cpu")
    trainer.fit(log=lambda line: None)
    assert trainer.model.heads.audio_head.out_features == 5
    got = scores(predict(trainer.model, trainer.val)).set_index("modality").loc["av"]
    assert got["top1"] >= 75.0  # chance is 25
    assert min(got["verb_top1"], got["noun_top1"]) >= got["top1"]


def test_probabilities_of_a_clips_views_are_averaged(tmp_path):
    """Two rows of the same clip_id are two windows or crops of one clip."""
    write_features(tmp_path, silent=(TRAIN + 4, TRAIN + 5))
    plain = FeatureDataset(tmp_path, "val")
    model = make("mmt_t")
    plain.split = "test"  # of which embeddings are kept
    single = predict(model, plain)
    index = pd.read_csv(tmp_path / "index.csv")
    index["view"] = index.index % 2
    index["clip_id"] = [f"c{row // 2 * 2:02d}" for row in index.index]
    index.to_csv(tmp_path / "index.csv", index=False)
    paired = FeatureDataset(tmp_path, "val")
    paired.split = "test"
    table = predict(model, paired)
    assert table["modality"].value_counts().to_dict() == {"av": 6, "video": 6, "audio": 5}
    for modality, part in table.groupby("modality"):
        alone = single[single["modality"] == modality]
        want = stacked(alone, "logits").softmax(1).unflatten(0, (-1, 2)).mean(1)
        torch.testing.assert_close(stacked(part, "logits").exp(), want, rtol=1e-4, atol=1e-6)
        if modality == "av":
            want = stacked(alone, "embedding").float().unflatten(0, (-1, 2)).mean(1)
            torch.testing.assert_close(stacked(part, "embedding").float(), want, rtol=1e-2, atol=1e-3)
        assert part["clip_id"].tolist() == alone["clip_id"].tolist()[::2]
