"""What every test shares: one thread, so that a run repeats exactly and two cores are not fought over."""

from pathlib import Path

import pytest
import torch

# The files that take longest, longest first: with several processes none of them is begun last.
SLOW = ("test_pipeline", "test_generate", "test_profiles", "test_run", "test_loop", "test_bench", "test_distributed")
SLOW += ("test_features", "test_stage", "test_study", "test_export", "test_cluster")

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(SLOW)}
    items.sort(key=lambda item: order.get(Path(item.path).stem, len(order)))
