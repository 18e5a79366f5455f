"""What a model costs: parameters and multiply-accumulates.

Operations are counted one by one, by the formulas of torch.utils.flop_counter. Its FlopCounterMode itself would not do:
tokens with tokens and tokens with tables of positions are the same operator, bmm, and attention must be told apart.
"""

from collections import Counter

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class ProductCounter(TorchDispatchMode):
    """Counts multiply-accumulates in `macs`, by their kind: linear, attention, convolution or positions.

    Those are products of tokens with weights; of tokens with tokens; patches and pooling; of tokens with tables. A
    product is attention when both of its factors depend on the input. Which memory does is followed from operator to
    operator: views share theirs, and memory that is used again is first written by an operator, which says so anew.
    """

    def __init__(self, *inputs: Tensor):
        super().__init__()
        self.macs: Counter[str] = Counter()
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
            self.macs[kind] += flop_registry[operator](*args, **kwargs, out_val=out) // 2
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
    """Multiply-accumulates of one forward pass in evaluation mode, by their kind; works on the meta device.

    Element-wise work is not counted. Fused attention is broken up into matrix products so that it is seen.
    """
    training, fast_path = model.training, torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused encoder layer hides its products
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), ProductCounter(*inputs) as counter:
            model(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        model.train(training)
    return counter.macs
