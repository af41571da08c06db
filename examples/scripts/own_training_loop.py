"""Condense the built-in digits, then train a network of your own on the ten images.

    python examples/scripts/own_training_loop.py [ITERATIONS]

Shows what a condensed set is to other code: a dataset in the style of torchvision, or two tensors.
"""

import sys

import torch
from torch import nn
from torch.utils.data import DataLoader

import dcf
from dcf.data.digits import Digits


def train(model: nn.Module, data: DataLoader, epochs: int = 100) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(epochs):
        for images, labels in data:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()


def main(iterations: int = 200) -> float:
    small = dcf.condense(matcher="dm", data="digits", ipc=1, iterations=iterations, lr=1.0, evaluate=False)
    small.save("digits.safetensors")

    small = dcf.load("digits.safetensors")
    print(f"{len(small)} images of classes {', '.join(small.classes)}")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, len(small.classes)))
    train(model, DataLoader(small, batch_size=10, shuffle=True))

    # Real images come in the same value space as those of the set.
    test = Digits().load().test
    images, labels = test.images(torch.arange(len(test))), test.labels
    accuracy = (model(images).argmax(1) == labels).float().mean().item()
    print(f"accuracy on {len(test)} real images: {100 * accuracy:.1f} %")
    return accuracy


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
