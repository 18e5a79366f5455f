"""What training computes has not changed unnoticed: kept runs are found by settings, not by the text of the code."""

import pytest
from toy_features import make_recipe, make_run, write_features

from mmtlib.models import MODALITY
from mmtlib.training.experiment import NUMERICS
from mmtlib.training.loop import Trainer

# The mean losses of three steps and of the validation after them. No paths are dropped: which ones are depends on
# the platform's random numbers. Raise NUMERICS of a family and write down its new losses where a change is meant.
LOSSES = {
    "mat": {"ce": 2.259408, "val_loss": 1.574444, "val_top1": 45.4545},
    "ast": {"ce": 1.698042, "val_loss": 1.264663, "val_top1": 36.3636},
    "mvitv2": {"ce": 2.010671, "val_loss": 1.582394, "val_top1": 36.3636},
    "mmt": {"ce": 2.161624, "avc": 2.099983, "imc": 4.339053, "val_loss": 1.395613, "val_top1": 41.6667},
    "mbt": {"ce": 1.211383, "avc": 2.130436, "imc": 3.914800, "val_loss": 0.775381, "val_top1": 66.6667},
    "resnet18": {"ce": 1.380765, "avc": 2.009761, "imc": 3.835435, "val_loss": 1.394350, "val_top1": 25.0},
    "vit_audio": {"ce": 1.819858, "val_loss": 1.275289, "val_top1": 54.5455},
    "vit_video": {"ce": 1.489155, "val_loss": 0.575167, "val_top1": 72.7273},
}
RECIPE = {
    "batch_size": 10,  # of 32 clips: three steps
    "label_smoothing": 0.1,
    "spec_augment": {"time_masks": 1, "time_width": 8, "freq_masks": 1, "freq_width": 6},
    "crop_scale": 0.6,
    "flip": True,
    "flip_except": ["dog"],
    "mixup": 0.4,
    "gain": 0.3,
    "noise": 0.3,
}
MODELS = {"resnet18": "resnet18_av"}  # else the tiny one of the family
LR = {"resnet18": 1e-5}  # at 1e-3 its losses differ by a thousandth from one convolution's algorithm to another's
STILL = {"drop_path": 0.0}
OVERRIDES = {"mat": STILL, "mvitv2": STILL, "mmt": {"audio": STILL, "video": STILL}}


@pytest.mark.parametrize("family", NUMERICS)
def test_three_steps_and_a_validation_give_the_losses_written_down(family, tmp_path):
    features = write_features(tmp_path / "features", silent=(1, 33), blind=(2, 34), noise=6.0)
    name = MODELS.get(family, f"{family}_t")
    both = {"objective": {"avc": 0.1, "imc": 0.1}, "modality_dropout": 0.2} if MODALITY[name] == "av" else {}
    run = make_run(name, epochs=1, lr=LR.get(family, 1e-3), overrides=OVERRIDES.get(family, {}), **both)
    options = dict(seed=3, features=features, runs=tmp_path / "runs", init={}, device="cpu")
    (row,) = Trainer(run, make_recipe(**RECIPE), **options).fit(log=lambda _: None).to_dict("records")
    found = {name: row[name] for name in ("ce", "avc", "imc", "val_loss", "val_top1") if name in row}
    assert found == pytest.approx(LOSSES[family], rel=1e-4), (
        f"training of {family} computes something else: bump NUMERICS of this family, or undo"
    )
