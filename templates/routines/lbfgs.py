"""L-BFGS: an optimizer and a closure to parameters moved by up to `max_iter` quasi-Newton steps.

The numbered algorithms are those of Nocedal and Wright, Numerical Optimization, second edition.
Everything that outlives a step is in the state of the first parameter, under torch's names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ._tensors import max_abs

# A Python number, or a tensor without dimensions. They round differently, so what torch keeps as a
# tensor is one here too.
Scalar = Any
Closure = Callable[[], Any]

# Constants of the Wolfe conditions, 0 < DECREASE < CURVATURE < 1.
DECREASE = 1e-4
CURVATURE = 0.9
# A step along which the gradient changes by less teaches the memory nothing but noise.
LEAST_PRODUCT = 1e-10
# A bracket whose ends differ by less in every parameter is not searched, whatever the tolerances.
NARROWEST = 1e-9


def step(optimizer: torch.optim.Optimizer, closure: Closure) -> Any:
    """Minimise, or with `maximize` maximise, the loss; gradients are enabled for `closure` only.

    A gradient that is not finite ends the step where it was found, and a direction that is not
    finite is not taken. Parameters and state agree even if the closure raises: the state is written
    whenever the parameters have moved, and a line search takes its trials back.

    Returns:
        What the closure returned the first time.

    Raises:
        RuntimeError: `line_search_fn` is neither None nor "strong_wolfe".
    """
    (group,) = optimizer.param_groups
    searches = group["line_search_fn"] is not None
    if searches and group["line_search_fn"] != "strong_wolfe":
        raise RuntimeError("only 'strong_wolfe' is supported")
    tolerance_grad, tolerance_change = group["tolerance_grad"], group["tolerance_change"]
    params: list[Tensor] = group["params"]
    state = optimizer.state[params[0]]
    state.setdefault("func_evals", 0)
    state.setdefault("n_iter", 0)
    last_evaluation = state["func_evals"] + math.ceil(group["max_eval"])
    objective = Objective(params, closure, bool(group.get("maximize")), state)
    result, loss, gradient = objective.evaluate()
    if _is_final(gradient, tolerance_grad):
        return result

    _follow(state, gradient)
    for remaining in reversed(range(math.ceil(group["max_iter"]))):
        memory = _remember(state, gradient, group["history_size"])
        direction = _direction(state, memory, gradient, group["history_size"])
        length = _first_length(state, gradient, group["lr"])
        start = Point(0, loss, gradient, gradient.dot(direction))
        descends = _descends(start.slope, direction, tolerance_change)
        if descends and searches:
            ray = Ray(objective.along(direction), start, max_abs(direction))
            found = _strong_wolfe(ray, length, last_evaluation - state["func_evals"])
            length, loss, gradient = found.length, found.loss, found.gradient
        if descends:
            _move(params, direction, length)
        state.update(
            n_iter=state["n_iter"] + 1,
            d=direction,
            t=length,
            old_dirs=memory.changes,
            old_stps=memory.steps,
            ro=memory.inverses,
            H_diag=memory.scale,
            prev_flat_grad=start.gradient,
            prev_loss=start.loss,
        )
        # Without a search the last point is left for the next call, which may see other data there.
        if not descends or not remaining:
            break
        if not searches:
            _, loss, gradient = objective.evaluate()
        if (
            state["func_evals"] >= last_evaluation
            or _is_final(gradient, tolerance_grad)
            or max_abs(direction.mul(length)) <= tolerance_change
            or abs(loss - start.loss) < tolerance_change
        ):
            break
    return result


# The loss as a function of one vector


@dataclass(frozen=True)
class Point:
    """A point of the ray that is searched: how far along it is, the loss and the gradient there,
    and the slope, the derivative of the loss along the ray."""

    length: Scalar
    loss: float
    gradient: Tensor
    slope: Tensor


@dataclass(frozen=True)
class Objective:
    """What is minimised. Its argument is the parameters; its gradient is one vector of them all."""

    params: list[Tensor]
    closure: Closure
    negated: bool
    state: dict[str, Any]

    def evaluate(self) -> tuple[Any, float, Tensor]:
        """What the closure returns, the loss and the gradient."""
        with torch.enable_grad():
            result = self.closure()
        self.state["func_evals"] += 1
        loss, gradient = float(result), _flat_gradient(self.params)
        return (result, -loss, gradient.neg_()) if self.negated else (result, loss, gradient)

    def along(self, direction: Tensor) -> Callable[[Scalar], Point]:
        """A function from a length to the point so far from here. Where loss or slope are not
        finite, the point counts as higher than all others."""
        origin = [param.clone() for param in self.params]

        def at(length: Scalar) -> Point:
            try:
                _move(self.params, direction, length)
                _, loss, gradient = self.evaluate()
            finally:
                for param, value in zip(self.params, origin, strict=True):
                    param.copy_(value)
            slope = gradient.dot(direction)
            is_finite = math.isfinite(loss) and bool(slope.isfinite())
            return Point(length, loss if is_finite else math.inf, gradient, slope)

        return at


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _flat_gradient(params: list[Tensor]) -> Tensor:
    """A new vector of all gradients: zeros for a missing one, a complex number as two."""
    parts = []
    for param in params:
        grad = torch.zeros_like(param) if param.grad is None else param.grad
        dense = grad.to_dense() if grad.is_sparse else grad
        parts.append(_real(dense).reshape(-1))
    return torch.cat(parts)


def _move(params: list[Tensor], direction: Tensor, length: Scalar) -> None:
    targets = [_real(param) for param in params]
    parts = torch.split(direction, [target.numel() for target in targets])
    for target, part in zip(targets, parts, strict=True):
        target.add_(part.view_as(target), alpha=length)


def _is_final(gradient: Tensor, tolerance: float) -> bool:
    """Whether there is no way on from a point, as it is stationary or its gradient not finite."""
    return not tolerance < max_abs(gradient) < math.inf


# The direction


@dataclass(frozen=True)
class Memory:
    """The last steps, the changes of the gradient along them and the inverses of their products,
    each with the oldest first; and the first guess of the inverse Hessian, a multiple of one."""

    changes: list[Tensor] = field(default_factory=list)
    steps: list[Tensor] = field(default_factory=list)
    inverses: list[Scalar] = field(default_factory=list)
    scale: Scalar = 1


def _is_fresh(state: dict[str, Any]) -> bool:
    return state.get("d") is None


def _follow(state: dict[str, Any], gradient: Tensor) -> None:
    """Take the state along where the parameters have changed their dtype or device since."""
    last = state.get("d")
    if last is not None and (last.dtype, last.device) != (gradient.dtype, gradient.device):
        state.update((name, _like(value, gradient)) for name, value in state.items())


def _like(value: Any, gradient: Tensor) -> Any:
    if isinstance(value, list):
        return [_like(each, gradient) for each in value]
    return value.to(gradient) if isinstance(value, Tensor) else value


def _remember(state: dict[str, Any], gradient: Tensor, size: int) -> Memory:
    """The state's memory with the last step, unless that would leave it indefinite."""
    if _is_fresh(state):
        return Memory()
    kept = Memory(state["old_dirs"], state["old_stps"], state["ro"], state["H_diag"])
    change = gradient - state["prev_flat_grad"]
    taken = state["d"].mul(state["t"])
    product = change.dot(taken)
    if not product > LEAST_PRODUCT:
        return kept
    scale = product / change.dot(change)
    if not 0 < scale < math.inf:  # a product has overflowed
        return kept
    # New lists: a `state_dict` that is in memory holds the old ones.
    excess = max(len(kept.steps) + 1 - size, 0)
    return Memory(
        [*kept.changes, change][excess:],
        [*kept.steps, taken][excess:],
        [*kept.inverses, 1.0 / product][excess:],
        scale,
    )


