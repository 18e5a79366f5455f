"""Training: one loop for every model, ours and the baselines alike.

A run is decided by its params, its seed, the features, the weights that it starts from and the code: their hash
names the folder runs/<hash>/ that holds its checkpoint. A run that was interrupted goes on from there with the
same result; a run with anything changed has another hash and can never pick up old weights.
"""

import hashlib
import math
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from mmtlib.data.augmentation import Augmenter, mixup
from mmtlib.data.dataset import Batch, FeatureDataset, epoch_batches, epoch_generator
from mmtlib.evaluation import batches, forward, predict, scores, topk_accuracy, usable
from mmtlib.files import digest, write_bytes
from mmtlib.losses import audio_video_contrastive, intra_modal_contrastive
from mmtlib.models import MODALITY, AVOutput, build_model
from mmtlib.models.mmt import MMT
from mmtlib.models.mvit import fit_tables
from mmtlib.models.weights import load_weights, save_model
from mmtlib.params import Objective, Recipe, Run


@dataclass(frozen=True)
class Trained:
    """What a run leaves: its files, its learning curve, and its scores on validation and test."""

    name: str
    seed: int
    weights: Path
    predictions: Path
    history: pd.DataFrame  # epoch, lr, loss, ce, avc, imc, val_loss, val_top1, seconds
    scores: pd.DataFrame  # split, modality, n, top1, top5


def train_runs(name: str, run: Run, recipe: Recipe, *, stage: str, seeds: list[int], workspace: Path) -> list[Trained]:
    """Train `run` once for each seed and keep weights, learning curve and predictions.

    Files: models/<stage>/<name>-seed<k>.safetensors and .csv (the learning curve), and
    predictions/<stage>/<name>-seed<k>.parquet, all below `workspace`. Raises DatasetError or WeightsError when
    an earlier stage has not run.
    """
    return [_train_one(name, run, recipe, stage, seed, Path(workspace)) for seed in seeds]


def _train_one(name: str, run: Run, recipe: Recipe, stage: str, seed: int, workspace: Path) -> Trained:
    init = {}
    if run.init == "pretrained":
        init = {
            "audio": workspace / f"models/pretrain_mat/pretrain_mat-seed{seed}.safetensors",
            "video": workspace / f"models/pretrain_mvit/pretrain_mvit-seed{seed}.safetensors",
        }
    trainer = Trainer(run, recipe, seed=seed, features=workspace / "data/features", runs=workspace / "runs", init=init)
    history = trainer.fit(log=lambda line: print(f"{name} seed {seed} | {line}", flush=True))
    weights = workspace / f"models/{stage}/{name}-seed{seed}.safetensors"
    save_model(
        weights,
        trainer.model,
        name=run.model,
        num_classes=len(trainer.train.classes),
        overrides=trainer.overrides,
        classes=list(trainer.train.classes),
        stats=trainer.train.stats,
        run=run.model_dump(),
        recipe=recipe.model_dump(),
        seed=seed,
    )
    write_bytes(weights.with_suffix(".csv"), history.drop(columns="seconds").to_csv(index=False).encode())
    test = FeatureDataset(workspace / "data/features", "test")  # read here for the first time
    predictions = pd.concat([predict(trainer.model, run.model, split) for split in (trainer.val, test)])
    path = workspace / f"predictions/{stage}/{name}-seed{seed}.parquet"
    write_bytes(path, predictions.to_parquet(index=False))
    return Trained(name, seed, weights, path, history, scores(predictions))


