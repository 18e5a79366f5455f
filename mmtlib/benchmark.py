"""The benchmark: our models and their peers measured in pairs, and the tables and the page that come of it.

Each comparison runs in a process of its own, `python -m mmtlib.benchmark SPEC`: what an earlier one leaves in the
C allocator changes a later one by a third. Inside it the two models take turns.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtlib import efficiency_figures
from mmtlib.efficiency import (
    KINDS,
    ProductCounter,
    Timing,
    available_memory,
    count_parameters,
    counting,
    interleaved,
    macs,
    matmul_rate,
    step_memory,
)
from mmtlib.figures import png
from mmtlib.files import write_bytes, write_text
from mmtlib.models import MODALITY, build_model
from mmtlib.models.mat import MAT
from mmtlib.models.multiscale import pooled_grid
from mmtlib.models.mvit import MVIT
from mmtlib.params import Curve, Pair
from mmtlib.paths import ROOT

CLASSES = 400  # of every head: Kinetics has as many, and it hardly matters
MEL_BINS = 128
GIB = 2**30
CPU = torch.device("cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MODES = ("train", "inference")
OPERATIONS = {"train": 6, "inference": 2}
"""Floating-point operations for each multiply-accumulate of the forward pass; the backward pass does two more."""

COLUMNS = {
    "input": "time x mel, frames x height x width; MACs are for one clip of it",
    "params_m": "trainable parameters, millions",
    "gmacs": "thousand million multiply-accumulates of a forward pass, element-wise work left out",
    "gmacs_no_attention": "the same without q k' and weights times v, as counters say that do not see fused attention",
    "train_step_ratio": "seconds of the peer's training step / ours, median of the rounds: above 1 ours is faster "
    "(forward, backward, AdamW; `_low` and `_high` are the extreme rounds)",
    "inference_ratio": "the same for a forward pass in inference mode",
    "peak_memory_ratio": "ours / peer's: below 1 ours needs less. Of weights, AdamW's two states (fp32) and the most "
    "that a training step holds above them, its gradients among it",
    "train_share": "operations of a step (2 for each multiply-accumulate, three passes: forward, and backward twice) "
    "a second, as a share of what one large matrix product reaches in the same precision and process",
    "batch": "clips in a step",
    "rounds": "timed steps of each, in turns",
}
"""What the columns of efficiency.csv mean; those of the peer begin with `peer_`."""


class BenchmarkError(RuntimeError):
    """A comparison failed; the text is one sentence that names it and says what to do."""


def log_mel_frames(seconds: float) -> int:
    """Frames of the log-mel of a sound: windows of 25 ms every 10 ms."""
    return 1 + int((round(1000 * seconds) - 25) // 10)


def torchvision_mvit(name: str, video: Sequence[int]) -> nn.Module:
    """torchvision's own MViT with the widths, depths and strides of our `name`, for clips of `video` (T, H, W)."""
    from torchvision.models.video.mvit import MSBlockConfig, MViT

    size = MVIT[name]
    blocks, width, reduction = [], size["dim"], 1
    for index, depth in enumerate(size["depths"]):
        for place in range(depth):
            stride = 2 if index and not place else 1
            reduction *= stride
            keys = [max(s // r, 1) for s, r in zip(size["stride_kv"], (1, reduction, reduction), strict=True)]
            wide = size["dim"] * 2**index
            blocks.append(MSBlockConfig(2**index, width, wide, [3] * 3, [3] * 3, [1, stride, stride], keys))
            width = wide
    return MViT(
        (video[1], video[2]),
        video[0],
        blocks,
        residual_pool=True,
        residual_with_cls_embed=False,
        rel_pos_embed=True,
        proj_after_attn=True,
        stochastic_depth_prob=size["drop_path"],
        num_classes=CLASSES,
        patch_embed_kernel=tuple(size["patch_kernel"]),
        patch_embed_stride=tuple(size["patch_stride"]),
        patch_embed_padding=tuple(k // 2 for k in size["patch_kernel"]),
    )


def build_pair(name: str, pair: Pair, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """Our model and its peer for the input of `pair`. Raises BenchmarkError for a name that nothing has."""
    sizes = {"audio_size": (log_mel_frames(pair.seconds), MEL_BINS)} if pair.seconds else {}
    sizes |= {"video_size": tuple(pair.video)} if pair.video else {}
    for model in (name, pair.peer):
        reads = "video" if model == "torchvision" and name in MVIT else MODALITY.get(model)
        given = {("audio_size",): "audio", ("video_size",): "video"}.get(tuple(sizes), "av")
        if reads != given:
            problem = f"reads {reads}, but was given {given}" if reads else "is not known"
            raise BenchmarkError(f"efficiency.pairs.{name}: model {model} {problem}; change peer, seconds or video.")
    with device:
        ours = build_model(name, CLASSES, **sizes)
        twin = pair.peer == "torchvision"
        return ours, torchvision_mvit(name, pair.video) if twin else build_model(pair.peer, CLASSES, **sizes)


def clips(pair: Pair, batch: int, device: torch.device) -> list[Tensor]:
    """Random clips: log-mel (batch, 1, time, mel), frames (batch, 3, T, H, W), or both."""
    shapes = [(1, log_mel_frames(pair.seconds), MEL_BINS)] if pair.seconds else []
    shapes += [(3, *pair.video)] if pair.video else []
    return [torch.randn(batch, *shape, device=device) for shape in shapes]


# ------------------------------------------------------------------------------- measured in a process of its own


def training_step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: list[Tensor], precision: str) -> Callable:
    """A call that does forward, backward and optimiser step, and holds nothing afterwards that it did not before."""
    labels = torch.zeros(len(inputs[0]), dtype=torch.long, device=inputs[0].device)

    def step() -> None:
        with torch.autocast(labels.device.type, torch.bfloat16, enabled=precision == "bf16"):
            out = model(*inputs)
            loss = F.cross_entropy(getattr(out, "logits", out), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def inference_step(model: nn.Module, inputs: list[Tensor], precision: str) -> Callable:
    """A call that does a forward pass."""
    model.eval()

    def step() -> None:
        with (
            torch.inference_mode(),
            torch.autocast(inputs[0].device.type, torch.bfloat16, enabled=precision == "bf16"),
        ):
            model(*inputs)

    return step


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW whose states exist already, as from the second step on."""
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


def compare(name: str, pair: Pair, mode: str, precision: str, cold: bool = False) -> dict[str, Any]:
    """Measure one pair in one mode and precision, here and now; see `in_fresh_process`.

    Gives `times` and `peer_times` (s), `gflops` (the rate of a matrix product, GFLOP/s) and, for training,
    `clip_peak` and `peak`, bytes at one clip and at the whole batch, with those of the peer; or `clip_peak` and
    `skipped`, the reason, where the batch would not fit. `cold` leaves out the step at the whole batch that is
    not timed, for steps that take minutes, and `peak` with it.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    models, inputs = build_pair(name, pair, device), clips(pair, pair.batch, device)
    result: dict[str, Any] = {"gflops": matmul_rate(DTYPES[precision], device, 8192 if device.type == "cuda" else 2048)}
    if mode == "inference":
        steps = [inference_step(model, inputs, precision) for model in models]
    else:
        optimizers = [adamw(model) for model in models]
        held = [12 * count_parameters(model) for model in models]  # weights and two states, 4 bytes each
        one = [x[:1] for x in inputs]

        def peaks(given: list[Tensor]) -> list[int]:
            sides = zip(models, optimizers, strict=True)
            return [step_memory(training_step(*side, given, precision), device) for side in sides]

        memory = peaks(one)
        result |= _named("clip_peak", [a + b for a, b in zip(held, memory, strict=True)])
        # Too much rather than too little: the gradients do not grow with the batch.
        needed, free = max(memory) * pair.batch, available_memory(device)
        if needed > free:
            return result | {"skipped": f"needs about {needed / GIB:.1f} GiB where {free / GIB:.1f} GiB are free"}
        if not cold:
            memory = memory if pair.batch == 1 else peaks(inputs)
            result |= _named("peak", [a + b for a, b in zip(held, memory, strict=True)])
        steps = [training_step(*side, inputs, precision) for side in zip(models, optimizers, strict=True)]
    timing = interleaved(*steps, pair.rounds, warm_up=mode == "inference")  # measuring memory was a warm-up
    return result | _named("times", [timing.ours, timing.peer])


def in_fresh_process(name: str, pair: Pair, mode: str, precision: str, cold: bool = False) -> dict[str, Any]:
    """`compare` in a new Python process. Raises BenchmarkError with the last line that it wrote."""
    spec = {"name": name, "pair": pair.model_dump(mode="json"), "mode": mode, "precision": precision, "cold": cold}
    command = [sys.executable, "-m", "mmtlib.benchmark", json.dumps(spec)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BenchmarkError(
            f"{name} against {pair.peer}, {mode} in {precision}, ended with status {done.returncode} ({last}); "
            "if memory ran out, lower its batch in section efficiency of params.yaml."
        )
    return json.loads(done.stdout.splitlines()[-1])


# ------------------------------------------------------------------------------- tables


def blank_pair(name: str, pair: Pair, device: torch.device) -> list[nn.Module]:
    """`build_pair` with weights of 0: enough to count on, and drawing them takes longer than counting."""
    models = [model.to_empty(device=device) for model in build_pair(name, pair, torch.device("meta"))]
    for tensor in (x for model in models for x in (*model.parameters(), *model.buffers())):
        tensor.detach().zero_()
    return models


def costs_table(pairs: dict[str, Pair], device: torch.device = CPU) -> pd.DataFrame:
    """Parameters and operations of each pair, for one clip.

    Counted on a processor: on other devices the core takes other ways, and a few more operations.
    """
    rows = []
    for name, pair in pairs.items():
        inputs = clips(pair, 1, device)
        row = {"model": name, "input": " + ".join(" x ".join(map(str, x.shape[2:])) for x in inputs)}
        for prefix, model in zip(("", "peer_"), blank_pair(name, pair, device), strict=True):
            count = macs(model, *inputs)
            row |= {
                f"{prefix}params_m": count_parameters(model) / 1e6,
                f"{prefix}gmacs": count.total / 1e9,
                f"{prefix}gmacs_no_attention": (count.total - count.attention) / 1e9,
            }
        rows.append(row | {"peer": pair.peer, "batch": pair.batch, "rounds": pair.rounds})
    return pd.DataFrame(rows)


def pairs_table(
    pairs: dict[str, Pair], precisions: Sequence[str], measure: Callable[..., dict[str, Any]] = in_fresh_process
) -> pd.DataFrame:
    """Measure each pair: a row for each of our models and precision, as efficiency.csv has it."""
    rows = []
    for cost in costs_table(pairs).to_dict("records"):
        for precision in precisions:
            row = cost | {"precision": precision, "modality": MODALITY[cost["model"]], "skipped": ""}
            for mode in MODES:
                found = measure(cost["model"], pairs[cost["model"]], mode, precision)
                row |= _columns(found, mode, cost)
            rows.append(row)
            print(f"{cost['model']} beside {cost['peer']} in {precision}: measured", flush=True)
    table = pd.DataFrame(rows)
    first = ["model", "input", "params_m", "gmacs", "gmacs_no_attention", "train_step_ratio", "peak_memory_ratio"]
    first = [*first, "peer", "precision", "inference_ratio"]
    return table.reindex(columns=[*first, *(name for name in table if name not in first)])


def length_table(curve: Curve, measure: Callable[..., dict[str, Any]] = in_fresh_process) -> pd.DataFrame:
    """A training step in fp32 against the length of the sound, as efficiency_length.csv has it."""
    rows = []
    for length in curve.lengths:
        pair = Pair(peer=curve.peer, batch=curve.batch, seconds=length.seconds, rounds=length.rounds)
        cost = costs_table({curve.model: pair}).to_dict("records")[0]
        found = measure(curve.model, pair, "train", "fp32", cold=length.rounds == 1)
        rows.append({"seconds": length.seconds, **cost, "skipped": "", **_columns(found, "train", cost)})
        print(f"{curve.model} beside {curve.peer}, {length.seconds:g} s: {rows[-1]['skipped'] or 'timed'}", flush=True)
    return pd.DataFrame(rows)


def stages_table(names: Sequence[str], device: torch.device = CPU) -> pd.DataFrame:
    """Where the operations go in models of the multiscale core, stage by stage, as efficiency_stages.csv has it.

    Input: 10 s of sound, or the frames that the model is made for. Stage 0 is the patch embedding, the last row of
    a model its head. `tokens` and `keys` are those of a stage's last block, without a class token.
    """
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    for name in names:
        size = (MAT | MVIT)[name]
        sound = {"seconds": 10.0} if name in MAT else {"video": list(size["size"])}
        pair = Pair(peer=name, batch=1, rounds=1, **sound)
        (model, _), inputs = blank_pair(name, pair, device), clips(pair, 1, device)
        stages = [index for index, depth in enumerate(size["depths"], start=1) for _ in range(depth)]
        with counting(model, *inputs) as counter:
            for stage, part in zip([*stages, stages[-1] + 1], [*model.encoder.blocks, model.head], strict=True):
                _watch(part, (name, stage), counter, rows)
            counter.where = (name, 0)
            model(*inputs)
        for (where, kind), count in counter.macs.items():
            rows.setdefault(where, {})[f"{kind}_gmacs"] = count / 1e9
    kinds = [f"{kind}_gmacs" for kind in KINDS]
    table = pd.DataFrame([{"model": name, "stage": stage, **row} for (name, stage), row in sorted(rows.items())])
    table = table.reindex(columns=["model", "stage", "blocks", "width", "tokens", "keys", *kinds])
    return table.fillna(0).astype(dict.fromkeys(("blocks", "width", "tokens", "keys"), int))


def _watch(part: nn.Module, where: tuple[str, int], counter: ProductCounter, rows: dict) -> None:
    """Let `counter` know when `part` begins, and note a block's shape in `rows` when it ends."""

    def begin(*_: Any) -> None:
        counter.where = where

    def end(block: nn.Module, given: tuple, out: Any) -> None:
        if isinstance(out, tuple):  # a block: tokens and their grid
            (_, grid), (tokens, pooled) = given, out
            keys = prod(pooled_grid(grid, block.attention.stride_kv))
            blocks = rows.get(where, {}).get("blocks", 0) + 1
            rows[where] = {"blocks": blocks, "width": tokens.shape[-1], "tokens": prod(pooled), "keys": keys}

    part.register_forward_pre_hook(begin)
    part.register_forward_hook(end)


def _named(name: str, values: Sequence[Any]) -> dict[str, Any]:
    return dict(zip((name, f"peer_{name}"), values, strict=True))


def _columns(found: dict[str, Any], mode: str, cost: dict[str, Any]) -> dict[str, Any]:
    """One comparison as columns: seconds, their ratio and its extremes, memory, shares of the matrix product rate."""
    row: dict[str, Any] = {"matmul_gflops": found["gflops"]}
    if "skipped" in found:
        row["skipped"] = found["skipped"]
    for name, title in (("peak", "peak_memory"), ("clip_peak", "clip_memory")):
        if name in found:
            ours, peer = found[name] / GIB, found[f"peer_{name}"] / GIB
            row |= {f"{title}_ratio": ours / peer, f"{title}_gib": ours, f"peer_{title}_gib": peer}
    if "times" in found:
        timing = Timing(found["times"], found["peer_times"])
        title = "train_step" if mode == "train" else mode
        spread = {f"{title}_ratio_low": min(timing.ratios), f"{title}_ratio_high": max(timing.ratios)}
        row |= {f"{title}_ratio": timing.ratio} | spread
        for prefix, seconds in (("", timing.ours), ("peer_", timing.peer)):
            median = statistics.median(seconds)
            done = OPERATIONS[mode] * cost[f"{prefix}gmacs"] * cost["batch"] / median  # GFLOP/s
            row |= {f"{prefix}{mode}_s": median, f"{prefix}{mode}_share": done / found["gflops"]}
    return row


# ------------------------------------------------------------------------------- the page


def claims_table(table: pd.DataFrame) -> pd.DataFrame:
    """The paper's claims of efficiency, MAT against AST, beside what was measured in fp32.

    Its versions differ in the operations: 3 % fewer in one, 5 times fewer in another. Columns: claim, paper,
    measured, verdict (holds / does not hold / not measured). The counts do not depend on the machine.
    """
    rows = table[(table["model"] == "mat_b") & (table["peer"] == "ast_b") & (table["precision"] == "fp32")]

    def saved(ours: str, peer: str) -> float:
        return 100 * (1 - rows[ours].iloc[0] / rows[peer].iloc[0]) if len(rows) and ours in rows else float("nan")

    operations = saved("gmacs", "peer_gmacs")
    found = [
        ("fewer operations (2024)", 3.0, operations, "%"),
        ("fewer operations (2023)", 5.0, 100 / (100 - operations), "times"),
        ("fewer parameters", 42.0, saved("params_m", "peer_params_m"), "%"),
        ("less memory in training", 9.8, saved("peak_memory_gib", "peer_peak_memory_gib"), "%"),
    ]
    return pd.DataFrame(
        {
            "claim": f"MAT-B has {claim} than AST",
            "paper": f"{paper:g} {unit}",
            "measured": "" if pd.isna(value) else f"{value:.1f} {unit}",
            "verdict": "not measured" if pd.isna(value) else "holds" if round(value, 1) >= paper else "does not hold",
        }
        for claim, paper, value, unit in found
    )


def machine() -> dict[str, str]:
    """What the measurements were made on, without names of hosts or folders."""
    processor = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).is_file():
        names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = names[0] if names else processor
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {"processor": processor, "cores": str(cores), "threads of torch": str(torch.get_num_threads())}
    found["instruction set of torch"] = torch.backends.cpu.get_cpu_capability()
    found["GPU"] = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    packages = ("torch", "torchvision", "transformers")
    return found | {"python": platform.python_version()} | {name: version(name) for name in packages}


def write_efficiency(
    workspace: Path, pairs: pd.DataFrame, lengths: pd.DataFrame, stages: pd.DataFrame
) -> dict[str, Path]:
    """Write the three tables, their figures and reports/efficiency.md below `workspace`; gives the files by name."""
    reports = Path(workspace).resolve() / "reports"
    tables = {"efficiency": pairs, "efficiency_length": lengths, "efficiency_stages": stages}
    written = {}
    for name, table in tables.items():
        written[f"{name}.csv"] = reports / "tables" / f"{name}.csv"
        text = table.to_csv(index=False, float_format="%.4g", lineterminator="\n")
        write_text(written[f"{name}.csv"], text)
        written[f"{name}.png"] = reports / "figures" / f"{name}.png"
        write_bytes(written[f"{name}.png"], png(getattr(efficiency_figures, name)(table)))
    written["efficiency.md"] = reports / "efficiency.md"
    write_text(written["efficiency.md"], page(pairs, lengths, stages))
    return written


def page(pairs: pd.DataFrame, lengths: pd.DataFrame, stages: pd.DataFrame) -> str:
    """The text of reports/efficiency.md."""
    shown = [*list(pairs)[:10], "train_share", "peer_train_share", "batch", "rounds"]
    curve = ["seconds", "input", "gmacs", "peer_gmacs", "train_s", "peer_train_s", "train_step_ratio"]
    curve += ["clip_memory_gib", "peer_clip_memory_gib", "skipped"]
    parts = [
        "# What the models cost",
        "This file is written by `make bench`; do not edit it. The counts are exact. Seconds are those of this "
        "machine: compare ratios, and measure again on yours.",
        _markdown(pd.DataFrame(machine().items(), columns=["machine", "measured on"])),
        "## Claims of the paper",
        _markdown(claims_table(pairs)),
        "## Beside the peers",
        _markdown(pairs.reindex(columns=shown)),
        "![ratios](figures/efficiency.png)",
        "\n".join(f"- `{name}`: {meaning}." for name, meaning in COLUMNS.items()),
        "All columns: [efficiency.csv](tables/efficiency.csv). Each comparison ran in a fresh process, in which the "
        "two models took turns after an untimed step of each.",
        "## Against the length of the sound",
        _markdown(lengths.reindex(columns=curve)),
        "![length](figures/efficiency_length.png)",
        f"A training step of {lengths['batch'].iloc[0]} clips in fp32. The memory is that of a step of one clip, "
        "peak as above. A length whose batch would not fit, by that memory times the batch, is not timed: see "
        "`skipped`. Table: [efficiency_length.csv](tables/efficiency_length.csv).",
        "## Where the operations go",
        _markdown(stages),
        "![stages](figures/efficiency_stages.png)",
        "Stage 0 is the patch embedding, the last one the head. `linear` are products of tokens with weights, "
        "`attention` q k' and weights times v, the channels that carry relative positions among it, `convolution` "
        "patches and pooling, `positions` queries times tables of relative positions. Table: "
        "[efficiency_stages.csv](tables/efficiency_stages.csv).",
    ]
    return "\n\n".join(parts) + "\n"


def _markdown(table: pd.DataFrame) -> str:
    text = table.map(lambda value: "" if pd.isna(value) else f"{value:.3g}" if isinstance(value, float) else str(value))
    return text.to_markdown(index=False, disable_numparse=True)


if __name__ == "__main__":
    spec = json.loads(sys.argv[1])
    print(json.dumps(compare(**spec | {"pair": Pair(**spec["pair"])})))
