"""Measure what docs/scale.md states and write its tables anew: `python docs/measure_scale.py` on an idle machine.

Takes four minutes, after `dvc repro features`, whose arrays feed the small models here. What a training step of the
large ones costs is taken from reports/efficiency/efficiency.csv (`make bench`).
"""

import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from pathlib import Path

import av
import numpy as np
import pandas as pd
import torch

from freedoom_sounds.files import write_clip
from mmtlib.cluster import connect, cores, spread
from mmtlib.config import ROOT, load
from mmtlib.data.dataset import FeatureDataset
from mmtlib.data.decode import Settings, Task, decode
from mmtlib.data.features import extract_features
from mmtlib.data.manifest import write_manifest
from mmtlib.data.probe import probe
from mmtlib.files import write_text
from mmtlib.models import MODALITY, build_model
from mmtlib.training.loop import Trainer
from study.bench import machine
from study.figures.style import READS
from study.timing import count_macs, count_parameters, step_memory

PAGE = ROOT / "docs/scale.md"
COSTS = ROOT / "reports/efficiency/efficiency.csv"
PROFILE = load("params/vggsound.yaml")
GIVEN = {  # published, or assumed: what one cannot measure here
    "gpu_tflops": (989, "TFLOP/s of an H100 SXM in bf16, without sparsity", "published, NVIDIA's data sheet"),
    "gpu_gb": (80, "GB of memory of that GPU", "published, as above"),
    "used": (0.3, "of that rate reached in training", "assumed; on the processor here see *share*"),
    "gpus": (8, "GPUs in a node", "as asked"),
    "cores": (128, "cores in a node, of this kind", "assumed"),
    "disk": (5, "GB/s that a node reads from its disks", "assumed: one fast NVMe disk"),
    "network": (50, "GB/s between two nodes", "assumed: 400 Gb/s"),
    "file_mb": (1.7, "MB of a VGGSound clip", "published: a mirror of 198,000 takes 20 x 17 GB"),
    "VGGSound": (200_000, "clips, of which 15,446 are test", "published, rounded"),
    "AudioSet": (2_000_000, "clips, of which 20,000 are test", "published, rounded"),
}
WAITING = ("pretrain_mat", "pretrain_mvit", "train_mmt")
TEST = {"VGGSound": 15_446, "AudioSet": 20_000}
G = {name: value for name, (value, _, _) in GIVEN.items()}


