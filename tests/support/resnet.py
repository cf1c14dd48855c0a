"""The trained ResNet-20 for CIFAR-10 and twenty of its images, where they are present."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data"
MEAN, DEVIATION = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def present():
    return (FOLDER / "resnet20_cifar10.pt").exists() and (FOLDER / "cifar10_20.npz").exists()


class Block(nn.Module):
    def __init__(self, channels_in, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1:
            projection = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(channels))

    def forward(self, x):
        h = self.relu(self.bn1(self.conv1(x)))
        h = self.bn2(self.conv2(h))
        h += x if self.downsample is None else self.downsample(x)
        return self.relu(h)


class ResNet20(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1, self.relu = nn.BatchNorm2d(16), nn.ReLU(inplace=True)
        self.layer1, self.layer2, self.layer3 = (
            nn.Sequential(Block(i, o, s), Block(o, o, 1), Block(o, o, 1))
            for i, o, s in ((16, 16, 1), (16, 32, 2), (32, 64, 2))
        )
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        h = self.relu(self.bn1(self.conv1(x)))
        h = self.layer3(self.layer2(self.layer1(h)))
        return self.fc(h.mean(dim=(2, 3)))


def problem(dtype=torch.float64):
    """The trained network in evaluation mode, and the images with their labels."""
    net = ResNet20()
    net.load_state_dict(torch.load(FOLDER / "resnet20_cifar10.pt", weights_only=True))
    with np.load(FOLDER / "cifar10_20.npz") as file:
        images, labels = torch.as_tensor(file["images"]), torch.as_tensor(file["labels"])
    x = images.permute(0, 3, 1, 2).to(torch.float64) / 255
    mean, deviation = (torch.tensor(v, dtype=x.dtype)[:, None, None] for v in (MEAN, DEVIATION))
    return net.eval().to(dtype), (((x - mean) / deviation).to(dtype), labels)
