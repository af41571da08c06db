"""What several test files use."""

import pytest
import torch


@pytest.fixture
def set_threads():
    """Sets the number of threads for a test; afterwards it is what it was."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
