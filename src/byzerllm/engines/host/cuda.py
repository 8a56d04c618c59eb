"""A GPU that cannot be used: what is wrong, and what to do about it."""

from __future__ import annotations

import re
import sys

_OTHER_TORCH = "{python} -m pip install, as https://pytorch.org/get-started/previous-versions has it"
# What CUDA says when it cannot be used at all, and what that means.
_MEANINGS: tuple[tuple[str, str], ...] = (
    (
        r"driver on your system is too old|driver version is insufficient|forward compatibility was attempted",
        "the NVIDIA driver is too old for this build of torch{cuda}. Update the driver, or install a build for "
        f"an older CUDA: {_OTHER_TORCH}",
    ),
    (
        r"no kernel image is available|unsupported toolchain",
        "this build of torch{cuda} has no code for this GPU, which is too old or too new for it. Install "
        f"another one: {_OTHER_TORCH}",
    ),
    (
        r"not compiled with CUDA",
        "this torch was built for CPUs. Make the engine's environment anew, with byzerllm engine install, on the "
        "machine that has the GPU",
    ),
    (
        r"Found no NVIDIA driver|No CUDA GPUs are available|no CUDA-capable device",
        "this process sees no GPU ({text}). nvidia-smi tells which ones there are; a container must be given them "
        "(docker run --gpus all)",
    ),
    (
        r"CUDA unknown error|driver initialization failed|initialization error|system not yet initialized",
        "CUDA cannot be initialised ({text}). nvidia-smi tells whether the driver works; after its update the machine "
        "must be started again, and machines with NVSwitch need the service nvidia-fabricmanager",
    ),
)


def meaning(text: str) -> str | None:
    """What an error says that comes of a driver or a build of torch that cannot be used here; None of any other."""
    torch = sys.modules.get("torch")
    built = torch and torch.version.cuda
    for pattern, said in _MEANINGS:
        if re.search(pattern, text, re.IGNORECASE):
            first = text.strip().splitlines()[0].rstrip(".")
            return said.format(cuda=f" for CUDA {built}" if built else "", python=sys.executable, text=first)
    return None


def cause(error: BaseException) -> str | None:
    """What an error says of the GPU, as a cause for the log; None of one that has nothing to do with it. It is told by
    its name, as torch may not be imported."""
    text, kind = str(error).strip(), type(error).__name__
    if kind == "OutOfMemoryError" or "STATUS_ALLOC_FAILED" in text:
        return f"out of GPU memory: {' '.join(text.split())}"
    if unusable := meaning(text):
        return f"no GPU can be used: {unusable}."
    if kind == "AcceleratorError" or "CUDA error" in text:
        return f"the GPU failed: {text.splitlines()[0] if text else kind}"  # the rest is for CUDA's programmers
    return None


def problem() -> str | None:
    """Why torch can use no GPU, or None. Uses no memory of any: ranks have one each, and would all take some of the
    first."""
    import torch

    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # AssertionError: a build without CUDA
        return meaning(str(error)) or str(error).rstrip(".")
    return None
