"""Typed, checked parameters: one pydantic model for each section of params.yaml.

Every field states its unit and range here; params.yaml carries the values. A section is named like the stage
(and the notebook) that it belongs to; `seeds` and `training` are shared by the training stages.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, GetPydanticSchema, JsonValue, model_validator

from mmtlib.overlays import ROOT, STAGES, ParamsError, compose, put, whole_row
from mmtlib.sections import Section, check


def workspace(path: str | Path = ".") -> Path:
    """Return the workspace folder as an absolute path; a relative one is taken from the repository root.

    JupyterLab and nbval run a notebook in `notebooks/`, DVC in the root: both must find the same folder.
    """
    return (ROOT / Path(path).expanduser()).resolve()


# A name that is safe in file names and on command lines: lower-case letters, digits, `_` and `-`.
Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=64)]

Seed = Annotated[int, Field(ge=0, lt=2**31)]


def _wanted(words: str) -> GetPydanticSchema:
    """What must be given where a value is of none of a union's types, in the place of a sentence for each of them."""
    error = {"custom_error_type": "none_of_these", "custom_error_message": words}
    return GetPydanticSchema(lambda union, handler: handler(union) | error)


Address = Annotated[str, Field(pattern=r"^[a-z]+://\S+:\d+$")]
# Processes of this machine (0: one for each core), or the address of a Dask scheduler.
Workers = Annotated[
    Annotated[int, Field(ge=0)] | Address, _wanted("a number of processes from 0 up or a scheduler's address")
]
Names = Annotated[str | Annotated[list[str], Field(min_length=1)], _wanted("a name or a list of names")]
File = Annotated[str, Field(pattern=r"\.safetensors$")]
Start = Annotated[
    Literal["scratch", "pretrained", "imagenet", "kinetics", "audioset"] | File,
    _wanted("scratch, pretrained, imagenet, kinetics, audioset or a .safetensors file"),
]
# Source -> the settings that it needs, and those that it may have.
TAKES = {
    "freedoom-sounds": (["seed", "clips_per_class"], ["class_list"]),
    "vggsound": (["annotations", "media"], ["val_share", "follow_links"]),
    "kinetics-sounds": (["annotations", "media", "class_list"], ["val_share", "follow_links"]),
    "epic-kitchens-100": (["annotations", "media"], ["val_share", "follow_links"]),
    "ucf101": (["annotations", "media"], ["class_list", "follow_links"]),
    "esc50": (["media"], ["annotations", "class_list", "follow_links"]),
    "urbansound8k": (["media"], ["annotations", "follow_links"]),
    "grid": (["media"], ["annotations", "follow_links"]),
    "folder": (["media"], ["annotations", "val_share", "follow_links"]),
}
CLASS_LISTS = {
    "kinetics-sounds": ["kinetics-sounds-31", "kinetics-sounds-32"],
    "esc50": ["esc-10"],
    "ucf101": ["all", "sound"],
    "freedoom-sounds": ["freedoom-sounds-2"],
}  # of the sources that have named ones


class Trial(NamedTuple):
    """One training of a run."""

    seed: int
    fold: int | None = None  # the one that is the test; None: the set has its own splits

    def __str__(self) -> str:
        return f"seed {self.seed}" + ("" if self.fold is None else f" fold {self.fold}")


class ClipsPerClass(Section):
    """How many clips of each class a split holds."""

    train: int = Field(ge=1, description="clips")
    val: int = Field(ge=1, description="clips")
    test: int = Field(ge=1, description="clips")


class Download(Section):
    """Stage `download`: the clips and their manifest, generated or from files that are there already."""

    source: Literal[*TAKES] = Field(description="name of the data set")
    seed: Seed | None = Field(default=None, description="of the generated set; the same seed gives the same clips")
    clips_per_class: ClipsPerClass | None = Field(default=None, description="of the generated set")
    annotations: str | None = Field(default=None, description="a real set's official CSV file, or their folder")
    media: str | None = Field(default=None, description="folder of a real set's files; relative: to the repository")
    class_list: Names | None = Field(default=None, description="a named list of the set, or UCF101's classes")
    val_share: float = Field(default=0.05, ge=0, lt=1, description="of a real set's train clips, held out as val")
    follow_links: bool = Field(default=False, description="take what links lead to out of `media`, too")
    workers: Workers

    @model_validator(mode="after")
    def _settings_of_the_source(self) -> "Download":
        needed, more = TAKES[self.source]
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if name in needed and value is None:
                raise ValueError(f"{name} is missing, which {self.source} needs; add it")
            if name not in ("source", "workers", *needed, *more) and value != field.default:
                raise ValueError(f"{name} means nothing to {self.source}; remove it")
        lists, own = CLASS_LISTS.get(self.source, []), self.source == "ucf101"  # whose classes may be listed by name
        if self.class_list not in (None, *lists) and not (own and isinstance(self.class_list, list)):
            wanted = " or ".join([*lists, "a list of its classes"] if own else lists)
            raise ValueError(f"class_list is {json.dumps(self.class_list)} but must be {wanted}; change it")
        return self


