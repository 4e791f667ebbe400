"""The machine that figures were measured on: what explains why another one gives others."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from pixelsem import __version__

#: The processor's abilities that decide how fast matrices are multiplied.
_ABILITIES = (
    *("avx2", "fma", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_bf16", "amx_int8", "asimd", "sve", "bf16", "i8mm"),
)


def describe(device: torch.device) -> dict[str, Any]:
    """Return processor, cores, abilities, memory, versions, threads in use, load, and the GPU if one is used."""
    cpu = _processor()
    return {
        "cpu": cpu.get("model name") or platform.processor() or platform.machine(),
        "cores": cores(),
        "abilities": [name for name in _ABILITIES if name in cpu.get("flags", cpu.get("Features", "")).split()],
        "ram_gib": _ram_gib(),
        "gpu": _gpu(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads(),
        "load": _load(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pixelsem": __version__,
    }


def cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def warn_if_busy() -> None:
    """Say so on stderr where others keep the cores busy; rates are then low and ratios uncertain."""
    load = _load()
    if load is not None and load > 0.5 * cores():
        print(f"the machine is busy (load {load:.1f} on {cores()} cores): do not keep these figures", file=sys.stderr)


def _processor() -> dict[str, str]:
    """Return what Linux says about the first processor; nothing elsewhere."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}


def _ram_gib() -> float | None:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)


def _load() -> float | None:
    """Return the mean number of running processes in the last minute."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def _gpu(device: torch.device) -> dict[str, Any]:
    about = torch.cuda.get_device_properties(device)
    return {
        "name": about.name,
        "memory_gib": round(about.total_memory / 2**30, 1),
        "capability": f"{about.major}.{about.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }
