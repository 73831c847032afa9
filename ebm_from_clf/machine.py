"""What numbers were measured with: the machine, its memory, and the versions of the libraries."""

__all__ = ["machine", "peak_memory"]

import platform
import resource
import sys
import time
from typing import Any

import timm
import torch


def machine() -> dict[str, Any]:
    """Returns what the numbers were measured with."""
    return {
        "peak_memory_mb": peak_memory(),
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "timm": timm.__version__,
        },
        "date": time.strftime("%Y-%m-%d"),
    }


def peak_memory() -> int:
    """Returns the largest memory this process has held, in megabytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (1024 * 1024 if sys.platform == "darwin" else 1024)
