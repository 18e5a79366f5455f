"""The training loop: one for every model, ours and the baselines alike.

A run's key (experiment.py) names the folder runs/<key>-<features>/ that holds its checkpoint. A run that was
interrupted goes on from there with the same result; a run with anything changed has another key and can never pick up
old weights.

On several GPUs or machines each process trains on its share of every batch (DistributedDataParallel). What is trained
does not depend on their number, but for the partners of mixup, which each finds among its own clips, and for ResNet-18,
whose batch normalisation takes each one's clips by themselves.
"""

import io
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext, suppress
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mmtlib.config import ParamsError, Recipe, Run, Trial
from mmtlib.data.augment import Augmenter, Draws, mixup, modality_dropout
from mmtlib.data.dataset import Batch, FeatureDataset, epoch_batches, epoch_generator, one_view, share_of, views_of
from mmtlib.distributed import gather_objects, rank, ranks
from mmtlib.evaluation.predictions import outputs, predict, usable
from mmtlib.evaluation.scores import hits, label_scores, thresholds
from mmtlib.files import write_bytes
from mmtlib.models import build_model
from mmtlib.models.base import Reading
from mmtlib.models.build import modality_of
from mmtlib.models.hub import save_model
from mmtlib.models.published import start
from mmtlib.training import optim
from mmtlib.training.experiment import key_of, parts_of, plain


