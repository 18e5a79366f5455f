"""What a model costs: its operations and, on this machine, seconds and bytes, which are measured beside a peer."""

import time
from collections.abc import Callable, Sequence
from itertools import accumulate

import psutil
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from mmtlib.models import MODALITY, build_model

_BATCHED = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)


def count_parameters(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count_macs(model: nn.Module, *inputs: Tensor, attention: bool = True) -> int:
    """Multiply-accumulates of one forward pass in evaluation mode; works on the meta device.

    Without `attention` batched products do not count: tokens with tokens, and with tables of relative positions. Fused
    attention is broken up into them so that it is seen. Element-wise work is not counted.
    """
    training, fast_path = model.training, torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused encoder layer hides its products
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            model(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        model.train(training)
    found = counter.get_flop_counts()["Global"].items()
    return sum(count for operator, count in found if attention or operator not in _BATCHED) // 2


def interleaved(ours: Callable, peer: Callable, rounds: int, *, warm_up: bool = True) -> tuple[list[float], ...]:
    """Seconds of `ours` and of `peer`, called in turns, `rounds` times each, after one untimed call of each.

    In turns, so that what else the machine does meets both. A GPU is waited for.
    """
    for call in (ours, peer) if warm_up else ():
        call()
    ours_s, peer_s = zip(*((_seconds(ours), _seconds(peer)) for _ in range(rounds)), strict=True)
    return list(ours_s), list(peer_s)


def _seconds(call: Callable[[], object]) -> float:
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def step_memory(step: Callable[[], object], device: torch.device) -> int:
    """The most bytes that one call of `step` holds above what was held before it.

    On CUDA what torch's allocator says. On a CPU each allocation and release of a tensor as torch's profiler
    lists them, summed up in their order: the same in every run, unlike the memory of the process.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(0, *accumulate((event.nbytes() for event in events), initial=0))


def matmul_rate(dtype: torch.dtype, device: torch.device, size: int, times: int = 3) -> float:
    """GFLOP/s of the best of `times` products of two size x size matrices: what the machine could do at most."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    torch.mm(a, b)
    return 2 * size**3 / min(_seconds(lambda: torch.mm(a, b)) for _ in range(times)) / 1e9


def available_memory(device: torch.device) -> int:
    """Bytes that can still be had on the device: of a GPU, of the machine, or of a container with a limit."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info()[0]
    from distributed.system import MEMORY_LIMIT  # slow to import

    return min(psutil.virtual_memory().available, MEMORY_LIMIT - psutil.Process().memory_info().rss)


def cost(name: str, logits: int, audio: Sequence[int], video: Sequence[int], /, **settings) -> tuple[str, float, float]:
    """What a model reads, its parameters and MACs of a clip, in millions. Sizes: time, mel; frames, height, width."""
    inputs = {"audio": torch.zeros(1, 1, *audio), "video": torch.zeros(1, 3, *video)}
    model = build_model(name, logits, **{"audio_size": audio, "video_size": video} | settings)
    given = [inputs[part] for part in inputs if MODALITY[name] in ("av", part)]
    return MODALITY[name], count_parameters(model) / 1e6, count_macs(model, *given) / 1e6
