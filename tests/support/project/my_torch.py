# SPDX-License-Identifier: Apache-2.0
"""Encoders of PyTorch as users write them.

Tests copy this file into the folder that the command is started in.
"""

import torch
from torch import nn


def filled(module, seed=1):
    """Give every weight a value that no initializer gives, the same on every call."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in (*module.parameters(), *module.buffers()):
            if value.dim() == 1:
                # Variances are positive.
                value.copy_(torch.rand(value.shape, generator=random) * 0.5 + 0.1)
            elif value.dim() > 1:
                scale = value[0].numel() ** -0.5
                value.copy_(torch.randn(value.shape, generator=random) * scale)
    return module


class Encoder(nn.Module):
    """A convolutional encoder with layers that behave otherwise in training."""

    def __init__(self, channels=3, size=8):
        super().__init__()
        self.first = nn.Conv2d(channels, 6, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.maps = nn.Sequential(nn.Conv2d(6, 10, 3, padding=1), nn.ReLU())
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(10, size)

    def forward(self, images):
        maps = self.maps(torch.relu(self.norm(self.first(images))))
        return self.head(self.dropout(maps.mean((2, 3))))


def encoder(seed=1, **kwargs):
    """Return a trained encoder, in training mode."""
    return filled(Encoder(**kwargs), seed)


def untrained():
    """Return an encoder with random weights."""
    return Encoder()