def _direction(state: dict[str, Any], memory: Memory, gradient: Tensor, size: int) -> Tensor:
    """Minus the inverse Hessian times the gradient (algorithm 7.4, the two-loop recursion)."""
    direction = gradient.neg()
    if _is_fresh(state):
        return direction
    pairs = list(zip(memory.steps, memory.changes, memory.inverses, strict=True))
    newest_first: list[Scalar] = []
    for taken, change, inverse in reversed(pairs):
        newest_first.append(taken.dot(direction) * inverse)
        direction.add_(change, alpha=-newest_first[-1])
    weights = newest_first[::-1]
    direction = direction.mul(memory.scale)
    for (taken, change, inverse), weight in zip(pairs, weights, strict=True):
        direction.add_(taken, alpha=weight - change.dot(direction) * inverse)
    state["al"] = [*weights, *[None] * (size - len(weights))]
    return direction


def _first_length(state: dict[str, Any], gradient: Tensor, rate: Scalar) -> Scalar:
    """The length to try first: the rate, as quasi-Newton steps have their size in themselves. The
    gradient has not, and without a memory is shortened to a sum of absolutes of at most one."""
    if isinstance(rate, Tensor):
        # A copy, for the state keeps it, and a scheduler may fill the group's.
        rate = rate.squeeze().clone()
    return min(1.0, 1.0 / gradient.abs().sum()) * rate if _is_fresh(state) else rate


