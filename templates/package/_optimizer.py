"""What every optimizer of this package shares: parameter groups, slots, checkpoints, the step."""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import (
    ParamsT,
    _default_to_fused_or_foreach,
    _get_capturable_supported_devices,
)

from . import _policy, _totals
from ._policy import Precision, Write
from ._slots import (
    Group,
    Rows,
    Slot,
    Vector,
    as_scalar,
    as_stored,
    is_shared,
    kept,
    moved,
    scalar_dtype,
    widest_of,
)
from ._tensors import Tensors
from ._totals import Totals

# A condition on a parameter and its group, and what is said where it does not hold. The text may
# show hyperparameters, `{param.shape}`, and `{indices}`: group and position of all that break it.
Requirement = tuple[Callable[[Group, Tensor], bool], str]

# A parameter, its gradient and its slots in their order, for one call of `_functional`.
Row = tuple[Any, ...]

# How a step is executed, not what it computes: a checkpoint does not change these.
EXECUTION_FLAGS = ("foreach", "capturable", "differentiable", "fused")

_prefers_kernels = False


@functools.cache
def _step_by_kernels() -> Callable[[Optimizer, list[Group]], list[Group]]:
    """Its module imports this one. To import it in each step would take as long as ten small
    parameters."""
    from . import _fused

    return _fused.step


def set_default(*, fused: bool | None) -> None:
    """Choose how optimizers of this package step whose `fused` and `foreach` are None.

    Args:
        fused: True takes kernels for all groups that there are some for, on the CPU as on GPUs;
            None and False leave it to torch, whose choice they are made with at first.
    """
    global _prefers_kernels
    _prefers_kernels = bool(fused)


