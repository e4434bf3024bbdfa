"""Train a small network on scikit-learn's handwritten digits with a generated optimizer.

    python examples/train_digits.py
    python examples/train_digits.py --optimizer SGD --lr 0.1 --schedule StepLR

Prints the test accuracy of every run and their median, and draws the loss curves.
"""

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import generated

BATCH_SIZE = 64


def load_data() -> list[Tensor]:
    """Return train images, test images, train labels, test labels."""
    digits = load_digits()
    images = (digits.images / 16).astype("float32")[:, None]
    split = train_test_split(
        images, digits.target, test_size=0.2, stratify=digits.target, random_state=0
    )
    return [torch.from_numpy(part) for part in split]


def make_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, kernel_size=3, padding=1),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Conv2d(32, 64, kernel_size=3, padding=1),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(64 * 4 * 4, 10),
    )


def make_schedule(
    name: str, optimizer: torch.optim.Optimizer, epochs: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """Build the schedule called `name`, stretched over the whole training."""
    arguments = {
        "CosineAnnealingLR": {"T_max": epochs},
        "LinearLR": {"start_factor": 1.0, "end_factor": 0.01, "total_iters": epochs},
        "PolynomialLR": {"total_iters": epochs},
        "StepLR": {"step_size": max(1, epochs // 3)},
        "ExponentialLR": {"gamma": 0.01 ** (1 / epochs)},
    }
    return getattr(generated.lr_scheduler, name)(optimizer, **arguments.get(name, {}))


def train(
    model: nn.Module, images: Tensor, labels: Tensor, options: argparse.Namespace
) -> Iterator[float]:
    """Train the model, yielding the mean training loss of every epoch."""
    optimizer = getattr(generated, options.optimizer)(model.parameters(), lr=options.lr)
    schedule = make_schedule(options.schedule, optimizer, options.epochs)

    model.train()
    for _ in range(options.epochs):
        total = 0.0
        for batch in torch.randperm(len(images)).split(BATCH_SIZE):
            optimizer.zero_grad()
            loss = cross_entropy(model(images[batch]), labels[batch])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        schedule.step()
        yield total / len(images)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    model.eval()
    return (model(images).argmax(dim=1) == labels).float().mean().item()


def draw(curves: list[list[float]], title: str, path: Path) -> None:
    figure = Figure(figsize=(6, 4), layout="constrained")  # needs no display, unlike pyplot's
    axes = figure.subplots()
    for run, losses in enumerate(curves):
        axes.plot(range(1, len(losses) + 1), losses, label=f"run {run}")
    axes.set(title=title, xlabel="epoch", ylabel="training loss", yscale="log")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend()
    figure.savefig(path, dpi=150)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--optimizer", default="AdamW", metavar="NAME", help="class in generated")
    parser.add_argument(
        "--schedule",
        default="CosineAnnealingLR",
        metavar="NAME",
        help="class in generated.lr_scheduler",
    )
    parser.add_argument("--lr", type=float, default=3e-3, help="initial learning rate")
    parser.add_argument("--runs", type=int, default=5, help="number of initialisations")
    parser.add_argument("--epochs", type=int, default=20, help="epochs per run")
    parser.add_argument(
        "--out", type=Path, default=Path("digits_loss.png"), help="picture to write"
    )
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    console = Console()
    train_images, test_images, train_labels, test_labels = load_data()

    curves, accuracies = [], []
    # In a pipe, the bar would only clutter the output.
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for run in range(options.runs):
            torch.manual_seed(run)
            model = make_model()
            epochs = train(model, train_images, train_labels, options)
            curves.append(
                list(progress.track(epochs, total=options.epochs, description=f"run {run}"))
            )
            accuracies.append(accuracy(model, test_images, test_labels))
            console.print(f"run {run}: test accuracy {accuracies[-1]:.2%}")

    median = statistics.median(accuracies)
    console.print(f"median test accuracy over {options.runs} runs: {median:.2%}")
    draw(curves, f"{options.optimizer}, {options.schedule}: {median:.2%} correct", options.out)
    console.print(f"loss curves: {options.out}")


if __name__ == "__main__":
    main()