class Trainer:
    """One run of one seed: `fit()` trains, or goes on from the checkpoint of the same run."""

    def __init__(
        self,
        run: Run,
        recipe: Recipe,
        *,
        seed: int,
        features: Path,
        runs: Path,
        init: Mapping[str, Path],
        device: str | None = None,
    ):
        self.run, self.recipe, self.seed = run, recipe, seed
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.modality = modality_of(run.model)
        self.train = FeatureDataset(features, "train")
        self.val = FeatureDataset(features, "val")
        self.indices = usable(self.train, self.modality)
        for split in (self.train, self.val):
            if not len(usable(split, self.modality)):
                raise ValueError(f"{features}: no {split.split} clip has what {run.model} reads ({self.modality})")
        classes = list(self.train.classes)
        self.augment = Augmenter(
            classes,
            **recipe.spec_augment.model_dump(),
            crop_scale=recipe.crop_scale,
            flip=recipe.flip,
            flip_except=recipe.flip_except,
            gain=recipe.gain,
            noise=recipe.noise,
        )
        torch.manual_seed(seed)
        self.overrides = input_sizes(self.train) | run.overrides
        self.model = build_model(run.model, len(classes), **self.overrides)
        if init and not isinstance(self.model, MMT):
            raise ValueError(f"{run.model} has no encoders to start from; set its `init` to scratch")
        for part, path in init.items():
            load_encoder(getattr(self.model, f"{part}_encoder"), load_weights(path)[0])
        self.model.to(self.device)
        self.hash = digest(
            dict(
                run=run.model_dump(),
                recipe=recipe.model_dump(),
                seed=seed,
                features=self.train.fingerprint,
                init={part: digest(path.read_bytes()) for part, path in init.items()},
                code=source_digest(),
            )
        )
        self.checkpoint = Path(runs) / self.hash / "last.pt"
        steps = max(len(self.indices) // recipe.batch_size, 1)
        groups = parameter_groups(self.model, recipe.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=run.lr, fused=True)  # one call for all: 4 times faster on a CPU
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, warmup_cosine(round(recipe.warmup_epochs * steps), run.epochs * steps)
        )

    def fit(self, log: Callable[[str], None] = print) -> pd.DataFrame:
        """Train to the last epoch, keep the weights of the best one on validation, return the learning curve.

        The weights of the epoch with the highest validation top-1 (of equals, the lowest validation loss) stay
        in `self.model`. One line an epoch goes to `log`.
        """
        state = self._restore()
        if state is None:
            precision = choose_precision(self.recipe.precision, self._time_step, self.device, log)
            state = dict(epoch=0, precision=precision, history=[], best=None, best_key=None)
            log(f"{self.run.model}, {len(self.indices)} clips, {precision}, run {self.hash}")
        elif state["epoch"] < self.run.epochs:
            log(f"resumes after epoch {state['epoch']} of {self.run.epochs}, run {self.hash}")
        else:
            log(f"was trained already, run {self.hash}")
        bf16 = state["precision"] == "bf16"
        with _live(self.checkpoint.parent / "live") as live:
            for row in state["history"]:
                _log_live(live, row)
            for epoch in range(state["epoch"], self.run.epochs):
                started = time.perf_counter()
                row = {"epoch": epoch + 1, "lr": self.schedule.get_last_lr()[0]}
                row |= self._train_epoch(epoch, bf16) | self._validate()
                row["seconds"] = time.perf_counter() - started
                key = (row["val_top1"], -row["val_loss"])
                if state["best_key"] is None or key > tuple(state["best_key"]):
                    state["best_key"] = list(key)
                    state["best"] = {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}
                state["history"].append(row)
                state["epoch"] = epoch + 1
                self._save(state)
                _log_live(live, row)
                log(
                    f"epoch {epoch + 1:3d}/{self.run.epochs}  loss {row['loss']:.3f}  "
                    f"val loss {row['val_loss']:.3f}  val top-1 {row['val_top1']:.1f}  {row['seconds']:.1f} s"
                )
        self.model.load_state_dict(state["best"])
        return pd.DataFrame(state["history"])

    def _train_epoch(self, epoch: int, bf16: bool) -> dict[str, float]:
        self.model.train()
        # All randomness of an epoch follows from (seed, epoch), so that a resumed run draws what a whole one does.
        torch.manual_seed(self.seed * 100_003 + epoch)
        generator = epoch_generator(self.seed, epoch, "augmentation")
        totals: dict[str, float] = {}
        order = epoch_batches(len(self.indices), self.recipe.batch_size, self.seed, epoch, drop_last=True)
        count = 0
        for picks in order:
            batch = self.train.batch(self.indices[picks], self.modality, self.device)
            batch, targets = mixup(
                self.augment(batch, generator), len(self.train.classes), self.recipe.mixup, generator
            )
            parts = self.step(batch, targets, bf16)
            count += 1
            for name, value in parts.items():
                totals[name] = totals.get(name, 0.0) + value
        return {name: value / count for name, value in totals.items()}

    def step(self, batch: Batch, targets: Float[Tensor, "batch classes"], bf16: bool) -> dict[str, float]:
        """One optimiser step on one batch; returns the parts of the loss."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
            out = forward(self.model, batch, self.modality)
        loss, parts = training_loss(out, batch, targets, self.run.objective, self.recipe.label_smoothing)
        if not math.isfinite(parts["loss"]):
            raise FloatingPointError(
                f"the loss of {self.run.model} is {parts['loss']}; lower `lr` or set `training.precision: fp32`"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if self.recipe.clip_norm > 0:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.optimizer.step()
        self.schedule.step()
        return parts

    @torch.inference_mode()
    def _validate(self) -> dict[str, float]:
        self.model.eval()
        logits, labels = [], []
        for batch in batches(self.val, self.modality, self.device):
            out = forward(self.model, batch, self.modality)
            logits.append((out.logits if isinstance(out, AVOutput) else out).float().cpu())
            labels.append(batch.labels.cpu())
        logits, labels = torch.cat(logits), torch.cat(labels)
        return {
            "val_loss": F.cross_entropy(logits, labels).item(),
            "val_top1": topk_accuracy(logits, labels, 1),
        }

    def _time_step(self, bf16: bool) -> float:
        """Seconds of a forward and backward pass on one batch, for the choice of precision; changes no weight."""
        batch = self.train.batch(self.indices[: self.recipe.batch_size], self.modality, self.device)
        times = []
        for _ in range(3):
            self._wait()
            started = time.perf_counter()
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
                out = forward(self.model, batch, self.modality)
            training_loss(out, batch, batch.labels, self.run.objective, 0.0)[0].backward()
            self._wait()
            times.append(time.perf_counter() - started)
        self.model.zero_grad(set_to_none=True)
        return min(times)

    def _wait(self) -> None:
        """Until the device has done what it was asked: a GPU works on after the call has returned."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def _save(self, state: dict) -> None:
        """Write the checkpoint, whole or not at all."""
        self.checkpoint.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.checkpoint.with_suffix(".tmp")
        parts = dict(model=self.model, optimizer=self.optimizer, schedule=self.schedule)
        torch.save(state | {name: part.state_dict() for name, part in parts.items()}, temporary)
        os.replace(temporary, self.checkpoint)

    def _restore(self) -> dict | None:
        if not self.checkpoint.is_file():
            return None
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        for name in ("model", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state.pop(name))
        return state