class Trainer:
    """One run of one seed (and fold): `fit()` trains, or goes on from the checkpoint of the same run."""

    def __init__(
        self,
        run: Run,
        recipe: Recipe,
        *,
        seed: int,
        fold: int | None = None,
        features: Path,
        runs: Path,
        init: Mapping[str, Path],
        device: str | None = None,
    ):
        self.run, self.recipe, self.seed = run, recipe, seed
        self.device = choose_device(device)
        self.modality = modality_of(run.model)
        if self.modality != "av" and (run.objective.avc > 0 or run.modality_dropout > 0 or run.robustness):
            alone = f"{run.model} reads {self.modality} alone"
            raise ParamsError(f"{alone}: AVC, modality dropout and robustness are not for it; switch them off.")
        self.train, self.val = (FeatureDataset(features, split, fold) for split in ("train", "val"))
        rows = share_of(self.train, usable(self.train, self.modality), run.train_share)
        self.views = views_of(self.train, rows)
        self.weights = None  # of the clips, by which they are drawn
        if recipe.balanced:  # as AST's authors draw AudioSet's clips
            labels = self.train.labels[[rows[0] for rows in self.views]].split(4096)  # to bound the memory
            counts = sum(optim.one_hot(part, self.train.sizes).sum(0) for part in labels)
            self.weights = torch.cat([optim.one_hot(x, self.train.sizes) @ (1 / counts.clamp(min=1)) for x in labels])
        self.passes = round(run.train_share**-0.5)  # over the clips in an epoch: fewer clips are seen more often
        for split in (self.train, self.val):
            if not len(usable(split, self.modality)):
                raise ValueError(f"{features}: no {split.split} clip has what {run.model} reads ({self.modality})")
        self.sizes = self.train.sizes
        if max(self.sizes) == 1 and not self.train.multilabel:
            raise ValueError(f"{features}: all clips are of one class, so nothing is told apart; add clips of another")
        self.score = "mAP" if self.train.multilabel else "top-1"  # which of validation decides
        self.batch_size = self._divide(recipe.batch_size)
        self.augment = Augmenter(self.train.classes, recipe)
        torch.manual_seed(seed)
        self.model = build_model(run.model, self.train.num_logits, **input_sizes(self.train) | run.overrides)
        self.origins = {part: start(self.model, part, path) for part, path in init.items()}
        self.model.to(self.device)
        self.parallel: nn.Module = Reading(self.model)
        if ranks() > 1:
            contrast = max(run.objective.avc, run.objective.imc) > 0
            gpu = [torch.cuda.current_device()] if self.device.type == "cuda" else None
            self.parallel = DistributedDataParallel(
                self.parallel, device_ids=gpu, find_unused_parameters=self.modality == "av" and not contrast
            )
        encoders = {part: own["key"] for part, own in self.origins.items()}
        self.key = key_of(parts_of(run, recipe, Trial(seed, fold), self.train.identity, encoders))
        # Weights differ where the features do, be it in the last bits; the key does not (see FeatureDataset).
        self.checkpoint = Path(runs) / f"{self.key}-{self.train.fingerprint[:8]}" / "last.pt"
        steps = self.passes * max(len(self.views) // recipe.batch_size, 1)  # in an epoch
        groups = optim.parameter_groups(self.model, recipe.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=run.lr, fused=True)  # one call for all: 4 times faster on a CPU
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, optim.warmup_cosine(round(recipe.warmup_epochs * steps), run.epochs * steps)
        )

    def fit(self, log: Callable[[str], None] = print) -> pd.DataFrame:
        """Train to the last epoch, keep the weights of the best one on validation, return the learning curve.

        The weights of the epoch with the highest validation top-1, or mAP (of equals, the lowest validation loss), stay
        in `self.model`. One line an epoch goes to `log`, from the first rank.
        """
        log = log if rank() == 0 else lambda line: None
        state = self._restore()
        if state is None:
            precision = optim.choose_precision(self.recipe.precision, self.device)
            state = dict(epoch=0, precision=precision, history=[], best=None, best_key=None)
            log(f"{self.run.model}, {len(self.views)} clips, {precision}, run {self.key}")
        elif state["epoch"] < self.run.epochs:
            log(f"resumes after epoch {state['epoch']} of {self.run.epochs}, run {self.key}")
        else:
            log(f"was trained already, run {self.key}")
        bf16 = state["precision"] == "bf16"
        if bf16 and state["epoch"] < self.run.epochs and optim.emulates_bf16(self.device):
            log("note: this processor has no bf16 of its own; training.precision: fp32 may be far faster")
        for epoch in range(state["epoch"], self.run.epochs):
            started = time.perf_counter()
            row = {"epoch": epoch + 1, "lr": self.schedule.get_last_lr()[0]}
            row |= self._train_epoch(epoch, bf16) | self._validate()
            row["seconds"] = time.perf_counter() - started
            key = (row["val_map" if self.train.multilabel else "val_top1"], -row["val_loss"])
            if state["best_key"] is None or key > tuple(state["best_key"]):
                state["best_key"] = list(key)
                state["best"] = {k: v.detach().cpu().clone() for k, v in self.model.state_dict().items()}
            state["history"].append(row)
            state["epoch"] = epoch + 1
            self._save(state)
            log(
                f"epoch {epoch + 1:3d}/{self.run.epochs}  loss {row['loss']:.3f}  "
                f"val loss {row['val_loss']:.3f}  val {self.score} {key[0]:.1f}  {row['seconds']:.1f} s"
            )
        self.model.load_state_dict(state["best"])
        self.model.about["precision"] = state["precision"]
        if self.train.multilabel:  # not in `save`, which one rank calls: ranks predict together
            self.model.about["thresholds"] = thresholds(predict(self.model, self.val))
        return pd.DataFrame(state["history"])

    def _divide(self, batch_size: int) -> int:
        """Clips in an optimiser step: `batch_size`, or as many as there are, in equal parts for all ranks."""
        parts = self.recipe.accumulate * ranks()
        if batch_size % parts:
            raise ParamsError(
                f"training.batch_size {batch_size} is no multiple of {self.recipe.accumulate} (training.accumulate) x "
                f"{ranks()} (processes); change one of them."
            )
        found = min(batch_size, len(self.views)) // parts * parts
        if not found:
            raise ParamsError(f"{len(self.views)} train clips are too few for {parts} parts of a batch; use fewer.")
        return found

    def _plan(self, epoch: int) -> Iterator[Tensor]:
        """This rank's clips in each part of a batch, in order."""
        for number in range(epoch * self.passes, (epoch + 1) * self.passes):
            indices = one_view(self.views, epoch_generator(self.seed, number, "views"))
            for picks in epoch_batches(len(self.views), self.batch_size, self.seed, number, self.weights):
                for part in picks.split(self.batch_size // self.recipe.accumulate):
                    yield indices[part.chunk(ranks())[rank()]]

    def _train_epoch(self, epoch: int, bf16: bool) -> dict[str, float]:
        self.model.train()
        # All randomness of an epoch follows from (seed, epoch), so that a resumed run draws what a whole one does.
        torch.manual_seed(self.seed * 100_003 + epoch)
        draws = Draws(epoch_generator(self.seed, epoch, "augmentation"), rank(), ranks())
        totals: Counter[str] = Counter()
        for number, batch in enumerate(self.train.stream(self._plan(epoch), self.modality, self.device), start=1):
            targets = optim.one_hot(batch.labels, self.sizes)
            batch, targets = mixup(self.augment(batch, draws), targets, self.recipe.mixup, draws)
            batch = modality_dropout(batch, self.run.modality_dropout, draws)
            last = number % self.recipe.accumulate == 0
            with suppress(torch.OutOfMemoryError):
                totals.update(self.step(batch, targets, bf16, last))
                continue
            raise ParamsError(self._too_many(batch, targets, bf16))  # here no traceback holds the step's tensors
        everyone = gather_objects(totals)
        return {name: sum(own[name] for own in everyone) / (number * ranks()) for name in totals}

    def _too_many(self, batch: Batch, targets: optim.Logits, bf16: bool) -> str:
        """What to say where the GPU has no memory for a part of a batch; by halving, how many clips it has it for."""
        size = fits = len(batch.labels)
        while fits := fits // 2 if ranks() == 1 else 0:  # of several ranks the others would wait
            self.optimizer.zero_grad()
            with suppress(torch.OutOfMemoryError):
                self.step(Batch(*(x if x is None else x[:fits] for x in batch)), targets[:fits], bf16, last=False)
                break
        parts = self.recipe.accumulate * next((n for n in range(1, size) if size % n == 0 and size // n <= fits), size)
        remedy = f", but for {fits}; set training.accumulate: {parts}" if fits else "; raise training.accumulate"
        return f"The GPU has no memory for {size} clips of {self.run.model}{remedy}."

    def step(self, batch: Batch, targets: optim.Logits, bf16: bool, last: bool = True) -> dict[str, float]:
        """Add the gradient of a batch, or of a part of one, and after the `last` part let the optimiser step.

        Returns the parts of the loss.
        """
        with nullcontext() if last or ranks() == 1 else self.parallel.no_sync():
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=bf16):
                out = self.parallel(batch.audio, batch.video, batch.has_audio, batch.has_video)
            loss, parts = optim.training_loss(
                out, batch, targets, self.run.objective, self.recipe.label_smoothing, self.sizes
            )
            if not math.isfinite(parts["loss"]):
                raise FloatingPointError(
                    f"the loss of {self.run.model} is {parts['loss']}; lower `lr` or set `training.precision: fp32`"
                )
            (loss / self.recipe.accumulate).backward()
        if last:
            if self.recipe.clip_norm > 0:
                nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.schedule.step()
        return parts

    def _validate(self) -> dict[str, float]:
        for buffer in self.model.buffers() if ranks() > 1 else ():  # DDP shares them before a step alone
            torch.distributed.broadcast(buffer, 0)
        indices = usable(self.val, self.modality)
        logits, _ = outputs(self.model, self.val, indices, self.modality)
        labels = self.val.labels[indices]
        loss = optim.cross_entropy(logits, optim.one_hot(labels, self.sizes), self.sizes).item()
        if self.train.multilabel:
            return {"val_loss": loss, "val_map": label_scores(logits, labels)["map"]}
        return {"val_loss": loss, "val_top1": 100.0 * hits(logits, labels, 1, self.sizes).all(1).float().mean().item()}

    def save(self, path: Path) -> None:
        """Write the weights, with all that their use needs."""
        data = {"heads": self.train.heads, "stats": self.train.stats, "clips": len(self.views)}
        run = {"run": plain(self.run), "recipe": self.recipe.model_dump(), "seed": self.seed, "key": self.key}
        save_model(path, self.model, **data, **run, encoders=self.origins)

    def _save(self, state: dict) -> None:
        """Write the checkpoint, whole or not at all; it is the same on all ranks."""
        if rank() > 0:
            return
        parts = dict(model=self.model, optimizer=self.optimizer, schedule=self.schedule)
        buffer = io.BytesIO()  # torch.save itself does not say what went wrong with a file
        torch.save(state | {name: part.state_dict() for name, part in parts.items()}, buffer)
        for half in self.checkpoint.parent.glob(f".{self.checkpoint.name}.*"):  # a process was killed writing it
            half.unlink()
        write_bytes(self.checkpoint, buffer.getbuffer())

    def _restore(self) -> dict | None:
        if not self.checkpoint.is_file():
            return None
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        for name in ("model", "optimizer", "schedule"):
            getattr(self, name).load_state_dict(state.pop(name))
        return state


def input_sizes(dataset: FeatureDataset) -> dict[str, list[int]]:
    """The sizes of a data set's inputs, as `build_model` takes them: (time, mel) and (T, H, W)."""
    return {"audio_size": dataset.stats["log_mel"]["shape"][1:], "video_size": dataset.stats["frames"]["shape"][1:4]}


def choose_device(wanted: str | None = None) -> torch.device:
    """The device asked for, else this process's GPU, else the CPU."""
    gpu = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    return torch.device(wanted or gpu)
