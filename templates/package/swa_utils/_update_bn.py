"""Statistics of batch normalisation for weights that were never trained."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@torch.no_grad()
def update_bn(
    loader: Iterable[Any], model: nn.Module, device: int | torch.device | None = None
) -> None:
    """Set the running statistics of the batch normalisations of `model` to the means over all
    batches of `loader`, each batch with the same weight. Nothing is done without such layers.

    Args:
        loader: batches, each a tensor, or a list or a tuple that begins with one.
        model: called with each batch in training mode; the mode of every module is then as before.
        device: where batches are moved first.
    """
    layers = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # the mean over batches
        for batch in loader:
            given = batch[0] if isinstance(batch, (list, tuple)) else batch
            model(given if device is None else given.to(device))
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        model.train(modes[0][1])  # the model itself comes first
        for module, mode in modes:
            module.training = mode