class Optimizer(torch.optim.Optimizer):
    """Base of the optimizers of this package. A subclass has slots, a check and its update three
    times: `_single_tensor` and `_multi_tensor` write in place and give the same bits; `_functional`
    writes nothing, and its numbers may be tensors."""

    slots: ClassVar[tuple[Slot, ...]] = ()
    # Options that a derived optimizer has decided, whatever a checkpoint says.
    fixed: ClassVar[dict[str, bool]] = {}
    # Whether an update of real and imaginary parts, as elements of their own, has a meaning.
    supports_complex: ClassVar[bool] = True
    # How a sparse gradient is treated: `none` does not take it, `linear` lets it through the update
    # as it is, `rows` and `only` update the elements that it has; `only` takes no other gradient.
    sparse: ClassVar[str] = "none"
    # What a gradient that is not taken is told, where that is more than the class's name.
    refusal: ClassVar[str] = ""
    # What holds for every parameter, and what for those whose gradient is sparse.
    param_requires: ClassVar[tuple[Requirement, ...]] = ()
    sparse_requires: ClassVar[tuple[Requirement, ...]] = ()
    # The numbers of all parameters that an update reads, in the order in which they are made, and
    # by what: one parameter's part in the first ones is `_terms_1`, in what needs these `_terms_2`.
    barriers: ClassVar[tuple[dict[str, str], ...]] = ()
    # The module of this package with the fused GPU kernel.
    kernels: ClassVar[str] = ""

    # The constructor checks the parameters of all groups together.
    _constructing = False

    def __init__(self, params: ParamsT, defaults: Group) -> None:
        self._vectors: dict[tuple[int, str], Vector] = {}
        defaults = {**defaults, **self.fixed}
        self._check_flags(defaults)
        self._check_precision(defaults)
        self.check(defaults)
        self._constructing = True
        super().__init__(params, defaults)
        self._constructing = False
        self._check_params()
        if any(slot.eager for slot in self.slots):
            for group in self.param_groups:
                for param in group["params"]:
                    self._initialise(group, param)

    @staticmethod
    def check(group: Group) -> None:
        """Raise ValueError for a hyperparameter out of its range."""

    @staticmethod
    def _agreement(param: Tensor, state: dict[str, Any]) -> tuple[Any, ...]:
        """What parameters agree in that `_multi_tensor` updates together: its branches read it."""
        return ()

    @staticmethod
    def _single_tensor(group: Group, rows: Rows) -> None:
        raise NotImplementedError

    @classmethod
    def _multi_tensor(cls, group: Group, rows: Rows) -> None:
        """The update of lists. An update whose branches differ between parameters has none."""
        cls._single_tensor(group, rows)

    @staticmethod
    def _functional(group: Group, row: Row) -> Row:
        """The parameter and the slots after a step."""
        raise NotImplementedError

    @classmethod
    def _is_functional(cls) -> bool:
        """Whether it has an update that writes nothing: not for sparse gradients alone."""
        return cls._functional is not Optimizer._functional

    @classmethod
    def _check_flags(cls, group: Group) -> None:
        if group.get("fused") and group.get("differentiable"):
            raise RuntimeError("`fused` does not support `differentiable`")
        if group.get("differentiable") and not cls._is_functional():
            raise RuntimeError(f"{cls.__name__} does not support differentiable=True")
        if group.get("fused") and group.get("foreach"):
            raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
        for name, value in group.items():
            if isinstance(value, Tensor) and value.numel() != 1:
                raise ValueError(f"Tensor {name} must be 1-element")
            for index, part in enumerate(value if isinstance(value, (tuple, list)) else ()):
                if isinstance(part, Tensor) and part.numel() != 1:
                    raise ValueError(f"Tensor {name}[{index}] must be 1-element")

    @classmethod
    def _check_precision(cls, group: Group) -> None:
        if cls.sparse == "only" or issubclass(cls, Routine):
            _policy.refuse(group, cls.__name__)
        else:
            _policy.check(group)

    def add_param_group(self, param_group: Group) -> None:
        """Add a group. Its hyperparameters are checked as the constructor's are.

        Raises:
            ValueError: a hyperparameter is out of its range, or the algorithm cannot update a
                parameter.
        """
        if isinstance(param_group, dict):
            merged = {**self.defaults, **param_group}
            # Parameters, too, may be one tensor; what else a group holds is its owner's.
            self._check_flags({name: merged[name] for name in self.defaults})
            self._check_precision(merged)
            self.check(merged)
        super().add_param_group(param_group)
        if self._constructing:
            return
        try:
            self._check_params()
        except ValueError:
            del self.param_groups[-1]
            raise

    def _check_params(self) -> None:
        """Raise ValueError if there are parameters that the algorithm cannot update."""
        for holds, message in self.param_requires:
            broken = [
                ([index, place], group, param)
                for index, group in enumerate(self.param_groups)
                for place, param in enumerate(group["params"])
                if not holds(group, param)
            ]
            if broken:
                _, group, param = broken[0]
                indices = [where for where, _, _ in broken]
                raise ValueError(message.format_map({**group, "param": param, "indices": indices}))

    def _check_param_and_grad(self, group: Group, param: Tensor, grad: Tensor) -> None:
        """Raise RuntimeError for a gradient of a layout that the algorithm does not take, and for a
        complex parameter where it has no meaning."""
        if param.is_complex() and not self.supports_complex:
            raise RuntimeError(f"{type(self).__name__} does not support complex parameters")
        refused = "dense" if self.sparse == "only" else "sparse" if self.sparse == "none" else ""
        layout = "sparse" if grad.is_sparse else "dense"
        if layout == refused:
            default = f"{type(self).__name__} does not support {layout} gradients"
            raise RuntimeError(self.refusal or default)
        if grad.is_sparse:
            if _policy.of(group, param) is not None:
                raise RuntimeError(
                    f"{type(self).__name__} does not support sparse gradients of parameters with "
                    f"{_policy.named(group)}"
                )
            for holds, message in self.sparse_requires:
                if not holds(group, param):
                    raise RuntimeError(message.format_map(group))

    def __setstate__(self, state: dict[str, Any]) -> None:
        defaults = dict(state.get("defaults", self.__dict__.get("defaults", {})))
        super().__setstate__(state)
        self.defaults = defaults  # torch adds `differentiable`, a flag that not every class has
        self._vectors = {}
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            group.update(self.fixed)

    # The step

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient. With `differentiable` the update is recorded:
        gradients flow through it to parameters, gradients, slots and hyperparameters.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: a gradient is sparse, or dense, and the algorithm does not take it.
            AssertionError: `capturable` on the CPU, in torch's words.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        compiling = torch.compiler.is_compiling()
        rest = self._outside_of_graphs() if compiling else self._step_in_place()
        if rest:
            with torch.set_grad_enabled(bool(self.defaults["differentiable"])):
                self._step_out_of_place(rest)
        return loss

    @torch.no_grad()
    def _step_in_place(self, compiling: bool = False) -> list[tuple[Any, ...]]:
        """Update the groups that kernels and updates in place serve; the members of the others."""
        for group in self.param_groups:
            _policy.count(group, _on_device(group))
        done = set(map(id, self._fused_step(compiling)))
        groups = [(i, g) for i, g in enumerate(self.param_groups) if id(g) not in done]
        plain = {index for index, group in groups if self._is_out_of_place(group, compiling)}
        if self.barriers and plain:
            # What is made of all parameters is made in one way.
            plain = {index for index, _ in groups}
        totals = self._measured() if self.barriers and groups and not plain else {}
        rest: list[tuple[Any, ...]] = []
        for index, group in groups:
            if not (compiling or _on_device(group)):
                _refuse_capture(group)
            if index in plain:
                rest += self._members(index, group)
                continue
            update, foreach = self._update_without_kernel(group)
            for params in _rounds(group["params"]):
                for rows, commit in self._rows(index, group, params, foreach):
                    rows.totals = totals
                    self._run(update, group, rows)
                    commit()
        return rest

    def _is_out_of_place(self, group: Group, compiling: bool) -> bool:
        """Whether the update that writes nothing serves a group."""
        # A graph has no sparse tensors: what the compiler leaves out runs as without it.
        compiled = compiling and not any(_has_sparse_grad(p) for p in group["params"])
        asked = compiled or _on_device(group) or self._is_recorded(group)
        return asked and self._is_functional()

    def _measured(self) -> Totals:
        """What is made of all parameters that have a gradient, as they are stored."""

        def rows() -> Iterator[tuple[Group, Row]]:
            for group in self.param_groups:
                streams = _policy.streams(self.param_groups, group)
                for param in group["params"]:
                    if param.grad is not None:
                        state = {**self._initialise(group, param)}
                        _, wide, grad, slots, _, widest, _ = self._member(
                            group, param, state, streams
                        )
                        yield group, self._wide_row(wide, grad, slots, widest)

        return self._totals_of(rows)

    def _totals_of(self, rows: Callable[[], Iterable[tuple[Group, Row]]]) -> Totals:
        """What all parameters make together, each with its group and its row."""
        found: Totals = {}
        for number, operators in enumerate(self.barriers, start=1):
            terms_of = getattr(self, f"_terms_{number}")
            terms = [
                terms_of(group, (*row, *_totals.beside(found, row[0]).values()))
                for group, row in rows()
            ]
            for place, (name, operator) in enumerate(operators.items()):
                found[name] = _totals.total(operator, [each[place] for each in terms])
        return found

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def _outside_of_graphs(self) -> list[tuple[Any, ...]]:
        """The part of a compiled step that is not traced: groups, states and vectors."""
        return self._step_in_place(compiling=True)

    def _is_recorded(self, group: Group) -> bool:
        return bool(group["differentiable"] or self.defaults["differentiable"])

    def _members(self, index: int, group: Group) -> list[tuple[Any, ...]]:
        """What `_step_out_of_place` takes for each parameter of a group that has a gradient."""
        streams = _policy.streams(self.param_groups, group)
        scalars = [slot for slot in self.slots if slot.scalar]
        for slot in scalars:
            if self._vectors.pop((index, slot.name), None) is not None:
                for param in group["params"]:
                    if slot.name in self.state.get(param, ()):
                        self.state[param][slot.name] = self.state[param][slot.name].clone()
        members = []
        for param in group["params"]:
            if param.grad is not None:
                state = self._initialise(group, param)
                if any(s.initial is None and s.exists(group, param) for s in self.slots):
                    state = self.state[param]
                members.append(self._member(group, param, state, streams))
        return members

    def _member(
        self, group: Group, param: Tensor, state: dict[str, Any], streams: dict[Tensor, int]
    ) -> tuple[Any, ...]:
        """A parameter with a gradient, its state, and how wide its update is."""
        grad = param.grad
        assert grad is not None, "only what has a gradient is updated"
        self._check_param_and_grad(group, param, grad)
        if grad.is_sparse:
            raise RuntimeError(
                f"{type(self).__name__} does not support sparse gradients with "
                "differentiable=True or capturable=True"
            )
        for slot in self.slots:
            value = state.get(slot.name)
            if slot.scalar and value is not None and not isinstance(value, Tensor):
                state[slot.name] = as_scalar(value, group, param)  # an old checkpoint's
        if group["differentiable"] and "step" in state and state["step"].requires_grad:
            raise RuntimeError("`requires_grad` is not supported for `step` in differentiable mode")
        slots = [state.get(s.name) if s.exists(group, param) else None for s in self.slots]
        precision = self._precision(group, [param], streams)
        if precision is not None:
            return self._member_of(precision, group, param, grad, slots, state)
        tensors = [v for s, v in zip(self.slots, slots, strict=True) if not s.scalar]
        dtypes = [t.dtype for t in (param, grad, *tensors) if t is not None]
        return group, param, grad, slots, state, widest_of(dtypes), []

    def _member_of(
        self,
        precision: Precision,
        group: Group,
        param: Tensor,
        grad: Tensor,
        slots: list[Any],
        state: dict[str, Any],
    ) -> tuple[Any, ...]:
        """A parameter whose update writes to copies of it and of its slots."""
        columns: dict[str, Tensors] = {
            s.name: [v] for s, v in zip(self.slots, slots, strict=True) if not s.scalar
        }
        rows = Rows([param], [grad], columns, precision=precision)
        wide, writes = rows.widened()
        unset = [(i, n) for i, (n, (value,)) in enumerate(columns.items(), 1) if value is None]

        def store() -> None:
            for place, name in unset:
                if state.get(name) is not None:
                    value = state[name]
                    state.update(precision.stored_first(0, name, place, value, param))

        slots = [
            v if s.scalar else wide.slots[s.name][0] for s, v in zip(self.slots, slots, strict=True)
        ]
        return group, wide.params[0], wide.grads[0], slots, state, torch.float32, [*writes, store]

    def _step_out_of_place(self, members: list[tuple[Any, ...]]) -> None:
        """Update parameters by `_functional`, all of them where the update needs totals."""

        def rows() -> Iterator[tuple[Group, Row]]:
            for group, param, grad, slots, _, widest, _ in members:
                yield group, self._wide_row(param, grad, slots, widest)

        totals = self._totals_of(rows)
        for member in members:
            self._update_out_of_place(totals, *member)

    def _update_out_of_place(
        self,
        totals: Totals,
        group: Group,
        param: Tensor,
        grad: Tensor,
        slots: list[Any],
        state: dict[str, Any],
        widest: torch.dtype,
        writes: list[Write],
    ) -> None:
        """Update one parameter by `_functional`. Where that is recorded, the state takes the new
        tensors."""
        recorded = torch.is_grad_enabled()
        wide = self._wide_row(param, grad, slots, widest)
        found = _totals.beside(totals, wide[0]).values()
        value, *values = self._functional(group, (*wide, *found))
        # What another slot had before is a copy: that slot is written, too.
        values = [
            new.clone() if new is not old and any(new is s for s in slots if s is not None) else new
            for old, new in zip(slots, values, strict=True)
        ]
        param.copy_(as_stored(value, param))
        for slot, old, new in zip(self.slots, slots, values, strict=True):
            if slot.integer and not (torch.compiler.is_compiling() or _on_device(group)):
                state[slot.name] = int(new)
                continue
            if new is None or new is old:
                continue
            if recorded or old is None:
                value = as_stored(new, param if old is None else old)
                # A number may be another slot's tensor.
                state[slot.name] = value.clone() if slot.scalar else value
            else:
                old.copy_(as_stored(new, old))
        if writes:
            _end(writes)

    def _wide_row(self, param: Tensor, grad: Tensor, slots: list[Any], widest: torch.dtype) -> Row:
        """What an update reads that writes nothing. What is recorded stays as it is: of the
        parameter, which changes, there is a copy then."""
        copied = param.clone() if torch.is_grad_enabled() else param
        tensors = (
            value if value is None or slot.scalar else value.to(widest)
            for slot, value in zip(self.slots, slots, strict=True)
        )
        return (copied.to(widest), grad.to(widest), *tensors)

    def _run(self, update: Callable[[Group, Rows], None], group: Group, rows: Rows) -> None:
        """The update, of copies where the stored tensors do not serve."""
        scattered: list[tuple[Tensor, Any, Tensor]] = []
        if rows.is_sparse:
            # Lists of sparse tensors have no calls.
            update = self._single_tensor
            if self.sparse != "linear":
                rows, scattered = rows.gathered()
        wide, writes = rows.widened()
        wide.totals = _totals.beside(rows.totals, wide.params[0])
        update(group, wide)
        _end(writes)
        for stored, place, value in scattered:
            stored[place] = value

    def _fused_step(self, compiling: bool) -> list[Group]:
        """Run kernels for the groups that want them; the groups that are done."""
        groups = [group for group in self.param_groups if self._wants_kernel(group, compiling)]
        return _step_by_kernels()(self, groups) if groups else []

    def _wants_kernel(self, group: Group, compiling: bool) -> bool:
        """Whether a group asks for kernels, or what `set_default` says does. A step that must not
        wait for the device is fused, too, where it can be: its numbers stay there, as they do in a
        graph of the compiler."""
        if group["fused"]:
            return True
        if self._is_recorded(group):
            return False
        is_open = group["fused"] is None and group["foreach"] is None
        return (is_open and _prefers_kernels) or (_on_device(group) and not compiling)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether the step undoes a loss scale itself, as kernels do: `GradScaler` asks."""
        groups = [group for group in self.param_groups if self._wants_kernel(group, False)]
        if not groups:
            return False
        from . import _fused

        return _fused.serves(self, groups)

    def _update_without_kernel(self, group: Group) -> tuple[Callable[[Group, Rows], None], bool]:
        """An update in place, and whether it is one of lists."""
        if group["fused"] and all(type(p) in (Tensor, torch.nn.Parameter) for p in group["params"]):
            from . import _blocks, _fused

            if _fused.is_elementwise(self):
                return functools.partial(_blocks.update, self), True
        foreach = self._uses_foreach(group)
        return self._multi_tensor if foreach else self._single_tensor, foreach

    @staticmethod
    def _uses_foreach(group: Group) -> bool:
        if group["foreach"] is not None or group["fused"]:
            return bool(group["foreach"])
        _, foreach = _default_to_fused_or_foreach(group["params"], group["differentiable"])
        return bool(foreach)

    def _initialise(self, group: Group, param: Tensor) -> dict[str, Any]:
        """The parameter's state, with the slots that it lacks. What a user put there stays."""
        state: dict[str, Any] = self.state.get(param, {})
        policy = _policy.of(group, param)
        for slot in self.slots:
            if slot.initial is None or state.get(slot.name) is not None:
                continue
            if slot.exists(group, param):
                with torch.set_grad_enabled(bool(self.defaults.get("differentiable"))):
                    example = param if policy is None else policy.example(param)
                    value = slot.initial(group, example)
                    if slot.scalar and isinstance(value, Tensor):
                        value = value.to(scalar_dtype(), copy=True)
                    if slot.scalar:
                        state[slot.name] = kept(slot, value, group, param)
                    else:
                        state |= _policy.stored(policy, slot.name, value, param)
        if policy is not None:
            policy.complete(state, param)
        if state:
            self.state[param] = state
        return state

    def _rows(
        self, index: int, group: Group, params: list[Tensor], foreach: bool
    ) -> list[tuple[Rows, Callable[[], None]]]:
        """Those of the parameters that have a gradient, in batches, and what ends each batch."""
        streams = _policy.streams(self.param_groups, group)
        result = []
        # Vectors hold all of a group's numbers: each parameter has its state before the first one.
        for rows in [*self._alike(group, params, foreach)]:
            rows.unset = self._begin_unset(group, rows)
            rows.precision = self._precision(group, rows.params, streams)
            scatter = self._gather_scalars(index, group, rows.params, rows)
            result.append((rows, self._commit(rows.params, rows, scatter)))
        return result

    def _alike(self, group: Group, params: list[Tensor], foreach: bool) -> Iterator[Rows]:
        """Rows of parameters that can be updated together, with what their states have."""
        begins = any(slot.initial is not None for slot in self.slots) or _policy.decides(group)
        for batch, grads in self._kinds(group, params):
            states = [
                self._initialise(group, param) if begins else self.state.get(param, {})
                for param in batch
            ]
            # Slot by slot: a tuple for each parameter would cost more than its update.
            slots = {
                slot.name: _column(slot, group, batch, states)
                for slot in self.slots
                if not slot.scalar
            }
            agreements = [
                self._agreement(param, state) if foreach else ()
                for param, state in zip(batch, states, strict=True)
            ]
            for places in _agreeing([*slots.values(), agreements]):
                yield Rows(
                    [batch[i] for i in places],
                    [grads[i] for i in places],
                    {name: [column[i] for i in places] for name, column in slots.items()},
                )

    def _kinds(
        self, group: Group, params: list[Tensor]
    ) -> Iterable[tuple[list[Tensor], list[Tensor]]]:
        """Parameters that have a gradient, and these, for each device, class, layout and dtypes."""
        kinds: dict[tuple[Any, ...], tuple[list[Tensor], list[Tensor]]] = {}
        for param in params:
            grad = param.grad
            if grad is None:
                continue
            kind = (param.device, param.dtype, type(grad), grad.dtype, grad.layout)
            known = kinds.get(kind)
            if known is None or grad.is_sparse:
                self._check_param_and_grad(group, param, grad)
            if known is None:
                known = kinds[kind] = ([], [])
            known[0].append(param)
            known[1].append(grad)
        return kinds.values()

    def _begin_unset(self, group: Group, rows: Rows) -> frozenset[str]:
        """Give rows tensors for the slots that they have without a value; the names of these."""
        unset = frozenset(name for name, column in rows.slots.items() if column[0] is UNSET)
        for name in unset:
            values = []
            for param, grad in zip(rows.params, rows.grads, strict=True):
                value = torch.empty_like(grad, dtype=param.dtype)
                fresh = _policy.stored(_policy.of(group, param), name, value, param)
                values.append(fresh.pop(name))
                self.state[param].update(fresh)
            rows.slots[name] = values
        return unset

    def _precision(
        self, group: Group, params: Tensors, streams: dict[Tensor, int]
    ) -> Precision | None:
        """How what the group stores of these parameters, which have one dtype, is stored."""
        policy = _policy.of(group, params[0])
        if policy is None:
            return None
        second = policy.second(params[0])
        slots = [slot.name for slot in self.slots if not slot.scalar]
        return Precision(
            policy,
            [self.state[p].get(second) for p in params],
            {name: [self.state[p].get(_policy.scale_of(name)) for p in params] for name in slots},
            [streams.get(p, 0) for p in params],
            group.get(_policy.DRAWS, 0),
        )

    def _commit(
        self, params: Tensors, rows: Rows, scatter: Callable[[], None]
    ) -> Callable[[], None]:
        def commit() -> None:
            scatter()
            for name in rows.unset:
                for param, value in zip(params, rows.slots[name], strict=True):
                    self.state[param][name] = value

        return commit

    def _gather_scalars(
        self, index: int, group: Group, params: Tensors, rows: Rows
    ) -> Callable[[], None]:
        """Give `rows` its vectors. The result writes them back where they are copies."""
        ends = []
        for slot in self.slots:
            if slot.scalar:
                rows.vectors[slot.name], end = self._gather(index, group, params, slot)
                ends.append(end)

        def scatter() -> None:
            for end in ends:
                end()

        return scatter

    def _gather(
        self, index: int, group: Group, params: Tensors, slot: Slot
    ) -> tuple[Tensor, Callable[[], object]]:
        """The numbers of a slot as a vector, and what writes them back."""
        first = self.state[params[0]][slot.name]
        if slot.integer:
            return self._gather_integers(params, slot.name)
        if isinstance(first, Tensor) and is_shared(first):
            # Other processes see these tensors: they stay where they are.
            values = [self.state[p][slot.name] for p in params]
            copy = torch.stack(values)
            return copy, lambda: _write(values, copy)
        members = dict.fromkeys(group["params"])
        owners = [p for p in members if slot.name in self.state.get(p, ())]
        data = self._vector(index, group, slot.name, owners).data
        if len(params) == len(owners):
            return data, lambda: None
        position = {p: i for i, p in enumerate(owners)}
        where = torch.tensor([position[p] for p in params], device=data.device)
        part = data[where]
        return part, lambda: data.index_put_((where,), part)

    def _gather_integers(self, params: Tensors, name: str) -> tuple[Tensor, Callable[[], object]]:
        values = [self.state[p][name] for p in params]
        vector = torch.tensor(values, dtype=torch.int64, device="cpu")

        def scatter() -> None:
            for param, value in zip(params, vector.tolist(), strict=True):
                self.state[param][name] = value

        return vector, scatter

    def _vector(self, index: int, group: Group, name: str, owners: list[Tensor]) -> Vector:
        values = [self.state[p][name] for p in owners]
        vector = self._vectors.get((index, name))
        if vector is None or not vector.holds(values):
            example = as_scalar(values[0], group, owners[0])
            vector = Vector(values, example.dtype, example.device)
            self._vectors[index, name] = vector
            for param, view in zip(owners, vector.views, strict=True):
                self.state[param][name] = view
        return vector

    def share_memory(self) -> None:
        """Move the state into shared memory, for training in several processes. Only state that
        exists is moved: make a step before, or put the state there yourself."""
        for state in self.state.values():
            for value in state.values():
                if isinstance(value, Tensor):
                    value.share_memory_()  # type: ignore[no-untyped-call]

    # Checkpoints

    @torch._disable_dynamo  # type: ignore[attr-defined]
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of this optimizer, ours or torch's.

        Slots keep the checkpoint's dtype and move to their parameter's device; nothing shares
        storage with `state_dict`. Execution flags stay as constructed, and so does what says in
        how many bits to store: slots are converted to it.

        Raises:
            ValueError: the groups differ in number or size, or slots are missing or unknown.
        """
        state_dict = state_dict.copy()
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        groups, saved_groups = self.param_groups, deepcopy(state_dict["param_groups"])
        if len(groups) != len(saved_groups):
            raise ValueError("loaded state dict has a different number of parameter groups")
        if any(
            len(g["params"]) != len(s["params"]) for g, s in zip(groups, saved_groups, strict=True)
        ):
            raise ValueError(
                "loaded state dict contains a parameter group that doesn't match the size of "
                "optimizer's group"
            )
        owners: dict[Any, tuple[Tensor, Group]] = {}
        merged: list[Group] = []
        for group, saved in zip(groups, saved_groups, strict=True):
            loaded = {**self.defaults, **saved, **self.fixed, "params": group["params"]}
            loaded.update((name, group[name]) for name in EXECUTION_FLAGS if name in group)
            _policy.keep(loaded, group)
            if "param_names" in group:
                loaded.setdefault("param_names", group["param_names"])
            self.check(loaded)
            merged.append(loaded)
            owners.update(
                (key, (param, loaded))
                for key, param in zip(saved["params"], group["params"], strict=True)
            )
        state: defaultdict[Any, Any] = defaultdict(dict)
        for key, saved_state in state_dict["state"].items():
            if key not in owners:
                state[key] = deepcopy(saved_state)
                continue
            param, group = owners[key]
            state[param] = self._load_slots(key, saved_state, group, param)
        self.__setstate__({"state": state, "param_groups": merged})
        for after in self._optimizer_load_state_dict_post_hooks.values():
            after(self)

    def _load_slots(
        self, key: Any, saved: dict[str, Any], group: Group, param: Tensor
    ) -> dict[str, Any]:
        known = {slot.name: slot for slot in self.slots}
        given = {name: value for name, value in saved.items() if value is not None}
        # A slot with a condition may have been turned on since: it begins at the next step.
        required = [slot.name for slot in self.slots if slot.initial and slot.when is None]
        missing = [name for name in required if given and name not in given]
        tensors = [slot.name for slot in self.slots if not slot.scalar]
        companions = _policy.companions(tensors)
        extra = [name for name in given if name not in known and name not in companions]
        # A class that is derived elsewhere may keep more in the state than its slots.
        if not type(self).__module__.startswith(f"{__package__}."):
            extra = []
        if missing or extra:
            what = [f"lacks {', '.join(missing)}"] if missing else []
            what += [f"has unknown {', '.join(extra)}"] if extra else []
            raise ValueError(
                f"The state of parameter {key} {' and '.join(what)}. Slots of "
                f"{type(self).__name__} are: {', '.join(known) or 'none'}."
            )
        copies = {
            name: kept(known[name], value, group, param, copy=True)
            if name in known and known[name].scalar
            else moved(value, param.device)
            for name, value in given.items()
        }
        return _policy.loaded(_policy.of(group, param), copies, tensors, param)


class Routine(Optimizer):
    """Base of optimizers whose update is a program over all parameters, which form one group, and
    calls the closure itself. The first parameter holds the state."""

    def add_param_group(self, param_group: Group) -> None:
        """Take the one group.

        Raises:
            ValueError: there is one already.
        """
        super().add_param_group(param_group)
        if len(self.param_groups) > 1:
            del self.param_groups[-1]
            raise ValueError(
                f"{type(self).__name__} doesn't support per-parameter options (parameter groups)"
            )


@torch._disable_dynamo  # type: ignore[attr-defined]
def _end(writes: list[Write]) -> None:
    """What is stored in fewer bits is written outside of graphs."""
    for write in writes:
        write()


# A slot's place among values: it has none as yet.
UNSET = object()


def _column(slot: Slot, group: Group, params: Tensors, states: list[dict[str, Any]]) -> list[Any]:
    """What states have of a slot: None for parameters that do not have it."""
    if slot.when is None:
        return [_value(slot, state) for state in states]
    return [
        _value(slot, state) if slot.when(group, param) else None
        for param, state in zip(params, states, strict=True)
    ]


def _value(slot: Slot, state: dict[str, Any]) -> Any:
    value = state.get(slot.name)
    return UNSET if value is None else value


def _agreeing(columns: list[list[Any]]) -> Iterable[Sequence[int]]:
    """Places where columns agree, in the dtypes of tensors and in all else."""
    marks = [
        [value.dtype if isinstance(value, Tensor) else value for value in column]
        for column in columns
        if column[0] is not None or any(value is not None for value in column)
    ]
    places: dict[tuple[Any, ...], list[int]] = {}
    for place, mark in enumerate(zip(*marks, strict=True)):
        places.setdefault(mark, []).append(place)
    return places.values()


def _write(targets: list[Tensor], values: Tensor) -> None:
    for target, value in zip(targets, values, strict=True):
        target.copy_(value)


def _rounds(params: list[Tensor]) -> Iterator[list[Tensor]]:
    """The parameters; those that a group holds twice come again in a further round."""
    while params:
        distinct = list(dict.fromkeys(params))
        yield distinct
        if len(distinct) == len(params):
            return
        count = Counter(params) - Counter(distinct)
        params = list(count.elements())


def _has_sparse_grad(param: Tensor) -> bool:
    return param.grad is not None and param.grad.is_sparse


def _on_device(group: Group) -> bool:
    if not group["capturable"]:
        return False
    devices = {param.device.type for param in group["params"]}
    return devices <= set(_get_capturable_supported_devices())


def _refuse_capture(group: Group) -> None:
    """The for-loop and foreach read numbers on the host. Torch refuses the CPU in these words."""
    if group["capturable"] and not group["fused"]:
        raise AssertionError(
            "If capturable=True, params and state_steps must be on supported devices: "
            f"{_get_capturable_supported_devices()}."
        )
