"""The machine: device, precision, allocator, versions, peak memory."""

import ctypes
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from ddengine.system.errors import UserError

Precision = Literal["fp32", "tf32", "bf16"]
UNKNOWN = 2**62  # bytes of memory where nobody says how many there are


def keep_freed_memory() -> None:
    """Tell glibc to keep large freed blocks instead of returning them to the kernel.

    For work on a CPU under Linux.

    Half of the time of a training step on a CPU can be page faults on the same activations, step
    after step: ConvNet-D3 of width 128 at batch 100 went from 0.65 s to 0.39 s a gradient. Does
    nothing where there is no mallopt.
    """
    if sys.platform != "linux":
        return
    # probe: of the C library, which need not be glibc
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_TOP_PAD
        for option, value in ((-3, 2**31 - 1), (-1, 2**31 - 1), (-2, 2**28)):
            mallopt(option, value)


def setup(device: str = "auto", precision: Precision = "fp32") -> torch.device:
    """Prepare this process for `device` ("auto", "cpu", "cuda", "cuda:N") and return it.

    Raises UserError when it is not there.
    """
    chosen = device_named(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        # Resuming bit-identically needs the deterministic kernels; cuBLAS wants its workspace fixed
        # for that.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
    elif precision == "tf32":
        raise UserError(
            "--precision tf32 exists only on CUDA devices; use fp32 or bf16 with --device cpu."
        )
    else:
        keep_freed_memory()
    allow_tf32 = precision == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = allow_tf32
    torch.backends.cudnn.allow_tf32 = allow_tf32
    return chosen


def device_named(device: str) -> torch.device:
    """The device of that name, with its number. Raises UserError when it is not there."""
    local = int(os.environ.get("LOCAL_RANK", 0))
    if device == "auto":
        device = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise UserError(
            f"--device {device!r} is not a device; use auto, cpu, cuda or cuda:N."
        ) from None
    if chosen.type == "cpu":
        return chosen
    if chosen.type != "cuda":
        raise UserError(f"--device {device!r} is not supported; use auto, cpu, cuda or cuda:N.")
    index = local if chosen.index is None else chosen.index
    if not torch.cuda.is_available() or index >= torch.cuda.device_count():
        raise UserError(
            f"--device {device!r} was asked for, but torch sees {torch.cuda.device_count()} CUDA "
            "devices; use --device cpu."
        )
    return torch.device("cuda", index)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, for which the host waits only where it is to have it itself."""
    return tensor.to(device, non_blocking=device.type != "cpu")


@contextmanager
def exact_matmul() -> Iterator[None]:
    """Matrix products in full float32 also where TF32 is allowed.

    Whitening must not depend on --precision.
    """
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


@contextmanager
def on_threads(num: int) -> Iterator[None]:
    """Within the block torch computes on so many threads of a CPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(num)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which networks run: bfloat16 autocast for "bf16", nothing otherwise."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


def slower_in(precision: Precision, device: torch.device) -> float | None:
    """How many times as long as fp32 a precision takes here, where it takes longer; else None.

    Measured on one layer of a network, forwards and backwards: processors without instructions for
    bfloat16 compute it by conversions. Asked for bf16 on a CPU alone.
    """
    if precision != "bf16" or device.type != "cpu":
        return None
    with on_threads(1):
        pairs = [(_layer_seconds("fp32"), _layer_seconds("bf16")) for _ in range(3)]
    exact = min(pair[0] for pair in pairs)
    rounded = min(pair[1] for pair in pairs)
    return rounded / exact if rounded > exact else None


def _layer_seconds(precision: Precision) -> float:
    """Processor seconds of a convolution, normalisation and activation, there and back."""
    images = torch.ones(16, 64, 16, 16)
    kernels = torch.ones(64, 64, 3, 3, requires_grad=True)
    began = time.process_time()
    with autocast(images.device, precision):
        reached = functional.conv2d(images, kernels, padding=1)
        reached = functional.relu(functional.group_norm(reached, 64))
    reached.sum().backward()
    return time.process_time() - began


def peak_memory(device: torch.device) -> int:
    """Most bytes this process has held so far: device memory on CUDA, resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) + _held_by_recordings(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if sys.platform == "darwin":
        return peak
    return peak * 1024


def forget_peak(device: torch.device) -> None:
    """Count the most memory from now on; on a CPU it is that of the process all the same."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _held_by_recordings(device: torch.device) -> int:
    """Bytes of a device that CUDA graphs keep for their next launch, allocated to no tensor."""
    held = 0
    for segment in torch.cuda.memory_snapshot():
        ordinary = tuple(segment.get("segment_pool_id", (0, 0))) == (0, 0)
        if not ordinary and segment["device"] == device.index:
            held += segment["total_size"] - segment["allocated_size"]
    return held


def available_memory(device: torch.device) -> int:
    """Bytes that can still be had: free on the device (CUDA), else what the system says.

    Less where a limit of this process's group is lower; 2^62 where nobody knows.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free, _ = torch.cuda.mem_get_info(device)
        return free + unused - _held_by_recordings(device)
    if sys.platform != "linux":
        return UNKNOWN
    try:
        least = _available_to_all()
        folders = _groups()
    except (OSError, LookupError):
        return UNKNOWN
    for folder in folders:
        most = _number(folder / "memory.max")
        used = _number(folder / "memory.current")
        if most is not None and used is not None:
            left = most - used + _reclaimable(folder)
            least = min(least, max(0, left))
    return least


def check_memory(what: str, needed: int, remedy: str) -> None:
    """Raise UserError where something needs more bytes than there are, before they are asked for.

    `what` is what needs them, `remedy` what to do.
    """
    available = available_memory(torch.device("cpu"))
    if needed > available:
        raise UserError(
            f"{what} needs {needed / 1e9:,.1f} GB of memory, and {available / 1e9:,.1f} GB are at "
            f"hand; {remedy}."
        )


def _available_to_all() -> int:
    """Bytes of memory that Linux has for processes.

    Raises OSError or LookupError where it does not say.
    """
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise LookupError("MemAvailable")


def _groups() -> set[Path]:
    """The folders of the groups of this process that may limit its memory. Raises OSError."""
    root = Path("/sys/fs/cgroup")
    folders = {root}
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            _, _, group = line.rpartition(":")
            folders.add(root / group.strip("/"))
    return folders


def _number(path: Path) -> int | None:
    """The number in a file; None without one."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _reclaimable(group: Path) -> int:
    """Bytes of files in memory that would be given up."""
    try:
        facts = (group / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    for line in facts:
        if line.startswith("inactive_file "):
            _, size = line.split()
            return int(size)
    return 0


def machine(device: torch.device) -> dict[str, str | int]:
    """Device name, processor count and operating system, for result files."""
    name = f"CPU {platform.machine()}"
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    cores = os.cpu_count() or 1
    if sys.platform == "linux":
        cores = len(os.sched_getaffinity(0))
    return {"device": name, "cores": cores, "system": platform.system()}


def versions() -> dict[str, str]:
    """Versions of everything that can change a number."""
    packages = ("torch", "torchvision", "kornia", "numpy", "scipy", "scikit-learn", "safetensors")
    versions = {"python": platform.python_version()}
    for package in packages:
        versions[package] = metadata.version(package)
    return versions


def commit() -> str | None:
    """The git commit of this engine's own checkout ("-dirty" appended when it has local changes).

    None where it is installed, also inside the checkout of another project.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists() or not (root / "pyproject.toml").is_file():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run([*command, "--exclude=*"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
