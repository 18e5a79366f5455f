"""What every test shares: one thread, so that a run repeats exactly and two cores are not fought over."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)
