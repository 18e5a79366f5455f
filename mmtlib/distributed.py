"""Several processes that train one model: who is who, and what they exchange. Without torchrun there is one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that torchrun started, over NCCL with GPUs and over gloo without; alone, do nothing."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if cuda else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank() -> int:
    """Which of the processes this is, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def gather(x: Shaped[Tensor, "own ..."]) -> Shaped[Tensor, "all ..."]:
    """The rows of all ranks, which have equally many, in the order of the ranks; only the own ones carry a gradient.

    A loss that every rank computes from them has the whole gradient once the ranks' gradients are added up.
    """
    if ranks() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(ranks())]
    dist.all_gather(parts, x.detach().contiguous())
    parts[rank()] = x
    return torch.cat(parts)


def gather_objects(value: Any) -> list[Any]:
    """The values of all ranks, in their order."""
    if ranks() == 1:
        return [value]
    values = [None] * ranks()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait until all ranks have come here: what the first has written is there then."""
    gather_objects(None)
