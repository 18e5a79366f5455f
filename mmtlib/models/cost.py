"""What a model costs: parameters, multiply-accumulates, seconds and bytes.

Operations are counted one by one, by the formulas of torch.utils.flop_counter. Its FlopCounterMode itself would not do:
tokens with tokens and tokens with tables of positions are the same operator, bmm, and attention must be told apart.
Seconds and bytes depend on the machine, so they are measured beside a peer, in turns.
"""

import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from itertools import accumulate

import psutil
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

KINDS = ("linear", "attention", "convolution", "positions")
"""Products of tokens with weights; of tokens with tokens; convolutions (patches, pooling); tokens with tables."""


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
        kwargs, operator = kwargs or {}, function.overloadpacket
        out = function(*args, **kwargs)
        live = any(map(self._depends, tree_leaves((args, kwargs))))
        self._live |= {_memory(x): live for x in tree_leaves(out) if isinstance(x, Tensor)}
        if operator in flop_registry:
            kind = "positions" if out.ndim == 3 else "linear"  # a table differs from row to row: a batch
            if operator is torch.ops.aten.convolution:
                kind = "convolution"
            elif all(map(self._depends, args[-2:])):  # the two factors
                kind = "attention"
            self.macs[self.where, kind] += flop_registry[operator](*args, **kwargs, out_val=out) // 2
        return out

    def _depends(self, x: object) -> bool:
        return isinstance(x, Tensor) and self._live.get(_memory(x), False)


def _memory(x: Tensor) -> int:
    """What tells one piece of memory from another, on the meta device, too."""
    return x.untyped_storage()._cdata


def count_parameters(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def count_macs(model: nn.Module, *inputs: Tensor) -> int:
    """Multiply-accumulates of one forward pass, attention products included."""
    return macs(model, *inputs).total()


def macs(model: nn.Module, *inputs: Tensor) -> Counter[str]:
    """Multiply-accumulates of one forward pass by KINDS. Element-wise work is not counted; works on the meta device."""
    with counting(model, *inputs) as counter:
        model(*inputs)
    return Counter({kind: count for (_, kind), count in counter.macs.items()})


@contextmanager
def counting(model: nn.Module, *inputs: Tensor):
    """Within it a forward pass of `model` in evaluation mode is counted; gives the ProductCounter.

    Fused attention is broken up into matrix products so that it is seen.
    """
    training, fast_path = model.training, torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused encoder layer hides its products
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), ProductCounter(*inputs) as counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        model.train(training)


def interleaved(
    ours: Callable[[], object], peer: Callable[[], object], rounds: int, *, warm_up: bool = True
) -> tuple[list[float], list[float]]:
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