def least(call: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest of some calls, after one that does not count: what else the machine does only adds."""
    call()
    found = []
    for _ in range(rounds):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return min(found)


def made_clip(path: Path) -> None:
    """Ten seconds of 340 x 256 at 25 frames a second, with stereo at 44.1 kHz: a pattern that moves, and noise."""
    rng = np.random.default_rng(0)
    y, x, t = np.ogrid[:256, :340, :250]
    waves = 128 + 90 * np.sin((x + 2 * t) / 23) * np.cos((y - t) / 17)
    noise = rng.normal(0, 6, (256, 340, 250))
    frames = np.clip(waves + noise, 0, 255).astype(np.uint8).transpose(2, 0, 1)
    sound = (3000 * rng.standard_normal((441_000, 2))).astype(np.int16)
    write_clip(path, np.repeat(frames[..., None], 3, axis=3), 25, sound, 44_100)


def merely_decode(path: Path) -> None:
    """All frames and all audio, by PyAV with one thread; nothing is scaled, resampled or kept."""
    with av.open(str(path)) as container:
        for stream in container.streams:
            stream.codec_context.thread_count = 1
        for packet in container.demux():
            packet.decode()


def beside(call: Callable[[], object], peer: Callable[[], object], rounds: int) -> float:
    """As many times the peer's seconds, in turns: the median of the ratios."""
    ratios = []
    for _ in range(rounds):
        times = [time.perf_counter()]
        for one in (call, peer):
            one()
            times.append(time.perf_counter())
        ratios.append((times[1] - times[0]) / (times[2] - times[1]))
    return statistics.median(ratios)


def waiting(name: str, folder: Path) -> float:
    """Share of an epoch of a small model of params.yaml that passes before its batches are there, as float32."""
    params = load("params.yaml")
    run = getattr(params, name).model_copy(update={"init": "scratch"})
    trainer = Trainer(
        run, params.training, seed=0, features=ROOT / "data" / params.study / "features", runs=folder, init={}
    )
    stream, waited = trainer.train.stream, 0.0

    def timed(*given: object):
        nonlocal waited
        batches = stream(*given)
        while True:
            begin = time.perf_counter()
            batch = next(batches, None)
            waited += time.perf_counter() - begin
            if batch is None:
                return
            yield batch

    trainer.train.stream = timed
    begin = time.perf_counter()
    trainer._train_epoch(0, bf16=False)
    return waited / (time.perf_counter() - begin)


def measure(folder: Path) -> dict[str, float]:
    """Seconds a clip of each stage, of one core unless said otherwise, and bytes.

    `busy`: how many times as long decoding takes a core while the others decode, too.
    """
    torch.set_num_threads(1)
    one = folder / "clip.mp4"
    made_clip(one)
    links = [folder / f"media/{number:04d}.mp4" for number in range(1000)]
    links[0].parent.mkdir()
    for link in links:
        os.link(one, link)
    found = {"file_bytes": one.stat().st_size}
    settings = Settings(**PROFILE.features.model_dump(exclude={"cache", "workers"}))
    found["log_mel_bytes"] = 2 * np.prod(settings.shapes["log_mel"])
    found["frames_bytes"] = np.prod(settings.shapes["frames"])

    begin = time.perf_counter()
    probe(links, cache=folder / "probe", workers=1)
    found["probe"] = (time.perf_counter() - begin) / len(links)
    found["probe_again"] = least(lambda: probe(links, cache=folder / "probe", workers=1), 3) / len(links)

    for name, split, modality in (
        ("decode", "train", "av"),
        ("decode_audio", "train", "audio"),
        ("decode_video", "train", "video"),
        ("decode_test", "test", "av"),
    ):
        found[name] = least(partial(decode, settings, Task(one, None, None, split == "test"), modality), 7)

    whole = partial(decode, settings, Task(one, None, None, False))
    found["merely"] = beside(whole, partial(merely_decode, one), 15)

    with connect(cores()) as client:
        tasks = [Task(link, None, None, False) for link in links[: 16 * cores()]]
        each = least(lambda: list(spread(client, partial(decode, settings), tasks)), 3) / len(tasks)
        found["busy"] = each * cores() / found["decode"]

    rows = {"clip_id": [link.stem for link in links[:64]], "path": [link.name for link in links[:64]]}
    manifest = pd.DataFrame({**rows, "start": None, "end": None, "label": "a", "split": "train"})
    listed = links[0].parent / "manifest.csv"
    write_manifest(manifest, listed)
    values = PROFILE.features.model_dump(exclude={"cache"})
    begin = time.perf_counter()
    extract_features(listed, folder / "read", cache=True, **values | {"workers": 1})
    found["finish"] = max((time.perf_counter() - begin) / len(manifest) - found["decode"], 0.0)
    extract_features(listed, folder / "stream", cache=False, **values)
    for name in ("read", "stream"):
        data = FeatureDataset(folder / name, "train")
        orders = torch.arange(len(data)).split(8)
        found[name] = least(lambda data=data, orders=orders: deque(data.stream(orders, "av"), 0), 2) / len(data)
    torch.set_num_threads(cores())
    for name in WAITING:
        found[f"waiting_{name}"] = waiting(name, folder)
    found["index_bytes"] = data.index.memory_usage(deep=True, index=False).sum() / len(data)
    return found


def clip_memory(model: torch.nn.Module, audio: torch.Tensor, video: torch.Tensor) -> float:
    """GB that a second clip adds to the peak of a training step in bf16."""
    peaks = []
    for batch in (1, 2):

        def step(clips: int = batch) -> None:
            with torch.autocast("cpu", torch.bfloat16):
                out = model(audio.repeat(clips, 1, 1, 1), video.repeat(clips, 1, 1, 1, 1))
            out.logits.float().logsumexp(1).sum().backward()

        model.train().zero_grad(set_to_none=True)
        peaks.append(step_memory(step, torch.device("cpu")))
    return (peaks[1] - peaks[0]) / 1e9


def models() -> pd.DataFrame:
    """Parameters and operations of the profile's models at its input; passes over the train clips, bytes in memory.

    A training step takes three forward passes, and once more what is computed again in whole blocks.
    """
    settings = Settings(**PROFILE.features.model_dump(exclude={"cache", "workers"}))
    audio, video = settings.shapes["log_mel"], settings.shapes["frames"][:3]
    runs = [PROFILE.pretrain_mat, PROFILE.pretrain_mvit, PROFILE.train_mmt]
    runs += [PROFILE.ablations["ast_b"], PROFILE.ablations["mbt_b"]]
    rows = []
    for run in runs:
        model = build_model(run.model, 309, audio_size=audio, video_size=video)
        inputs = {"audio": torch.zeros(1, 1, *audio), "video": torch.zeros(1, 3, *video)}
        reads = MODALITY[run.model]
        gmacs = count_macs(model, *(inputs[name] for name in inputs if reads in ("av", name))) / 1e9
        millions = count_parameters(model) / 1e6
        held = clip_memory(model, *inputs.values()) if run.model == "mmt_b" else np.nan
        encoders = [part for part in model.modules() if getattr(part, "whole_blocks", False)]
        again = sum(count_macs(part, inputs["audio" if part.in_channels == 1 else "video"]) for part in encoders) / 1e9
        rows.append((run.model, reads, run.epochs, millions, gmacs, 2 * (3 * gmacs + again) / 1e3, held))
    columns = ["model", "reads", "passes", "params_m", "gmacs", "train_tflop", "held_gb"]
    return pd.DataFrame(rows, columns=columns)


def shown(table: pd.DataFrame) -> str:
    return table.to_markdown(index=False, disable_numparse=True)


def number(value: float) -> str:
    """Two figures; hours and counts need no more."""
    digits = 0 if value >= 10 else 1 if value >= 1 else 2 if value >= 0.1 else 3
    rounded = float(f"{value:.2g}")
    return f"{rounded:,.{digits}f}"


def measured_table(m: dict[str, float], mmt: pd.Series) -> str:
    view = m["log_mel_bytes"] + m["frames_bytes"]
    bench = pd.read_csv(COSTS).query("model == 'mmt_b' and precision == 'bf16'").iloc[0]
    share = bench.train_share * mmt.train_tflop / (6 * mmt.gmacs / 1e3)  # there nothing counts twice
    count = cores()
    rows = [
        ("look into a file (`download`)", f"{1000 * m['probe']:.1f} ms", "one core; the verdict is kept"),
        ("look it up again", f"{1e6 * m['probe_again']:.0f} µs", "one core"),
        ("features of a train clip", f"{1000 * m['decode']:.0f} ms", "one core"),
        ("of it the audio alone", f"{1000 * m['decode_audio']:.0f} ms", "one core"),
        ("of it the video alone", f"{1000 * m['decode_video']:.0f} ms", "one core"),
        (
            "PyAV decoding the whole file, and no more",
            f"{1 / m['merely']:.2f} times as long",
            "as the features of a train clip; one core, in turns",
        ),
        (
            "features of a train clip while all cores decode",
            f"{m['busy']:.1f} times as long",
            f"as on one core alone; {count} processes on {count} cores",
        ),
        (f"features of a test clip, {PROFILE.features.clips} views", f"{1000 * m['decode_test']:.0f} ms", "one core"),
        (
            "a clip of a batch, decoded on the fly",
            f"{1000 * m['stream']:.0f} ms",
            f"{count} processes on {count} cores",
        ),
        (
            "a clip of a batch, read from the cache",
            f"{1000 * m['read']:.1f} ms",
            "one core, float32 made of it, which a GPU does itself",
        ),
        (
            "share of an epoch that waits for batches",
            " / ".join(f"{100 * m[f'waiting_{name}']:.1f} %" for name in WAITING),
            "mat_t / mvitv2_t / mmt_t of params.yaml, from the cache",
        ),
        ("statistics and fingerprint of a cached view", f"{1000 * m['finish']:.0f} ms", "one process, with writing it"),
        ("a view in the cache", f"{view / 1e6:.2f} MB", f"of it the audio {m['log_mel_bytes'] / 1e6:.2f} MB"),
        ("a row of the index in memory", f"{m['index_bytes']:.0f} bytes", "in each process, for each split it reads"),
        ("the file measured with", f"{m['file_bytes'] / 1e6:.2f} MB", "10 s, 340 x 256, h264 and aac, made up"),
        (
            f"a training step of mmt_b, bf16, {bench.seconds:.0f} s of audio",
            f"{bench.train_s:.0f} s",
            f"efficiency.csv; its share of what a matrix product reaches: {share:.2f}, what is computed again counted",
        ),
        (
            "a view evaluated by mmt_b",
            f"{bench.inference_s:.1f} s",
            f"efficiency.csv; share {bench.inference_share:.2f}",
        ),
        (
            f"memory of a clip in a training step of mmt_b, bf16, {PROFILE.features.seconds:.0f} s of audio",
            f"{mmt.held_gb:.1f} GB",
            f"what a second one adds to the peak; weights, gradients and AdamW: {16 * mmt.params_m / 1e3:.1f} GB a GPU",
        ),
    ]
    return shown(pd.DataFrame(rows, columns=["what, for a clip", "measured", "how"]))


def stages_table(m: dict[str, float]) -> str:
    view, columns = m["log_mel_bytes"] + m["frames_bytes"], {}
    for name in TEST:
        clips, test = G[name], TEST[name]
        views = clips + (PROFILE.features.clips - 1) * test
        features = m["busy"] * (m["decode"] * (clips - test) + m["decode_test"] * test) / 3600
        finish = m["finish"] * views / 3600  # one process does it
        columns[f"{name}, {clips:,} clips"] = {
            "the files": f"{clips * G['file_mb'] / 1e6:.1f} TB",
            "`download`: look into all": hours(m["probe"] * clips / 3600),
            "`features`: decode all once": hours(features),
            "and, for a cache, statistics and fingerprint": " / ".join([number(finish)] * 3),
            "the cache": f"{views * view / 1e12:.1f} TB, of it audio {views * m['log_mel_bytes'] / 1e12:.2f}",
            "the index in memory": f"{views * m['index_bytes'] / 1e9:.2f} GB a process",
        }
    return shown(pd.DataFrame(columns).rename_axis("what").reset_index())


def hours(core_hours: float) -> str:
    """Of one core, of a node, of four nodes."""
    return " / ".join(number(core_hours / count) for count in (1, G["cores"], 4 * G["cores"]))


def training_table(m: dict[str, float], table: pd.DataFrame) -> str:
    clips, rows = G["VGGSound"] - TEST["VGGSound"], []
    for row in table.itertuples():
        seconds = {"audio": m["decode_audio"], "video": m["decode_video"], "av": m["decode"]}[row.reads]
        sizes = {"audio": m["log_mel_bytes"], "video": m["frames_bytes"]}
        size = sum(value for name, value in sizes.items() if row.reads in ("av", name))
        gpus = G["gpus"] * G["gpu_tflops"] * G["used"] / row.train_tflop
        decoding, cache = G["cores"] / seconds / m["busy"], G["disk"] * 1e9 / size  # clips a second of a node, as gpus
        hours = [number(clips * row.passes / min(gpus, feed) / 3600) for feed in (np.inf, decoding, cache)]
        quarter = number(clips * row.passes / gpus / 3600 / 4)
        counts = [number(rate) for rate in (gpus, decoding, cache)]
        rows.append((row.model, READS[row.reads], number(row.gmacs), *counts, str(row.passes), *hours, quarter))
    columns = ["model", "reads", "GMACs", "clips/s: GPUs", "decoding", "cache on disk", "passes"]
    columns += ["h: GPUs alone", "decoding", "cache on disk", "h, 4 nodes: GPUs alone"]
    return shown(pd.DataFrame(rows, columns=columns))


def network_table(table: pd.DataFrame) -> str:
    mmt, rows = table.set_index("model").loc["mmt_b"], []
    for nodes, batch in ((1, 64), (4, 64), (4, 256), (4, 1024)):
        share = batch / nodes / G["gpus"]
        compute = share * mmt.train_tflop / (G["gpu_tflops"] * G["used"])
        send = 2 * 4 * mmt.params_m / 1e3 * (nodes - 1) / nodes / G["network"]
        rate = PROFILE.train_mmt.lr * batch / PROFILE.training.batch_size
        memory = share * mmt.held_gb + 16 * mmt.params_m / 1e3
        rows.append(
            (nodes, batch, f"{share:.0f}", f"{1000 * compute:.0f}", f"{1000 * send:.0f}", number(memory), f"{rate:.1e}")
        )
    columns = ["nodes", "batch", "clips a GPU", "ms to compute", "ms to send gradients", "GB a GPU", "lr by the rule"]
    return shown(pd.DataFrame(rows, columns=columns))


def given_table() -> str:
    rows = [(f"{value:,}", what, source) for value, what, source in GIVEN.values()]
    return shown(pd.DataFrame(rows, columns=["figure", "what", "source"]))


def write(tables: dict[str, str]) -> None:
    """Put each table between its two markers in the page."""
    text = PAGE.read_text(encoding="utf-8")
    for name, table in tables.items():
        before, rest = text.split(f"<!-- {name} -->\n", 1)
        after = rest.split(f"<!-- /{name} -->", 1)[1]
        text = f"{before}<!-- {name} -->\n{table}\n<!-- /{name} -->{after}"
    write_text(PAGE, text)


def main() -> None:
    load_before = os.getloadavg()[0]
    table = models()
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    about = machine()
    where = f"Measured on {cores()} cores of a processor {about['processor']}, torch {about['torch']}; "
    where += f"load of the machine before: {load_before:.1f}."
    write(
        {
            "machine": where,
            "measured": measured_table(found, table.set_index("model").loc["mmt_b"]),
            "given": given_table(),
            "stages": stages_table(found),
            "training": training_table(found, table),
            "network": network_table(table),
        }
    )


if __name__ == "__main__":
    main()
