"""What autocast asks of operations that are one autograd node: they choose their type once, by themselves."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The type of products with `tensor`: autocast's where it is on, else the tensor's own."""
    device = tensor.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tensor.dtype


def without_autocast(tensor: Tensor) -> AbstractContextManager:
    """A context in which operations on the device of `tensor` keep the types of their inputs."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


__all__ = ["compute_dtype", "without_autocast"]