def training_loss(
    out: Tensor | AVOutput, batch: Batch, targets: Tensor, objective: Objective, label_smoothing: float
) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy + avc * AVC + imc * IMC of one batch, and the value of each part.

    `targets` of the cross-entropy are labels, or soft labels under mixup; the contrastive losses take each clip's
    own label (our reading), and only clips that have the modality.
    """
    if not isinstance(out, AVOutput):
        loss = F.cross_entropy(out.float(), targets, label_smoothing=label_smoothing)
        return loss, {"loss": loss.item(), "ce": loss.item()}
    loss = F.cross_entropy(out.logits.float(), targets, label_smoothing=label_smoothing)
    parts = {"ce": loss.item()}
    if objective.avc > 0:
        both = batch.has_audio & batch.has_video
        avc = audio_video_contrastive(
            out.audio_embedding[both], out.video_embedding[both], batch.labels[both], objective.temperature
        )
        loss, parts["avc"] = loss + objective.avc * avc, avc.item()
    if objective.imc > 0:
        imc = sum(
            intra_modal_contrastive(z[has], batch.labels[has], objective.temperature)
            for z, has in ((out.audio_embedding, batch.has_audio), (out.video_embedding, batch.has_video))
        )
        loss, parts["imc"] = loss + objective.imc * imc, imc.item()
    return loss, {"loss": loss.item()} | parts


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """AdamW's groups: no weight decay on 1-D parameters (norms, biases), nor on tokens and position tables."""
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        table = any(word in name for word in ("token", "position", "rel_pos", "bottleneck", "modality"))
        (plain if parameter.ndim <= 1 or table else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def warmup_cosine(warmup_steps: int, steps: int) -> Callable[[int], float]:
    """Learning-rate factor of a step: linear warm-up, then half a cosine down to 0."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = (step - warmup_steps) / max(steps - warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    return factor


def choose_precision(
    wanted: str, time_step: Callable[[bool], float], device: torch.device, log: Callable[[str], None]
) -> str:
    """fp32 or bf16: as wanted, or for "auto" whichever a quick measurement on this machine finds faster."""
    if wanted != "auto":
        return wanted
    fp32, bf16 = time_step(False), time_step(True)
    chosen = "bf16" if bf16 < fp32 else "fp32"
    log(f"precision auto: a step takes {fp32:.3f} s in fp32, {bf16:.3f} s in bf16 on {device.type}; takes {chosen}")
    return chosen


def input_sizes(dataset: FeatureDataset) -> dict[str, list[int]]:
    """The sizes of a data set's inputs, as `build_model` takes them: (time, mel) and (T, H, W)."""
    return {"audio_size": dataset.stats["log_mel"]["shape"][1:], "video_size": dataset.stats["frames"]["shape"][1:4]}


def modality_of(model: str) -> str:
    """What a model reads, "audio", "video" or "av"; ValueError for an unknown name."""
    if model not in MODALITY:
        raise ValueError(f"no model is called {model!r}; the names are {', '.join(MODALITY)}")
    return MODALITY[model]


def load_encoder(encoder: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Start an encoder of MMT from a trained MAT or MViTv2: all of its `encoder.` weights, head left out.

    One that was trained at another input size has its position tables interpolated. Raises ValueError for one of
    another shape.
    """
    own = {key.removeprefix("encoder."): value for key, value in tensors.items() if key.startswith("encoder.")}
    try:
        encoder.load_state_dict(fit_tables(own, encoder.state_dict()))
    except RuntimeError as error:
        raise ValueError(
            "the pretrained encoder does not fit this model; give pretrain_mat, pretrain_mvit and this run the "
            "same `overrides`"
        ) from error


def source_digest() -> str:
    """Hash of the code that decides what training computes, so that changed code never resumes old weights."""
    package = Path(__file__).parent
    files = [*package.glob("models/*.py"), package / "losses.py", package / "training.py"]
    files += [package / "data/augmentation.py", package / "data/dataset.py"]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()


def _live(folder: Path):
    from dvclive import Live  # slow to import

    return Live(str(folder), save_dvc_exp=False, dvcyaml=None, report=None, monitor_system=False)


def _log_live(live, row: dict) -> None:
    live.step = int(row["epoch"])
    for name, value in row.items():
        if name not in ("epoch", "seconds"):
            live.log_metric(name, float(value))
    live.make_summary()
