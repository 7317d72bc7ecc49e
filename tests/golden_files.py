"""Golden vectors: inputs and outputs of the published implementations."""

import os
from pathlib import Path

import torch
from safetensors.torch import load_file

GOLDEN = Path(os.environ.get("DDENGINE_GOLDEN", Path(__file__).parent / "golden"))


def load(name: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A golden file with its floating-point tensors in `dtype`."""
    tensors = {}
    for key, tensor in load_file(GOLDEN / f"{name}.safetensors").items():
        tensors[key] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return tensors
