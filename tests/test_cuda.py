"""What a GPU computes beside the CPU: `pytest -m cuda` on a machine that has one, skipped elsewhere.

MMT_TEST_DEVICE=cpu runs what does not need CUDA itself on the CPU, so that the tests can be tested anywhere.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from toy_features import AUDIO, MAT, MMT, MVIT, VIDEO, make_params, make_recipe, make_run, write_features

from mmtlib.config import Trial
from mmtlib.data.dataset import FeatureDataset
from mmtlib.evaluation.predictions import predict
from mmtlib.folders import Folders
from mmtlib.models import MODALITY, build_model
from mmtlib.models.hub import load_model
from mmtlib.training.loop import Trainer
from mmtlib.training.stage import train_runs
from study.timing import matmul_rate, step_memory

DEVICE = os.environ.get("MMT_TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="no CUDA GPU on this machine"),
]
needs_cuda = pytest.mark.skipif(DEVICE != "cuda", reason="of CUDA itself")
needs_two = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NCCL wants a GPU for each process")

STILL = {"drop_path": 0.0}  # which paths are dropped is drawn on the device, by another generator
SETTINGS = {
    "mat_t": MAT | STILL,
    "mvitv2_t": MVIT | STILL,
    "mmt_t": MMT | {"audio": MAT | STILL, "video": MVIT | STILL},
    "ast_t": {},
    "mbt_t": {"patch": [2, 8, 8]},
    "vit_video_t": {"patch": [2, 8, 8]},
    "resnet18_av": {},
}
SIZES = {"audio_size": AUDIO, "video_size": VIDEO}


@pytest.fixture(autouse=True, scope="module")
def _full_precision():
    """fp32 is to mean fp32, not TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> Path:
    return write_features(tmp_path_factory.mktemp("toy") / "features", silent=(0, 33), blind=(1, 34), noise=3.0)


def logits_and_gradient(model, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """fp32, on the CPU; the gradient of all parameters in one vector."""
    model.train().to(device)
    model.zero_grad()
    generator = torch.Generator().manual_seed(1)
    audio, video = torch.randn(6, 1, *AUDIO, generator=generator), torch.randn(6, 3, *VIDEO, generator=generator)
    with torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32):
        out = model.read(audio.to(device), video.to(device))
    torch.nn.functional.cross_entropy(out.logits.float(), torch.arange(6, device=device) % 4).backward()
    gradient = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return out.logits.detach().float().cpu(), torch.cat(gradient).float().cpu()


@pytest.mark.parametrize("name", SETTINGS)
def test_values_and_gradients_are_those_of_the_cpu(name):
    model = build_model(name, 4, **SIZES, **SETTINGS[name])
    want = logits_and_gradient(model, torch.float32, "cpu")
    got = logits_and_gradient(model, torch.float32, DEVICE)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * b.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("name", [name for name in SETTINGS if "resnet" not in name])  # BatchNorm of six clips
def test_half_precision_has_nearly_the_values_and_the_direction_of_the_gradient(name, dtype):
    model = build_model(name, 4, **SIZES, **SETTINGS[name])
    want = logits_and_gradient(model, torch.float32, "cpu")
    got = logits_and_gradient(model, dtype, DEVICE)
    torch.testing.assert_close(got[0], want[0], rtol=0.1, atol=0.1 * want[0].abs().max().item())
    assert torch.cosine_similarity(got[1], want[1], dim=0) > 0.98


@pytest.mark.parametrize("recompute", [True, "blocks"])
@pytest.mark.parametrize("name", ["mat_t", "mvitv2_t", "mmt_t"])
@pytest.mark.parametrize("dropped", [0.0, 0.5])
def test_recomputing_changes_nothing(name, recompute, dropped):
    found, state = [], None
    for again in (False, recompute):
        parts = {part: SETTINGS[part] | {"drop_path": dropped, "recompute": again} for part in ("mat_t", "mvitv2_t")}
        both = {"mmt_t": SETTINGS["mmt_t"] | {"audio": parts["mat_t"], "video": parts["mvitv2_t"]}}
        model = build_model(name, 4, **SIZES, **(parts | both)[name])
        state = model.state_dict() if state is None else state
        model.load_state_dict(state)
        torch.manual_seed(2)  # the same paths are dropped
        found.append(logits_and_gradient(model, torch.float32, DEVICE))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


