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


class Rescaling(Encoder):
    """An encoder that takes pixels from 0 to 255."""

    def forward(self, images):
        return super().forward((images / 255 - 0.5) / 0.25)


class InPlace(Encoder):
    """An encoder that changes its tensors in place, as the layers of torchvision do."""

    def forward(self, images):
        images = images.clone()
        images.sub_(127.5).div_(64)
        maps = self.norm(self.first(images))
        nn.functional.relu(maps, inplace=True)
        return self.head(self.maps(maps).mean((2, 3)))


class Sampling(Encoder):
    """An encoder whose features change from call to call."""

    def forward(self, images):
        features = super().forward(images)
        return features + torch.randn_like(features)


class Centering(Encoder):
    """An encoder whose features depend on the other images of the batch."""

    def forward(self, images):
        features = super().forward(images)
        return features - features.mean(0, keepdim=True)


class Masked(Encoder):
    """An encoder that needs more than the images."""

    def forward(self, images, mask):
        return super().forward(images * mask)


class Branching(Encoder):
    """An encoder that cannot be exported, as its code depends on the values of the images."""

    def forward(self, images):
        if images.sum() > 0:
            return super().forward(images)
        return super().forward(-images)


class Several(Encoder):
    """An encoder with several outputs by name."""

    def forward(self, images):
        maps = self.maps(torch.relu(self.norm(self.first(images))))
        return {"maps_out": maps, "vector": self.head(maps.mean((2, 3))), "size": 3}


class Tokens(nn.Module):
    """A transformer of patches; `grid` has its channels last, `tokens` has a class token."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 12, 4, stride=4)
        self.grid = nn.Identity()
        self.token = nn.Parameter(torch.zeros(1, 1, 12))
        self.tokens = nn.Identity()
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.block = nn.TransformerEncoderLayer(12, 3, 24, batch_first=True)
        self.norm = nn.LayerNorm(12)

    def forward(self, images):
        grid = self.grid(self.patches(images).permute(0, 2, 3, 1))
        tokens = torch.cat([self.token.expand(len(images), -1, -1), grid.flatten(1, 2)], 1)
        tokens = self.tokens(tokens)
        tokens = tokens + self.attention(tokens, tokens, tokens)[0]
        return self.norm(self.block(tokens))


class Twice(Encoder):
    """An encoder that calls one of its layers twice, and one never."""

    def __init__(self):
        super().__init__()
        self.activation = nn.ReLU()
        self.unused = nn.Linear(2, 2)

    def forward(self, images):
        return self.activation(
            self.head(self.activation(self.first(images)).mean((2, 3)).repeat(1, 2)[:, :10])
        )


class Padded(nn.Module):
    """An encoder that other frameworks compute in the same way: it pads both sides alike."""

    def __init__(self):
        super().__init__()
        self.pad = nn.ZeroPad2d(1)
        self.first = nn.Conv2d(3, 6, 3, stride=2)
        self.norm = nn.BatchNorm2d(6, eps=1e-3)
        self.pool = nn.MaxPool2d(2)
        self.maps = nn.Conv2d(6, 10, 3)
        self.head = nn.Linear(10, 8)

    def forward(self, images):
        maps = self.pool(torch.relu(self.norm(self.first(self.pad(images)))))
        return self.head(torch.relu(self.maps(maps)).mean((2, 3)))


def padded():
    """Return a trained encoder that other frameworks can have, too."""
    return filled(Padded()).eval()


def make(name, seed=1):
    """Return a trained encoder of a class of this module."""
    return filled(globals()[name](), seed).eval()


def wrapped():
    """Return a module that holds an encoder."""
    outer = nn.Module()
    outer.encoder = encoder()
    return outer
