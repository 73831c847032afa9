import os
import sys
from pathlib import Path

import pytest

# Two busy processes make OpenMP spin; so their number is fixed.
os.environ.setdefault("OMP_NUM_THREADS", "2")
# Tests make tensors on the CPU; with CUDA_VISIBLE_DEVICES=0 the package would take the GPU.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def same_seed():
    """Each test draws the same numbers, alone or after any other one."""
    import torch  # after the number of threads is set

    torch.random.manual_seed(0)
