"""The benchmark: our models and their peers measured in pairs, and the tables and the page that come of it.

Each comparison runs in a process of its own: what an earlier one leaves in the C allocator changes a later one by a
third. Inside it the two models take turns. `python -m study.bench` measures nothing, and writes the page anew.
"""

import os
import platform
import re
import statistics
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from torchvision.models.video import mvit_v2_s

from mmtlib.config import ROOT, Section
from mmtlib.data.spectrogram import LogMel
from mmtlib.files import write_bytes, write_text
from mmtlib.models import MODALITY, build_model
from study import timing
from study.figures import analysis as figures
from study.figures.style import png
from study.index import TEMPLATES
from study.tables.claims import efficiency_claims

CLASSES = 400  # of every head: Kinetics has as many, and it hardly matters
RATE, MEL_BINS = 16_000, 128  # Hz; of AST and MBT
GIB, CPU = 2**30, torch.device("cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
# Floating-point operations for each multiply-accumulate of the forward pass; the backward pass does two more.
OPERATIONS = {"train": 6, "inference": 2}
TORCHVISION = [16, 224, 224]  # the only input of torchvision's mvit_v2_s, the peer called torchvision
FIRST = ["model", "input", "params_m", "gmacs", "gmacs_no_attention", "train_step_ratio", "peak_memory_ratio"]
FIRST += ["peer", "precision", "inference_ratio", "peak_memory_gib", "peer_peak_memory_gib"]
SETTLED = ["claim", "paper", "measured", "unit", "verdict"]


class Pair(Section):
    """One row of the table `efficiency.pairs`, named by our model: what it is measured against, and on what."""

    peer: str = Field(description="name known to build_model, or torchvision: its mvit_v2_s")
    batch: int = Field(ge=1, description="clips in a step")
    seconds: float | None = Field(default=None, ge=0.2, le=120, description="s of audio; none = reads no audio")
    video: list[int] | None = Field(default=None, min_length=3, max_length=3, description="frames, height, width")
    rounds: int = Field(ge=1, description="timed steps of each, in turns; the median counts")

    @model_validator(mode="after")
    def _input(self) -> "Pair":
        if self.seconds is None and self.video is None:
            raise ValueError("neither seconds nor video is given, so the model reads nothing; give one or both")
        return self


class Efficiency(Section):
    """Stage `efficiency`: what the models cost, measured beside their peers (`make bench`)."""

    precisions: list[Literal["fp32", "bf16"]] = Field(min_length=1, description="bf16 = under autocast")
    pairs: dict[str, Pair] = Field(min_length=1)


Pairs = Collection[tuple[str, Pair]]  # our model's name, and what it is measured against


class BenchmarkError(RuntimeError):
    """A comparison failed; the text is one sentence that names it and says what to do."""


def build_pair(name: str, pair: Pair, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """Our model and its peer for the input of `pair`. Raises BenchmarkError for a name that nothing has."""
    sizes = _sizes(pair)
    given = "av" if len(sizes) == 2 else "audio" if pair.seconds else "video"
    for model in (name, pair.peer):
        reads = "video" if model == "torchvision" else MODALITY.get(model)
        if reads != given:
            problem = f"reads {reads}, but was given {given}" if reads else "is not known"
            raise BenchmarkError(f"efficiency.pairs.{name}: model {model} {problem}; change peer, seconds or video.")
    if pair.peer == "torchvision" and pair.video != TORCHVISION:
        raise BenchmarkError(f"efficiency.pairs.{name}: torchvision's model reads {TORCHVISION} alone; change video.")
    with device:
        ours = build_model(name, CLASSES, **sizes)
        return ours, mvit_v2_s() if pair.peer == "torchvision" else build_model(pair.peer, CLASSES, **sizes)


def clips(pair: Pair, batch: int, device: torch.device) -> list[Tensor]:
    """Random clips: log-mel (batch, 1, time, mel), frames (batch, 3, T, H, W), or both."""
    channels = {"audio_size": 1, "video_size": 3}
    return [torch.randn(batch, channels[name], *size, device=device) for name, size in _sizes(pair).items()]


def _sizes(pair: Pair) -> dict[str, tuple[int, ...]]:
    """What a model of the pair reads, as `build_model` takes it."""
    sound = {"audio_size": (LogMel().num_frames(round(RATE * pair.seconds)), MEL_BINS)} if pair.seconds else {}
    return sound | ({"video_size": tuple(pair.video)} if pair.video else {})


def step_of(model: nn.Module, inputs: list[Tensor], precision: str, optimizer: Optimizer | None = None) -> Callable:
    """A call that does a forward pass or, given an optimizer, a training step; it holds nothing afterwards."""
    labels = torch.zeros(len(inputs[0]), dtype=torch.long, device=inputs[0].device)
    model.train(optimizer is not None)

    def step() -> None:
        autocast = torch.autocast(labels.device.type, torch.bfloat16, enabled=precision == "bf16")
        with torch.inference_mode(optimizer is None), autocast:
            out = model(*inputs)
            if optimizer is None:
                return
            loss = F.cross_entropy(getattr(out, "logits", out), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def compare(name: str, pair: Pair, mode: str, precision: str) -> dict[str, Any]:
    """Measure one pair in one mode and precision, here and now; see `in_fresh_process`.

    Gives `times` and `peer_times` (s), `gflops` (the rate of a matrix product, GFLOP/s) and, for training, `peak`
    and `peer_peak` (bytes); or `skipped`, the reason, where the batch would not fit by the memory of one clip.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    models, inputs = build_pair(name, pair, device), clips(pair, pair.batch, device)
    result: dict[str, Any] = {}
    result["gflops"] = timing.matmul_rate(DTYPES[precision], device, 8192 if device.type == "cuda" else 2048)
    optimizers = [AdamW(model.parameters()) if mode == "train" else None for model in models]

    def steps(given: list[Tensor]) -> list[Callable]:
        return [step_of(model, given, precision, own) for model, own in zip(models, optimizers, strict=True)]

    if mode == "train":
        alone = steps([x[:1] for x in inputs])
        for step in alone:
            step()  # the optimizers' states exist then
        memory = [timing.step_memory(step, device) for step in alone]
        # Too much rather than too little: the gradients do not grow with the batch.
        needed, free = max(memory) * pair.batch, timing.available_memory(device)
        if needed > free:
            return result | {"skipped": f"needs about {needed / GIB:.1f} GiB where {free / GIB:.1f} GiB are free"}
        if pair.batch > 1:
            memory = [timing.step_memory(step, device) for step in steps(inputs)]
        held = [12 * timing.count_parameters(model) for model in models]  # weights and two states, 4 bytes each
        result |= {"peak": held[0] + memory[0], "peer_peak": held[1] + memory[1]}
    warm_up = mode == "inference"  # measuring memory was one
    times, peer_times = timing.interleaved(*steps(inputs), pair.rounds, warm_up=warm_up)
    return result | {"times": times, "peer_times": peer_times}


def in_fresh_process(name: str, pair: Pair, mode: str, precision: str, measure: Callable = compare) -> dict[str, Any]:
    """`compare` in a new Python process. Raises BenchmarkError with what it died of."""
    try:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler writes a line at every start, for its makers
        threads = dict(initializer=torch.set_num_threads, initargs=(torch.get_num_threads(),))  # as here
        with ProcessPoolExecutor(1, mp_context=get_context("spawn"), **threads) as process:
            return process.submit(measure, name, pair, mode, precision).result()
    except Exception as error:
        raise BenchmarkError(
            f"{name} against {pair.peer}, {mode} in {precision}, failed ({type(error).__name__}: {error}); "
            "if memory ran out, lower its batch in section efficiency of params.yaml."
        ) from error


def costs_table(pairs: Pairs, device: torch.device = CPU) -> pd.DataFrame:
    """Parameters and operations of a clip for each pair, as on a CPU: elsewhere the core takes a few more."""
    rows = []
    for name, pair in pairs:
        inputs = clips(pair, 1, device)
        row = {"model": name, "input": " + ".join(" x ".join(map(str, x.shape[2:])) for x in inputs)}
        for prefix, model in zip(("", "peer_"), build_pair(name, pair, device), strict=True):
            row[f"{prefix}params_m"] = timing.count_parameters(model) / 1e6
            row[f"{prefix}gmacs"] = timing.count_macs(model, *inputs) / 1e9
            row[f"{prefix}gmacs_no_attention"] = timing.count_macs(model, *inputs, attention=False) / 1e9
        rows.append(row | {"peer": pair.peer, "seconds": pair.seconds, "batch": pair.batch, "rounds": pair.rounds})
    return pd.DataFrame(rows)


def pairs_table(pairs: Pairs, precisions: Sequence[str], measure: Callable = in_fresh_process) -> pd.DataFrame:
    """Measure each pair: a row for each of them and precision, as efficiency.csv has it."""
    rows = []
    for (name, pair), counted in zip(pairs, costs_table(pairs).to_dict("records"), strict=True):
        for precision in precisions:
            row = counted | {"precision": precision, "modality": MODALITY[name], "skipped": ""}
            for mode in OPERATIONS:
                row |= _columns(measure(name, pair, mode, precision), mode, counted)
            rows.append(row)
            outcome = row["skipped"] or "measured"
            print(f"{name} beside {pair.peer}, {counted['input']}, {precision}: {outcome}", flush=True)
    table = pd.DataFrame(rows)
    return table.reindex(columns=dict.fromkeys([*FIRST, *table]))


def _columns(found: dict[str, Any], mode: str, counted: dict[str, Any]) -> dict[str, Any]:
    """One comparison as columns: seconds, their ratio and its extremes, memory, shares of the matrix product rate."""
    row: dict[str, Any] = {"matmul_gflops": found["gflops"]}
    if "skipped" in found:
        return row | {"skipped": found["skipped"]}
    if mode == "train":
        ours, peer = found["peak"] / GIB, found["peer_peak"] / GIB
        row |= {"peak_memory_ratio": ours / peer, "peak_memory_gib": ours, "peer_peak_memory_gib": peer}
    # Above 1 ours is faster; the median is not moved by a disturbed round.
    ratios = [peer / ours for ours, peer in zip(found["times"], found["peer_times"], strict=True)]
    title = "train_step_ratio" if mode == "train" else f"{mode}_ratio"
    row |= {title: statistics.median(ratios), f"{title}_low": min(ratios), f"{title}_high": max(ratios)}
    for prefix in ("", "peer_"):
        median = statistics.median(found[f"{prefix}times"])
        done = OPERATIONS[mode] * counted[f"{prefix}gmacs"] * counted["batch"] / median  # GFLOP/s
        row |= {f"{prefix}{mode}_s": median, f"{prefix}{mode}_share": done / found["gflops"]}
    return row


def machine() -> dict[str, str]:
    """What the measurements were made on, without names of hosts or folders."""
    info = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", info.read_text()) if info.is_file() else None
    return {
        "processor": named[1] if named else platform.processor(),
        "threads of torch": str(torch.get_num_threads()),
        "instruction set of torch": torch.backends.cpu.get_cpu_capability(),
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
    } | {name: version(name) for name in ("torch", "torchvision", "transformers")}


def write_efficiency(folder: Path, pairs: pd.DataFrame) -> dict[str, Path]:
    """Write what was measured, and on what, its figure and README.md into `folder`; gives the files by name."""
    about = pd.DataFrame(machine().items(), columns=["machine", "measured on"])
    for name, table in {"efficiency": pairs, "machine": about}.items():
        write_text(folder / f"{name}.csv", table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    return show_efficiency(folder)


def show_efficiency(folder: Path) -> dict[str, Path]:
    """Write figure and README.md anew from the tables in `folder`; gives all four files by name."""
    pairs = pd.read_csv(folder / "efficiency.csv")
    shown = {"efficiency": beside(pairs), "claims": efficiency_claims(pairs)[SETTLED]}
    shown["machine"] = pd.read_csv(folder / "machine.csv", dtype=str)
    page = TEMPLATES.get_template("efficiency.md.j2")
    write_text(folder / "README.md", page.render({n: _markdown(t) for n, t in shown.items()}, classes=CLASSES))
    write_bytes(folder / "efficiency.png", png(figures.efficiency(pairs)))
    return {name: folder / name for name in ("README.md", "efficiency.csv", "efficiency.png", "machine.csv")}


def beside(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of a table of pairs that a reader needs, with both sides in one cell."""
    shown = pd.DataFrame({"ours / peer": table["model"] + " / " + table["peer"], "precision": table["precision"]})
    shown["input"] = table["input"]
    for title, column in {"params (M)": "params_m", "GMACs": "gmacs", "training (GiB)": "peak_memory_gib"}.items():
        shown[title] = [f"{a:.3g} / {b:.3g}" for a, b in table[[column, f"peer_{column}"]].astype(float).to_numpy()]
    for title, column in {"training step": "train_step_ratio", "inference": "inference_ratio"}.items():
        shown[f"{title}, times as fast"] = table[column]
    return shown.assign(skipped=table["skipped"]).replace(["", "nan / nan"], None).dropna(axis=1, how="all")


def _markdown(table: pd.DataFrame) -> str:
    text = table.map(lambda value: "" if pd.isna(value) else f"{value:.3g}" if isinstance(value, float) else str(value))
    return text.to_markdown(index=False, disable_numparse=True)


if __name__ == "__main__":  # after a change of how it is shown: nothing is measured
    show_efficiency(ROOT / "reports/efficiency")
