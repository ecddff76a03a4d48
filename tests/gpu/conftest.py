"""The process group that the tests of this folder train in ends with them."""

from collections.abc import Iterator

import pytest
import torch.distributed as dist


@pytest.fixture(scope="package", autouse=True)
def own_group() -> Iterator[None]:
    """Other folders' tests begin without a group."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