def _descends(slope: Tensor, direction: Tensor, tolerance: float) -> bool:
    """Whether the loss falls along a direction. With a finite slope the direction is finite."""
    return bool(slope <= -tolerance and (slope.isfinite() or direction.isfinite().all()))


# The length


@dataclass(frozen=True)
class Ray:
    """What is searched: the points along a direction, the first of them, and the largest change of
    a parameter per length."""

    at: Callable[[Scalar], Point]
    start: Point
    reach: Tensor


def _strong_wolfe(ray: Ray, length: Scalar, budget: int) -> Point:
    """A point that meets both Wolfe conditions; with `budget` trials after the first used up, the
    lowest one known."""
    if length == 0 or not math.isfinite(ray.start.loss):
        return ray.start
    ends, tried = _bracket(ray, length, budget)
    return ends[0] if len(ends) == 1 else _zoom(ray, ends, budget - tried)


def _decreases(ray: Ray, point: Point) -> bool:
    """The first Wolfe condition: the loss falls by a part of what the first slope promises."""
    return bool(point.loss <= ray.start.loss + DECREASE * point.length * ray.start.slope)


def _is_level(ray: Ray, point: Point) -> bool:
    """The second, strong Wolfe condition: the slope has flattened."""
    return bool(abs(point.slope) <= -CURVATURE * ray.start.slope)


def _bracket(ray: Ray, length: Scalar, budget: int) -> tuple[list[Point], int]:
    """Go farther until two points have an acceptable one between them, or one is acceptable itself
    (algorithm 3.5). Also the number of trials after the first."""
    last, point = ray.start, ray.at(length)
    for tried in range(budget):
        if not _decreases(ray, point) or (tried > 1 and point.loss >= last.loss):
            return [last, point], tried
        if _is_level(ray, point):
            return [point], tried
        if point.slope >= 0:
            return [last, point], tried
        nearest = point.length + 0.01 * (point.length - last.length)
        last, point = point, ray.at(_minimiser(last, point, nearest, point.length * 10))
    return [ray.start, point], max(budget, 0)


def _zoom(ray: Ray, ends: list[Point], budget: int) -> Point:
    """Narrow a bracket from both ends (algorithm 3.6); its lower end never rises."""
    low = _lower(ends)
    was_close = False
    for _ in range(budget):
        near, far = sorted(end.length for end in ends)
        if (far - near) * ray.reach < NARROWEST:
            break
        length = _minimiser(ends[0], ends[1], near, far)
        length, was_close = _away_from_ends(length, near, far, was_close)
        point = ray.at(length)
        if not _decreases(ray, point) or point.loss >= ends[low].loss:
            ends[1 - low] = point
            low = _lower(ends)
            continue
        if _is_level(ray, point):
            return point
        if point.slope * (ends[1 - low].length - ends[low].length) >= 0:
            ends[1 - low] = ends[low]
        ends[low] = point
    return ends[low]


def _lower(ends: list[Point]) -> int:
    return 0 if ends[0].loss <= ends[1].loss else 1


def _minimiser(one: Point, other: Point, least: Scalar, most: Scalar) -> Scalar:
    """Where between the bounds the cubic through two points, with their slopes, is lowest (equation
    3.59); the middle, if there is no such cubic."""
    middle = (least + most) / 2.0
    left, right = (one, other) if one.length <= other.length else (other, one)
    width = right.length - left.length
    shift = left.slope + right.slope - 3 * (right.loss - left.loss) / width
    square = shift**2 - left.slope * right.slope
    if not square >= 0:
        return middle
    root = square.sqrt()
    fraction = (right.slope + root - shift) / (right.slope - left.slope + 2 * root)
    length = right.length - width * fraction
    if length.isnan():  # an end is not finite, or the fraction is 0 / 0
        return middle
    return min(max(length, least), most)


def _away_from_ends(
    length: Scalar, near: Scalar, far: Scalar, was_close: bool
) -> tuple[Scalar, bool]:
    """A length at least a tenth of the bracket away from its ends, and whether it is closer. It may
    be so once; ever closer to one end, a bracket would hardly shrink."""
    margin = 0.1 * (far - near)
    if not (far - length < margin or length - near < margin):
        return length, False
    if not (was_close or length >= far or length <= near):
        return length, True
    if abs(length - far) < abs(length - near):
        return far - margin, False
    return near + margin, False
