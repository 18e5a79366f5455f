"""What a model costs: parameters, multiply-accumulates, seconds and bytes.

Operations are counted, one by one, as torch dispatches them; seconds and bytes are measured. What is measured
depends on the machine, so it is always measured beside a peer, in turns.
"""

import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

KINDS = ("linear", "attention", "convolution", "positions")
"""Products of tokens with weights; of tokens with tokens; convolutions (patches, pooling); tokens with tables."""

_aten = torch.ops.aten
_FACTORS = {_aten.mm: 0, _aten.bmm: 0, _aten.addmm: 1, _aten.baddbmm: 1}  # where an operator's two factors begin


class Macs(NamedTuple):
    """Multiply-accumulates of a forward pass; `attention` is the part of q k' and weights times v."""

    total: int
    attention: int


class Timing(NamedTuple):
    """Seconds of each round, ours and the peer's; a ratio is peer / ours, so above 1 ours is faster."""

    ours: list[float]
    peer: list[float]

    @property
    def ratios(self) -> list[float]:
        return [peer / ours for ours, peer in zip(self.ours, self.peer, strict=True)]

    @property
    def ratio(self) -> float:
        """The median over the rounds: a disturbed round does not move it."""
        return statistics.median(self.ratios)


class ProductCounter(TorchDispatchMode):
    """Counts multiply-accumulates by (place, kind): `macs[where, kind]`, `where` being set from outside.

    A matrix product is attention when both of its factors depend on the input; one with a weight has one such
    factor. Which memory depends on the input is followed from operator to operator: views share theirs, and
    memory that is used again is first written by an operator, which says so anew.
    """

    def __init__(self, *inputs: Tensor):
        super().__init__()
        self.where: object = ""
        self.macs: Counter[tuple[object, str]] = Counter()
        self._live = {_memory(x): True for x in inputs}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        live = any(self._depends(x) for x in tree_leaves((args, kwargs)))
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self._live[_memory(x)] = live
        operator = function.overloadpacket
        if operator is _aten.convolution:
            self.macs[self.where, "convolution"] += out.numel() * args[1][0].numel()
        elif operator in _FACTORS:
            first, second = args[_FACTORS[operator] :][:2]
            one_weight = "positions" if out.ndim == 3 else "linear"  # a table differs from row to row: a batch
            kind = "attention" if self._depends(first) and self._depends(second) else one_weight
            self.macs[self.where, kind] += out.numel() * first.shape[-1]
        return out

    def _depends(self, x: object) -> bool:
        return isinstance(x, Tensor) and self._live.get(_memory(x), False)


def count_parameters(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count_macs(model: nn.Module, *inputs: Tensor) -> int:
    """Multiply-accumulates of one forward pass, attention products included."""
    return macs(model, *inputs).total


def macs(model: nn.Module, *inputs: Tensor) -> Macs:
    """Multiply-accumulates of one forward pass, and how many of them are attention products.

    Fused attention is broken up into matrix products so that it is seen, the extra channels that carry our
    relative positions among it. Element-wise work is not counted. Works on the meta device, too.
    """
    with counting(model, *inputs) as counter:
        model(*inputs)
    return Macs(counter.macs.total(), sum(n for (_, kind), n in counter.macs.items() if kind == "attention"))


@contextmanager
def counting(model: nn.Module, *inputs: Tensor):
    """Within it a forward pass of `model` in evaluation mode is counted; gives the ProductCounter."""
    training, fast_path = model.training, torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused encoder layer hides its products
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), ProductCounter(*inputs) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        model.train(training)


def interleaved(ours: Callable[[], object], peer: Callable[[], object], rounds: int, *, warm_up: bool = True) -> Timing:
    """Seconds of `ours` and `peer`, called in turns, `rounds` times each, after one untimed call of each.

    In turns, so that what else the machine does meets both. A GPU is waited for.
    """
    if warm_up:
        ours()
        peer()
    pairs = [(_seconds(ours), _seconds(peer)) for _ in range(rounds)]
    return Timing([a for a, _ in pairs], [b for _, b in pairs])


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
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
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
    free = [sys.maxsize]  # where nothing is known, nothing is too large
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free.append(int(lines["MemAvailable"].split()[0]) * 1024)
        group = Path("/sys/fs/cgroup")
        cache = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())["inactive_file"]
        limit, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
        free.append(limit - used + int(cache))
    except (OSError, ValueError, KeyError):
        pass  # no Linux, or no limit
    return min(free)


def _seconds(call: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _memory(x: Tensor) -> int:
    """What tells one piece of memory from another, on the meta device, too."""
    return x.untyped_storage()._cdata
