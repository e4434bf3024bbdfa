"""Average the weights of a small network over the end of its training on handwritten digits.

    python examples/average_weights.py
    python examples/average_weights.py --epochs 60 --start 20 --rate 0.05

Prints the test accuracy of the network after its last step, and of two averages of its weights: the
mean over the epochs since `--start`, and a moving average over all steps.
"""

import argparse

import torch
from rich.console import Console
from rich.progress import track
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from generated import SGD
from generated.lr_scheduler import CosineAnnealingLR
from generated.swa_utils import EMA, SWALR, AveragedModel, update_bn

BATCH_SIZE = 64


def load_data() -> list[Tensor]:
    """Return train images, test images, train labels, test labels."""
    digits = load_digits()
    images = (digits.data / 16).astype("float32")
    split = train_test_split(
        images, digits.target, test_size=0.3, stratify=digits.target, random_state=0
    )
    return [torch.from_numpy(part) for part in split]


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.3), nn.Linear(64, 10)
    )


def train(images: Tensor, labels: Tensor, options: argparse.Namespace) -> dict[str, nn.Module]:
    """Train a network; give it and its averages, by name."""
    model = make_model()
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    annealing = CosineAnnealingLR(optimizer, T_max=options.epochs)
    constant = SWALR(optimizer, swa_lr=options.rate)
    mean = AveragedModel(model)
    # The bias of a young average is corrected, and statistics are averaged with the weights.
    moving = AveragedModel(model, average=EMA(0.99, bias_correction=True), use_buffers=True)

    for epoch in track(range(options.epochs), "training", transient=True):
        for batch in torch.randperm(len(images)).split(BATCH_SIZE):
            optimizer.zero_grad()
            cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            moving.update_parameters(model)
        if epoch >= options.start:
            mean.update_parameters(model)
            constant.step()
        else:
            annealing.step()

    # The mean of weights has never seen an image: its statistics are those of other weights.
    update_bn(images.split(BATCH_SIZE), mean)
    return {"last step": model, "mean": mean, "moving average": moving}


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    return (model(images).argmax(dim=1) == labels).float().mean().item()


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--epochs", type=int, default=40, help="epochs of the training")
    parser.add_argument("--start", type=int, default=20, help="epoch that the mean begins with")
    parser.add_argument("--rate", type=float, default=0.05, help="learning rate from then on")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    torch.manual_seed(options.seed)
    train_images, test_images, train_labels, test_labels = load_data()
    console = Console()
    for name, model in train(train_images, train_labels, options).items():
        console.print(f"{name}: {accuracy(model, test_images, test_labels):.2%} of the test images")


if __name__ == "__main__":
    main()