class ViewSettings(Section):
    """What the arrays of the stage `features` depend on; a view is a window of a clip, a row of them."""

    sample_rate: int = Field(ge=4000, le=96000, description="Hz, mono")
    mel_bins: int = Field(ge=8, le=512, description="mel bands")
    window_ms: float = Field(gt=0, le=200, description="ms, length of the STFT window")
    hop_ms: float = Field(gt=0, le=200, description="ms between two windows")
    frames: int = Field(ge=1, le=256, description="RGB frames for each clip, evenly spaced")
    size: int = Field(ge=16, le=512, description="pixels, height and width of a frame")
    seconds: float = Field(gt=0, le=60, description="s of a clip that are used")
    clips: int = Field(default=1, ge=1, le=100, description="windows of a test clip, evenly spaced")
    crops: Literal[1, 3] = Field(default=1, description="crops of each window of a test clip")
    snr: float | None = Field(default=None, description="dB of the audio over white noise added to it; null = none")
    region: list[float] | None = Field(
        default=None, min_length=4, max_length=4, description="left, top, right, bottom, as shares; null = all"
    )
    motion: bool = Field(default=False, description="take their mean from the frames of a clip: what moves is left")

    @model_validator(mode="after")
    def _overlap(self) -> "ViewSettings":
        if self.hop_ms > self.window_ms:
            raise ValueError(f"hop_ms {self.hop_ms} leaves gaps between windows of {self.window_ms} ms; lower hop_ms")
        left, top, right, bottom = self.region or (0, 0, 1, 1)
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise ValueError(f"region {self.region} must be [left, top, right, bottom] from 0 to 1; correct it")
        if self.motion and self.frames == 1:
            raise ValueError("motion true leaves nothing of frames 1; raise frames or set motion: false")
        return self


class Features(ViewSettings):
    """Stage `features`: decode the clips into log-mel spectrograms and frames."""

    cache: bool = Field(default=True, description="keep the arrays; false = decode again for every batch")
    workers: Workers


class SpecAugment(Section):
    """Masks over the log-mel spectrogram (Park et al. 2019, without the time warp); 0 masks switch it off."""

    time_masks: int = Field(ge=0, le=16, description="masks along time")
    time_width: int = Field(ge=0, description="spectrogram frames, the widest time mask")
    freq_masks: int = Field(ge=0, le=16, description="masks along frequency")
    freq_width: int = Field(ge=0, description="mel bands, the widest frequency mask")


class Recipe(Section):
    """Section `training`: what every run shares, ours and the baselines alike."""

    batch_size: int = Field(ge=2, description="clips in an optimiser step, over all ranks")
    nproc: int = Field(default=1, ge=1, le=64, description="processes on this machine; torchrun overrides it")
    accumulate: int = Field(default=1, ge=1, description="parts of a batch, in turn; AVC and IMC see one each")
    kept: str | None = Field(default=None, description="folder of finished runs' predictions, taken; null = train all")
    balanced: bool = Field(default=False, description="draw clips with replacement, those of rare classes more often")
    weight_decay: float = Field(ge=0, le=1, description="AdamW, matrices only")
    warmup_epochs: float = Field(ge=0, description="epochs of linear warm-up before the cosine decay")
    label_smoothing: float = Field(ge=0, lt=1, description="probability mass spread over all classes")
    clip_norm: float = Field(ge=0, description="largest gradient norm; 0 = no clipping")
    spec_augment: SpecAugment
    crop_scale: float = Field(gt=0, le=1, description="smallest share of the area in a random crop; 1 = off")
    flip: bool = Field(description="mirror a clip's frames left to right, half the time")
    flip_except: list[str] = Field(description="classes that a mirror image would turn into others")
    mixup: float = Field(ge=0, le=10, description="alpha of the beta distribution; 0 = off")
    gain: float = Field(ge=0, le=10, description="largest change of loudness, standard deviations of the log-mel")
    noise: float = Field(ge=0, le=10, description="loudest added white noise, in the same unit; 0 = off")
    precision: Literal["auto", "fp32", "bf16"] = Field(description="auto = bf16 on a GPU that has it")


class Objective(Section):
    """Cross-entropy + avc * AVC + imc * IMC."""

    avc: float = Field(default=0.0, ge=0, le=100, description="weight of the audio-video contrastive loss")
    imc: float = Field(default=0.0, ge=0, le=100, description="weight of the intra-modal contrastive loss")
    temperature: float = Field(default=0.1, gt=0, le=10, description="divides the cosine similarities")


class Run(Section):
    """Sections `pretrain_mat`, `pretrain_mvit` and `train_mmt`: one model and its schedule."""

    model: Slug = Field(description="name known to mmtlib.models.build_model")
    epochs: int = Field(ge=1, le=10000, description="passes over the training split")
    lr: float = Field(gt=0, le=1, description="peak learning rate of AdamW")
    objective: Objective = Objective()
    overrides: dict[str, JsonValue] = Field(default={}, description="keyword arguments of build_model")
    init: Start = Field(default="scratch", description="pretrained = this study's encoders; other data: the rest")
    encoders: dict[Literal["audio", "video"], Slug] = Field(
        default={}, description="stage or row that each encoder comes from; empty = pretrain_mat and pretrain_mvit"
    )
    train_share: float = Field(default=1.0, gt=0, le=1, description="of each class's train clips, encoders' too")
    modality_dropout: float = Field(default=0.0, ge=0, lt=1, description="share of train clips that lose one modality")
    robustness: bool = Field(default=False, description="read the test clips corrupted, too (models of both)")


