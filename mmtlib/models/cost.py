"""What a model costs: parameters and multiply-accumulates."""

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

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