@needs_cuda
def test_recomputing_takes_less_memory():
    used = []
    for recompute in (False, True, "blocks"):
        model = build_model("mat_t", 4, audio_size=(512, 128), recompute=recompute).cuda()
        clips = torch.randn(8, 1, 512, 128, device="cuda")
        used.append(step_memory(lambda model=model, clips=clips: model(clips).sum().backward(), torch.device("cuda")))
    assert used[1] < 0.9 * used[0]
    assert used[2] < 0.9 * used[1]


def test_channels_last_changes_nothing():
    model = build_model("resnet18_audio", 4)
    want = logits_and_gradient(model, torch.float32, DEVICE)[0]
    got = logits_and_gradient(model.to(memory_format=torch.channels_last), torch.float32, DEVICE)[0]
    torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-4)


@needs_cuda
@pytest.mark.parametrize("name", ["mat_t", "mvitv2_t"])
def test_compiled_models_compute_the_same(name):
    model = build_model(name, 4, **SIZES, **SETTINGS[name]).cuda().eval()
    clip = torch.randn(2, 1, *AUDIO, device="cuda") if MODALITY[name] == "audio" else torch.randn(2, 3, *VIDEO).cuda()
    with torch.inference_mode():
        torch.testing.assert_close(torch.compile(model)(clip), model(clip), rtol=1e-3, atol=1e-4)


def curve(features: Path, runs: Path, device: str, name: str = "mmt_t", **recipe) -> pd.DataFrame:
    objective = {"objective": {"avc": 0.1, "imc": 0.1}} if MODALITY[name] == "av" else {}
    run = make_run(name, overrides=SETTINGS[name], **objective)
    trainer = Trainer(run, make_recipe(**recipe), seed=0, features=features, runs=runs, init={}, device=device)
    return trainer.fit(log=lambda line: None).drop(columns="seconds")


@pytest.mark.parametrize("name", ["mmt_t", "mbt_t"])
def test_training_has_the_loss_curve_of_the_cpu(features, tmp_path, name):
    augmented = {"mixup": 0.4, "gain": 0.3, "noise": 0.1, "crop_scale": 0.6, "flip": True}  # drawn on the CPU
    curves = [curve(features, tmp_path / device, device, name, **augmented) for device in ("cpu", DEVICE)]
    pd.testing.assert_frame_equal(*curves, rtol=0.01, atol=0.01, check_dtype=False)


def test_the_same_seed_gives_the_same_curve(features, tmp_path):
    curves = [curve(features, tmp_path / str(number), DEVICE) for number in range(2)]
    pd.testing.assert_frame_equal(*curves, rtol=1e-4, atol=1e-4)


def test_bf16_learns_as_fp32_does(features, tmp_path):
    last = [curve(features, tmp_path / name, DEVICE, precision=name).iloc[-1] for name in ("fp32", "bf16")]
    assert last[1]["loss"] == pytest.approx(last[0]["loss"], rel=0.1)


def test_a_batch_in_parts_is_the_whole_batch(features, tmp_path):
    curves = [curve(features, tmp_path / str(parts), DEVICE, "mat_t", accumulate=parts) for parts in (1, 4)]
    pd.testing.assert_frame_equal(*curves, rtol=0.01, atol=0.01)


def test_predictions_are_those_of_the_cpu(features, tmp_path):
    folders = Folders(tmp_path, "toy")
    folders.features.parent.mkdir(parents=True)
    folders.features.symlink_to(features)
    (trained,) = train_runs("train_mmt", make_params(), folders, [Trial(0)])
    model, _ = load_model(trained.weights)
    test = FeatureDataset(features, "test")
    tables = [predict(model.to(device), test) for device in ("cpu", DEVICE)]
    logits = [torch.from_numpy(np.stack(table["logits"].tolist())) for table in tables]
    torch.testing.assert_close(*logits, rtol=1e-3, atol=1e-3)


@needs_cuda
@needs_two
def test_processes_on_gpus_of_their_own_train_what_one_does(features, tmp_path):
    found = []
    for nproc in (1, 2):
        folders = Folders(tmp_path / str(nproc), "toy")
        folders.features.parent.mkdir(parents=True)
        folders.features.symlink_to(features)
        run = make_run("mmt_t", overrides=SETTINGS["mmt_t"], objective={"avc": 0.1, "imc": 0.1})
        found += train_runs("train_mmt", make_params(make_recipe(nproc=nproc), train_mmt=run), folders, [Trial(0)])
    pd.testing.assert_frame_equal(*(one.history for one in found), rtol=0.01, atol=0.01)


@needs_cuda
def test_the_rate_of_products_is_a_gpus():
    device = torch.device("cuda")
    assert matmul_rate(torch.bfloat16, device, 4096) > matmul_rate(torch.float32, device, 4096) > 1000.0  # GFLOP/s