class Ablation(Run):
    """One row of the table `ablations`, named by its key."""

    group: Literal[
        "baseline", "parameters", "longer", "init", "objective", "fusion", "pooling", "dropout", "data", "search"
    ] = Field(description="block of the report")
    seeds: list[Seed] | None = Field(default=None, min_length=1, description="of this row; null = those of all runs")
    folds: list[int] | None = Field(default=None, min_length=1, description="of this row; null = those of all runs")


class Report(Section):
    """Stage `report`: the tables and figures."""

    bootstrap: int = Field(ge=100, le=100_000, description="resamples behind each confidence interval")
    confidence: float = Field(gt=0.5, lt=1, description="level of the intervals")


class Params(Section):
    """The whole of params.yaml."""

    study: Slug = Field(description="folder of its data, models, predictions and report")
    seeds: list[Seed] = Field(min_length=1, description="one training run for each seed")
    folds: list[int] | None = Field(
        default=None, min_length=1, description="of a set of folds: one run for each, in which that fold is the test"
    )
    download: Download
    features: Features
    training: Recipe
    pretrain_mat: Run
    pretrain_mvit: Run | None = Field(description="null = a study of audio alone")
    train_mmt: Run | None = Field(description="null = a study of audio alone")
    ablations: dict[Slug, Ablation] = Field(min_length=1)
    report: Report
    efficiency: dict[str, JsonValue] = Field(description="of `make bench`: see study.bench.Efficiency")

    @model_validator(mode="after")
    def _across(self) -> "Params":
        for name, numbers in (("seeds", self.seeds), ("folds", self.folds or [])):
            if len(set(numbers)) < len(numbers):
                raise ValueError(f"{name} {numbers} names one twice; keep each once")
        if (self.pretrain_mvit is None) != (self.train_mmt is None):
            raise ValueError("pretrain_mvit or train_mmt alone is null; a study of audio alone has neither")
        warm_up = self.training.warmup_epochs
        beside = {name for name, row in self.ablations.items() if row.group in ("search", "data")}  # of no claim
        models = {run.model for run in self.runs.values() if getattr(run, "group", "baseline") == "baseline"}
        for name, run in self.runs.items():
            where = name if name in STAGES else f"ablations.{name}"
            if name in beside and run.model not in models:
                raise ValueError(f"{where}.group is {run.group}, but no stage or baseline has {run.model}; add one")
            if name not in beside and (hidden := beside & set(run.encoders.values())):
                raise ValueError(f"{where}.encoders names {min(hidden)}, a row of group search or data; name another")
            if run.epochs <= warm_up:
                problem = f"{where}.epochs {run.epochs} ends within training.warmup_epochs {warm_up}"
                raise ValueError(f"{problem}; raise the one or lower the other")
            if run.encoders and run.init != "pretrained":
                raise ValueError(f"{where}.encoders means nothing to init {run.init}; remove it, or change init")
            for part, source in run.encoders.items():
                if source not in self.runs or self.runs[source].init == "pretrained":
                    problem = f"{where}.encoders.{part} is {source}, no run of an encoder by itself"
                    raise ValueError(f"{problem}; name a stage or a row that is")
            if set(getattr(run, "folds", None) or ()) - set(self.folds or ()):
                raise ValueError(f"{where}.folds {run.folds} names others than folds {self.folds}; remove them")
        return self

    @property
    def runs(self) -> dict[str, Run]:
        """All that is trained: the stages, then the rows of the table."""
        stages = {name: getattr(self, name) for name in STAGES}
        return {name: run for name, run in stages.items() if run is not None} | self.ablations

    def trials(self, name: str) -> list[Trial]:
        """What a stage or a row of the table is trained for: each of its seeds with each of its folds."""
        row = self.ablations.get(name, self)
        seeds, folds = row.seeds or self.seeds, row.folds or self.folds or [None]
        return [Trial(seed, fold) for seed in seeds for fold in folds]


def load(path: str | Path = "params.yaml", root: Path = ROOT, changes: Mapping[str, Any] | None = None) -> Params:
    """Read and check a parameter file; a relative path is taken from `root`.

    A file with the field `base` is an overlay: it says what differs from that file. `changes` replace single fields,
    for instance {"pretrain_mat.epochs": 3}. Raises ParamsError: no such file, not YAML 1.2, a key given twice, or a
    field that is unknown, missing or out of range.
    """
    values = compose(path, root)
    for field, value in (changes or {}).items():
        put(values, field, value, str(path))
    if isinstance(values, dict) and isinstance(values.get("ablations"), dict):
        values["ablations"] = {name: whole_row(name, values, str(path)) for name in values["ablations"]}
    return check(Params, values, str(path))
