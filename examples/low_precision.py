"""Train a small network on handwritten digits with parameters and state in fewer bits.

    python examples/low_precision.py
    python examples/low_precision.py --optimizer Lion --rate 3e-5 --epochs 40

Prints for each policy of precision the loss over the training set, its ratio to float32's, the test
accuracy, and the bytes that a parameter and the optimizer's state for it take.
"""

import argparse
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR

import generated

BATCH_SIZE = 64


@dataclass(frozen=True)
class Run:
    """A network's dtype, and what the optimizer is told about precision."""

    name: str
    dtype: torch.dtype
    policy: dict[str, Any] = field(default_factory=dict)


RUNS = (
    Run("float32", torch.float32),
    Run("float32, bfloat16 state", torch.float32, {"state_dtype": torch.bfloat16}),
    Run("float32, 8-bit state", torch.float32, {"state_dtype": "int8"}),
    Run("bfloat16", torch.bfloat16),
    Run("bfloat16, stochastic", torch.bfloat16, {"rounding": "stochastic"}),
    Run("bfloat16, kahan", torch.bfloat16, {"kahan": True}),
    Run("bfloat16, master weights", torch.bfloat16, {"master_weights": True}),
    Run(
        "bfloat16, stochastic, 8-bit state",
        torch.bfloat16,
        {"rounding": "stochastic", "state_dtype": "int8"},
    ),
    Run("bfloat16, kahan, 8-bit state", torch.bfloat16, {"kahan": True, "state_dtype": "int8"}),
)


@dataclass(frozen=True)
class Result:
    """What a run came to."""

    loss: float
    accuracy: float
    bytes_per_parameter: float


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
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )


def train(data: list[Tensor], run: Run, optimizer: str, rate: float, epochs: int) -> Result:
    """Train the network with everything in the run's dtype: parameters, gradients, activations. The
    loss that is returned is computed in float32, from the parameters as they are stored."""
    images, test_images, labels, test_labels = data
    torch.manual_seed(0)
    model = make_model().to(run.dtype)
    trainer = getattr(generated, optimizer)(model.parameters(), lr=rate, **run.policy)
    schedule = CosineAnnealingLR(trainer, T_max=epochs)
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(BATCH_SIZE):
            trainer.zero_grad()
            predicted = model(images[batch].to(run.dtype)).float()
            cross_entropy(predicted, labels[batch], label_smoothing=0.1).backward()
            trainer.step()
        schedule.step()
    size = bytes_per_parameter(trainer)
    model = model.float()
    with torch.no_grad():
        loss = cross_entropy(model(images), labels, label_smoothing=0.1).item()
        accuracy = (model(test_images).argmax(1) == test_labels).float().mean().item()
    return Result(loss, accuracy, size)


def bytes_per_parameter(optimizer: torch.optim.Optimizer) -> float:
    """The bytes of parameters and state, without gradients, by the number of elements."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    state = [slot for param in params for slot in optimizer.state[param].values()]
    tensors = [*params, *(slot for slot in state if isinstance(slot, Tensor))]
    return sum(t.numel() * t.element_size() for t in tensors) / sum(p.numel() for p in params)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--optimizer", default="AdamW", help="the name of a class")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--epochs", type=int, default=20)
    return parser.parse_args()


def main() -> None:
    options = parse_options()
    data = load_data()
    table = Table("precision", "loss", "ratio", "accuracy", "bytes per parameter")
    losses: list[float] = []
    for run in track(RUNS, "training", transient=True):
        result = train(data, run, options.optimizer, options.rate, options.epochs)
        losses.append(result.loss)
        table.add_row(
            run.name,
            f"{result.loss:.4f}",
            f"{result.loss / losses[0]:.4f}",
            f"{result.accuracy:.1%}",
            f"{result.bytes_per_parameter:.2f}",
        )
    Console().print(table)


if __name__ == "__main__":
    main()
