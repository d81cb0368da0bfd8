"""Examine the machine: processor, kernels, GPU, memory, allocator and limits, without importing torch."""

from __future__ import annotations

import os
import platform
import re
import resource
from collections.abc import Iterator
from importlib.machinery import EXTENSION_SUFFIXES
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from tunery.gateway.doctor.finding import Examined, Finding, fail, ok, warn
from tunery.plugins.runtime.machine import FLAGS
from tunery.plugins.runtime.machine_memory import free_memory, total_memory
from tunery.plugins.runtime.threads import available_cores

__all__ = ["check_gpu", "check_kernels", "check_limits", "check_memory", "check_processor"]

_KERNELS = ("tunery.gateway.engine.models.native", "tunery.plugins.training.fused")
_NEEDED_FLAGS = ("avx512f", "avx512_bf16")
_MORE_FILES = 512
"""Open files beside connections: blobs, databases, libraries."""
_LITTLE = 2 << 30


def check_processor(examined: Examined) -> Iterator[Finding]:
    """Cores, and the instructions that the kernels use."""
    flags = _flags()
    present = [flag for flag in FLAGS if flag in flags]
    found = f"{available_cores()} cores, {', '.join(present) or 'none of ' + ', '.join(FLAGS)}"
    if flags and not set(_NEEDED_FLAGS) <= flags:
        yield warn("processor", found, "without AVX-512 with BF16 it computes with torch alone, which is slower")
    else:
        yield ok("processor", found if flags else f"{available_cores()} cores ({platform.machine()})")


def _flags(path: Path = Path("/proc/cpuinfo")) -> set[str]:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.partition(":")[2].split()) for line in lines if line.startswith("flags")), set())


def check_kernels(examined: Examined) -> Iterator[Finding]:
    """Whether the native kernels were built."""
    missing = [name for name in _KERNELS if not _is_built(name)]
    if missing:
        yield warn("kernels", f"not built: {', '.join(missing)}", "reinstall Tunery where there is a C compiler")
    else:
        yield ok("kernels", "built" + ("" if examined.deep else "; --deep loads them"))


def _is_built(package: str) -> bool:
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec else ()
    return any(Path(folder, f"_kernels{suffix}").is_file() for folder in folders or () for suffix in EXTENSION_SUFFIXES)


def check_gpu(examined: Examined) -> Iterator[Finding]:
    """Whether torch's build and the driver fit each other, and bitsandbytes is there."""
    driver, cuda = _driver(), _torch_cuda()
    wanted = examined.settings.serve.device.startswith("cuda")
    if driver and cuda is None:
        yield warn("gpu", f"driver {driver}, and torch is built without CUDA", "install torch's CUDA build to use it")
    elif wanted and not driver:
        yield fail(
            "gpu", "serve.device is cuda, and no NVIDIA driver is loaded", "install the driver, or use device cpu"
        )
    elif driver and cuda and not Path("/dev/nvidia0").exists():
        yield warn("gpu", f"driver {driver}, and no device in /dev", "give the container the GPU (--gpus all)")
    elif driver:
        yield ok(
            "gpu",
            f"driver {driver}, torch for CUDA {cuda}, {_bitsandbytes()}"
            + ("" if examined.deep else "; --deep uses it"),
        )
    else:
        yield ok("gpu", "none: it computes on the processor")


def _driver(path: Path = Path("/proc/driver/nvidia/version")) -> str:
    try:
        found = re.search(r"(\d+\.\d+(?:\.\d+)?)", path.read_text())
    except OSError:
        return ""
    return found[1] if found else "of unknown version"


def _torch_cuda() -> str | None:
    """The CUDA version that torch is built for, from a file of it: importing torch takes seconds."""
    spec = find_spec("torch")
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        return None
    found = re.search(
        r"^cuda(?:: Optional\[str\])? = '([^']+)'", Path(folders[0], "version.py").read_text(), re.MULTILINE
    )
    return found[1] if found else None


def _bitsandbytes() -> str:
    try:
        return f"bitsandbytes {version('bitsandbytes')}"
    except PackageNotFoundError:
        return "no bitsandbytes"


def check_memory(examined: Examined) -> Iterator[Finding]:
    """Main memory within the control group."""
    free, total = free_memory(), total_memory()
    found = f"{free / 1e9:.1f} GB of {total / 1e9:.1f} GB free"
    if free < _LITTLE:
        yield warn("memory", found, "end other processes, raise the container's limit, or serve fewer adapters at once")
    else:
        yield ok("memory", found)


def check_limits(examined: Examined) -> Iterator[Finding]:
    """The allocator, and how many files a process may open."""
    libc, number = platform.libc_ver()
    preloaded = os.environ.get("LD_PRELOAD", "")
    name = Path(preloaded.split(":")[0]).name if preloaded else f"{libc} {number}".strip()
    yield ok("allocator", f"{name or 'unknown'}{'' if libc == 'glibc' and not preloaded else ': left as it is'}")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = examined.settings.serve.max_connections + _MORE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        yield warn(
            "open files",
            f"at most {soft}, and serve.max_connections needs about {needed}",
            f"ulimit -n {needed}, or LimitNOFILE= in the systemd unit",
        )
    else:
        yield ok("open files", "no limit" if soft == resource.RLIM_INFINITY else f"at most {soft}")
