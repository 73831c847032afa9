"""The machine: what numbers were measured with, and how much memory there is."""

__all__ = ["free_memory", "machine", "peak_memory"]

import math
import platform
import re
import resource
import sys
import time
from pathlib import Path
from typing import Any

import timm
import torch

# What limits the memory of a container, and how much of it is taken.
CONTAINERS = (
    ("/sys/fs/cgroup", "memory.max", "memory.current"),
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


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


def free_memory(device: torch.device) -> float:
    """Returns how many bytes of memory can still be had, infinite if the system does not tell.

    Arguments:
        device: Whose memory.
    """
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    found = [math.inf]
    available = re.search(r"^MemAvailable: *(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    if available:
        found.append(1024 * int(available[1]))
    for folder, most, used in CONTAINERS:
        limit, taken = _read(f"{folder}/{most}").strip(), _read(f"{folder}/{used}").strip()
        # Files that are read once more from the disk do not count.
        cache = re.search(r"^(?:total_)?inactive_file (\d+)", _read(f"{folder}/memory.stat"), re.M)
        if limit.isdigit() and taken.isdigit():
            found.append(int(limit) - int(taken) + (int(cache[1]) if cache else 0))
    return max(min(found), 0)


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
