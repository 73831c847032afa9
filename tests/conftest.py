import os
import sys
from pathlib import Path

import pytest

# Two busy processes make OpenMP spin; so their number is fixed.
os.environ.setdefault("OMP_NUM_THREADS", "2")
# Tests make tensors on the CPU; with CUDA_VISIBLE_DEVICES=0 the package would take the GPU.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
sys.path.insert(0, str(Path(__file__).parent))


def seeded():
    import torch  # after the number of threads is set

    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(0)
        yield


# What a module, or a test, makes is the same alone and after any other one.
seeded_module = pytest.fixture(autouse=True, scope="module")(seeded)
seeded_test = pytest.fixture(autouse=True)(seeded)
