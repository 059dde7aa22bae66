"""Is there a GPU to train and generate on? Asked of the driver's library and of torch's files:
torch itself takes seconds to import, and a flag must be refused in less."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re
from pathlib import Path

DEVICE_FILES = Path("/dev")
HIDDEN = ("", "-1")  # values of CUDA_VISIBLE_DEVICES that leave no device


def has_gpu() -> bool:
    """Does this process see a CUDA device that the installed torch can use?"""
    return why_no_gpu() is None


def why_no_gpu() -> str | None:
    """The reason in words; None where there is a GPU."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in HIDDEN:
        return "CUDA_VISIBLE_DEVICES hides every device"
    if num_devices() == 0:
        return "NVIDIA's driver finds no device here"
    if not _torch_knows_cuda():
        return "the installed torch is built for CPUs only"
    return None


def why_unused() -> str | None:
    """Why GPUs that are here cannot be used, in words. None where there are none, where they can,
    and where they are hidden on purpose."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in HIDDEN:
        return None
    if count := num_devices():
        built = "the installed torch is built for CPUs only (`make setup-gpu`)"
        return None if _torch_knows_cuda() else f"{count} GPUs are here, and {built}"
    files = sorted(path.name for path in DEVICE_FILES.glob("nvidia[0-9]*"))
    if files:
        return (
            f"{DEVICE_FILES / files[0]} is here, and NVIDIA's driver library finds no device (does"
            " nvidia-smi run?)"
        )
    return None


def num_devices() -> int:
    """How many CUDA devices the driver shows this process; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return 0 if failed else count.value


def _torch_knows_cuda() -> bool:
    """What torch/version.py says, read as text: importing torch takes seconds."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return False
    text = Path(found.origin).with_name("version.py").read_text(encoding="utf-8")
    return re.search(r"^cuda\b[^=]*=\s*['\"]", text, re.MULTILINE) is not None
