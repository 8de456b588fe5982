"""The base of the optimizers whose update is an elementwise rule.

It owns what every method shares, once: parameter groups, closures, checks, dtypes, complex
parameters, checkpoints and the launch. A method adds its rule and the rule's numbers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from steepest.kernels import Rule, apply, compose
from steepest.kernels._apply import check_backend, compute_dtype
from steepest.kernels._compose import PREFIX
from steepest.optim._checks import CHECKS, check_hyperparameters, check_unwrapped

Params = Iterable[Tensor] | Iterable[dict[str, Any]] | Iterable[tuple[str, Tensor]]
Closure = Callable[[], Any]
Group = dict[str, Any]


class Slot(NamedTuple):
    """A tensor of state: its key in ``state_dict`` and its value before the first step."""

    key: str
    start: str = "zero"
    """``zero``, or ``parameter`` for a copy of the parameter."""


class _Work(NamedTuple):
    """One group's update, checked and ready to run."""

    rule: Rule
    group: Group
    params: list[Tensor]
    grads: list[Tensor]


class Measured(NamedTuple):
    """What a step knows of one group before anything moves."""

    group: Group
    params: list[Tensor]
    """The T parameters that have a gradient."""
    grads: list[Tensor]
    states: list[dict[str, Any]]
    sums: dict[str, Tensor]
    """Sums of the pre-pass by name, float64 of shape (T,): one for each parameter."""


Coefficients = dict[str, float | Tensor]
Summary = Callable[..., dict[str, Any]]


class Lens(NamedTuple):
    """What a filter makes of gradients, for an optimizer to run in the same launch as its rule."""

    rule: Rule
    params: list[Tensor]
    """The T parameters that have a gradient, of all groups."""
    numbers: Mapping[str, float | Tensor]
    """Of the filter's rule; of shape (T,) where each parameter has its own."""
    columns: Mapping[str, list[Tensor]]
    """The filter's memory by name, T tensors each, to be updated in place."""


class Elementwise(torch.optim.Optimizer, ABC):
    """Abstract optimizer that applies an update rule to every parameter with a gradient.

    A subclass names its state in ``slots`` and implements :meth:`rule` and :meth:`numbers`. One
    whose numbers depend on norms or distances declares them as a ``prepass``, and makes its
    numbers of them in a ``summary``: the update stays one launch, after one to measure.
    Everything is checked before anything moves: a step that raises leaves all parameters and
    all state as they were.

    - *State* is float32 (float64 for float64 parameters), whatever the parameter's precision.
    - *Steps* are counted per parameter, so one that joins late gets its own bias correction.
    - *Gradients* are read, never written; a parameter without one is skipped.
    - *Complex* parameters are updated as pairs of real numbers.
    - *Non-finite gradients* propagate into parameters, as in ``torch.optim``: to look for them
      costs a pass over the gradients, and a wait for the device. ``nonfinite="raise"`` looks,
      and raises before anything moves; ``nonfinite="skip"`` looks, and leaves out that step.
    - *Learning rates* may be numbers or tensors, and may change between steps at no cost.
    - Under ``torch.compile`` a step runs as it is: it already is one fused kernel.

    Args:
        params: Parameters, named parameters, or groups, as for ``torch.optim``.
        defaults: Hyper-parameters of the groups.
        backend: ``auto``, ``torch``, ``cpu`` (numba) or ``triton``.
        nonfinite: ``propagate``, ``raise`` or ``skip``.

    Raises:
        ValueError: If there is no parameter or a hyper-parameter is out of its range.
        RuntimeError: If a forced backend is missing; the message names the extra to install.

    Example:
        Gradient descent, from a rule that is there.

        >>> import steepest.optim
        >>> from steepest.kernels import RULES
        >>> class Descent(Elementwise):
        ...     slots = {}
        ...
        ...     def rule(self, group):
        ...         return RULES["adagrad_norm"]
        ...
        ...     def numbers(self, group, step):
        ...         return {"lr": group["lr"], "root": 1.0}
        >>> p = torch.nn.Parameter(torch.tensor([1.0]))
        >>> p.grad = torch.tensor([0.5])
        >>> Descent([p], {"lr": 0.5, "maximize": False}).step()
        >>> p.data
        tensor([0.7500])
    """

    slots: ClassVar[Mapping[str, Slot]]
    """Name of a state tensor in the rule -> where it is kept."""

    extra_keys: ClassVar[frozenset[str]] = frozenset()
    """Keys of state that :meth:`inputs` or :meth:`coefficients` keep beside the slots."""

    prepass: ClassVar[Rule | None] = None
    """A reduction that is run on all tensors before the rule."""

    summary: ClassVar[Summary | None] = None
    """Numbers of the rule out of the sums, as a function for :func:`summarize`."""

    needs_loss: ClassVar[bool] = False
    """Whether :meth:`coefficients` reads the loss, so that a step needs a closure."""

    skipped: bool = False
    """Whether the last step was left out, for a gradient with NaN or infinity."""

    _lens: Lens | None = None

    def __init__(
        self,
        params: Params,
        defaults: dict[str, Any],
        *,
        backend: str = "auto",
        nonfinite: str = "propagate",
    ) -> None:
        check_backend(backend)
        if nonfinite not in ("propagate", "raise", "skip"):
            raise ValueError(f"nonfinite={nonfinite!r}: choose propagate, raise or skip")
        given: Any = params if isinstance(params, Tensor) else list(params)
        if not isinstance(given, Tensor) and not given:
            raise ValueError(f"{type(self).__name__} got no parameters: pass model.parameters()")
        self.backend = backend
        self.nonfinite = nonfinite
        self._seen: dict[Tensor, tuple[torch.Size, torch.dtype]] = {}
        super().__init__(given, defaults)

    @abstractmethod
    def rule(self, group: Group) -> Rule:
        """Rule of a group."""

    @abstractmethod
    def numbers(self, group: Group, step: int) -> dict[str, float]:
        """Values of the rule's numbers at a step (1 at the first)."""

    def inputs(
        self,
        group: Group,
        params: list[Tensor],
        grads: list[Tensor],
        states: list[dict[str, Any]],
    ) -> dict[str, list[Tensor]]:
        """Tensors that the rule reads beside parameter, gradient and slots; none by default.

        Gradients come as pairs of real numbers where they are complex, parameters as they are.
        """
        return {}

    def coefficients(self, measured: list[Measured], loss: Tensor | None) -> list[Coefficients]:
        """Numbers that depend on what was measured; by default what ``summary`` makes of a group.

        Called once a step, before anything moves; may raise, and then writes to state only after
        what raises. Nothing here should wait for the device (``item``, ``float``).

        Args:
            measured: The groups that have gradients.
            loss: What the closure returned, float64 of shape (), or None.

        Returns:
            For each of the groups, numbers of the rule by name, one for all of its parameters or,
            of shape (T,), one for each. They stand in for those of :meth:`numbers`.
        """
        if self.summary is None:
            return [{} for _ in measured]
        return [
            summarize(self.summary, {k: v.sum() for k, v in m.sums.items()}, m.group, m.group)
            for m in measured
        ]

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, as ``torch.optim``; a bad one changes nothing."""
        check_hyperparameters(type(self).__name__, {**self.defaults, **param_group})
        super().add_param_group(param_group)
        # Schedules move lr; some rules need the value that it started from.
        group = self.param_groups[-1]
        group.setdefault("base_lr", float(group["lr"]))

    def step(self, closure: Closure | None = None) -> Any:
        """Make one update.

        Args:
            closure: Optional; clears gradients, computes the loss, calls ``backward`` and
                returns the loss.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: If a gradient or a parameter cannot be used. Nothing has changed then.
        """
        with torch.enable_grad():
            loss = None if closure is None else closure()
        with torch.no_grad():
            work = [self._prepare(group) for group in self.param_groups]
            value = self._value(loss)
            self.skipped = self.nonfinite != "propagate" and not self._all_finite(work)
            if not self.skipped:
                for item, coefficients in self._measure([w for w in work if w.params], value):
                    self._run(item, coefficients)
        return loss

    def _prepare(self, group: Group) -> _Work:
        """Check a group; change nothing."""
        check_hyperparameters(type(self).__name__, group)
        params = [p for p in group["params"] if p.grad is not None]
        grads: list[Tensor] = [p.grad for p in params]
        for p, g in zip(params, grads, strict=True):
            if g.layout != torch.strided:
                raise self._error(
                    p, "has a sparse gradient: use sparse=False or torch.optim.SparseAdam"
                )
            if g.shape != p.shape:
                raise self._error(p, f"has a gradient of shape {tuple(g.shape)}")
            if self._seen.get(p, (p.shape, p.dtype)) != (p.shape, p.dtype):
                shape, dtype = self._seen[p]
                raise self._error(p, f"had shape {tuple(shape)} and {dtype} before: {_REMEDY}")
        return _Work(self.rule(group), group, params, grads)

    def _all_finite(self, work: list[_Work]) -> bool:
        for item in work:
            for p, g in zip(item.params, item.grads, strict=True):
                if not torch.isfinite(g).all():
                    if self.nonfinite == "skip":
                        return False
                    raise self._error(p, "has a gradient with NaN or infinity")
        return True

    @property
    def takes_lens(self) -> bool:
        """Whether gradients are read by the rule only, so that a filter can join its launch."""
        own = type(self)
        return (
            own.inputs is Elementwise.inputs
            and own.summary is None
            and own.coefficients is Elementwise.coefficients
            and self.nonfinite == "propagate"
            and not any(group["maximize"] for group in self.param_groups)
        )

    def step_through(self, lens: Lens) -> None:
        """Make one update from gradients as a filter changes them."""
        self._lens = lens
        try:
            self.step()
        finally:
            self._lens = None

    def _value(self, loss: Any) -> Tensor | None:
        """The loss as a number for :meth:`coefficients`; None where it is not needed."""
        if not self.needs_loss:
            return None
        if loss is None:
            raise RuntimeError(
                f"{type(self).__name__} needs the loss: pass a closure to step() that clears "
                "gradients, computes the loss, calls backward and returns it"
            )
        value = torch.as_tensor(loss).detach()
        if value.numel() != 1 or value.is_complex():
            raise RuntimeError(
                f"{type(self).__name__} got a loss of shape {tuple(value.shape)} and "
                f"{value.dtype}: return one real number, such as the mean over the batch"
            )
        return value.reshape(()).double()

    def _measure(
        self, work: list[_Work], loss: Tensor | None
    ) -> Iterator[tuple[_Work, Coefficients]]:
        """Make missing state, run the pre-pass, and turn its sums into numbers."""
        known = set(self.state)
        try:
            measured = []
            for item in work:
                states = [self.state[p] for p in item.params]
                for p, state in zip(item.params, states, strict=True):
                    self._fill(item.rule, real(p), state)
                sums = {} if self.prepass is None else self._apply(self.prepass, item)
                grads = [real(g) for g in item.grads]
                measured.append(Measured(item.group, item.params, grads, states, sums))
            made = self.coefficients(measured, loss)
        except BaseException:
            for p in set(self.state) - known:
                del self.state[p]
            raise
        return zip(work, made, strict=True)

    def _run(self, work: _Work, coefficients: Coefficients) -> None:
        states = [self.state[p] for p in work.params]
        for p in work.params:
            self._seen[p] = (p.shape, p.dtype)
        inputs = self.inputs(work.group, work.params, [real(g) for g in work.grads], states)
        if self._lens is not None:
            self._apply_through(self._lens, work)
        else:
            self._apply(work.rule, work, inputs, coefficients)
        for state in states:
            state["step"] += 1

    def _apply(
        self,
        rule: Rule,
        work: _Work,
        inputs: Mapping[str, list[Tensor]] | None = None,
        coefficients: Coefficients | None = None,
    ) -> dict[str, Tensor]:
        group, states = work.group, [self.state[p] for p in work.params]
        columns = {
            "p": [real(p) for p in work.params],
            "g": [real(g) for g in work.grads],
            **(inputs or {}),
        }
        for name in rule.tensors:
            if name not in columns:
                key = self.slots[name].key
                columns[name] = [state[key] for state in states]
        steps = [state["step"] + 1 for state in states]
        distinct = sorted(set(steps))
        given = coefficients or {}
        floats = {name: v for name, v in given.items() if not isinstance(v, Tensor)}
        return apply(
            rule,
            [columns[name] for name in rule.tensors],
            [{**self.numbers(group, step), **floats} for step in distinct],
            [distinct.index(step) for step in steps] if len(distinct) > 1 else None,
            vectors={name: v for name, v in given.items() if isinstance(v, Tensor)},
            grad_scale=-1.0 if group["maximize"] else 1.0,
            backend=self.backend,
        )

    def _apply_through(self, lens: Lens, work: _Work) -> None:
        place = {p: i for i, p in enumerate(lens.params)}
        at = [place[p] for p in work.params]
        self._apply(
            compose(lens.rule, work.rule),
            work,
            {PREFIX + name: [column[i] for i in at] for name, column in lens.columns.items()},
            {
                PREFIX + name: v[at] if isinstance(v, Tensor) else v
                for name, v in lens.numbers.items()
            },
        )

    def _fill(self, rule: Rule, p: Tensor, state: dict[str, Any]) -> None:
        """Make the state that the rule and the pre-pass need and that is not there yet."""
        state.setdefault("step", 0)
        for name in (*rule.tensors, *(self.prepass.tensors if self.prepass else ())):
            slot = self.slots.get(name)
            if slot is not None and slot.key not in state:
                made = torch.zeros_like if slot.start == "zero" else torch.clone
                state[slot.key] = made(p.to(compute_dtype(p.dtype)))

    @property
    def _keys(self) -> set[str]:
        return {slot.key for slot in self.slots.values()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a checkpoint of the same optimizer; one that does not fit changes nothing.

        Checkpoints of ``torch.optim`` optimizers with the same state load too.

        Raises:
            ValueError: If it belongs to another optimizer or to other parameters.
        """
        self._check_state_dict(state_dict)
        own = [{**group} for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, before in zip(self.param_groups, own, strict=True):
            for name, value in before.items():
                group.setdefault(name, value)
        # torch casts state to the parameter's dtype and may share memory with the source.
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for i, p in zip(ids, params, strict=True):
            for key, value in state_dict["state"].get(i, {}).items():
                if key == "step":
                    self.state[p][key] = int(value)
                elif isinstance(value, Tensor):
                    value = real(value) if p.is_complex() and value.is_complex() else value
                    # A slot has the precision of its parameter's update, another key its own.
                    dtype = compute_dtype(real(p).dtype) if key in self._keys else value.dtype
                    self.state[p][key] = value.detach().to(device=p.device, dtype=dtype, copy=True)

    def _check_state_dict(self, state_dict: dict[str, Any]) -> None:
        name = type(self).__name__
        check_unwrapped(name, state_dict)
        groups, state = state_dict["param_groups"], state_dict["state"]
        if [len(g["params"]) for g in groups] != [len(g["params"]) for g in self.param_groups]:
            raise ValueError(f"{name}: the state_dict has other parameter groups than this one")
        for saved, own in zip(groups, self.param_groups, strict=True):
            if lacking := set(self.defaults) & set(CHECKS) - set(saved):
                raise ValueError(
                    f"{name}: the state_dict is of another optimizer: its groups have no "
                    f"{', '.join(sorted(lacking))}"
                )
            known = self._keys | {"step"} | self.extra_keys
            read = {*self.rule({**own, **saved}).tensors}
            read |= {*self.prepass.tensors} if self.prepass else set()
            needed = {self.slots[n].key for n in read if n in self.slots}
            for i, p in zip(saved["params"], own["params"], strict=True):
                entry = state.get(i, {})
                if entry and (set(entry) - known or needed - set(entry)):
                    raise ValueError(
                        f"{name}: the state_dict is of another optimizer: it has state "
                        f"{sorted(entry)}, not {sorted(needed | {'step'})}"
                    )
                for key in needed & set(entry):
                    if entry[key].shape not in (p.shape, real(p).shape):
                        raise ValueError(
                            f"{name}: {key} of parameter {i} has shape {tuple(entry[key].shape)}"
                            f", the parameter {tuple(p.shape)}: load it into the same model"
                        )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "backend": self.backend, "nonfinite": self.nonfinite}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._seen = {}

    def _error(self, p: Tensor, what: str) -> RuntimeError:
        places = (
            f"parameter {j} of group {i}"
            for i, group in enumerate(self.param_groups)
            for j, q in enumerate(group["params"])
            if q is p
        )
        return RuntimeError(
            f"{type(self).__name__}: {next(places)}, shape {tuple(p.shape)} and {p.dtype}, {what}"
        )


_REMEDY = "make a new optimizer, or put the parameter back as it was"


def real(t: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers; a real one as it is."""
    return torch.view_as_real(t) if t.is_complex() else t


def summarize(
    summary: Summary, sums: Mapping[str, Tensor], kept: dict[str, Any], group: Group
) -> Coefficients:
    """Run a function that makes numbers of a rule out of sums.

    Args:
        summary: Plain arithmetic over ``xp``, so that it has a translation, too. Its positional
            arguments are sums, or numbers that it keeps from step to step, 0 before the first;
            the keyword-only ones are hyper-parameters. Returns by name numbers of the rule, and
            the new values of those that it keeps.
        sums: Sums by name, float64 of shape () or, for all tensors at once, (T,).
        kept: What it keeps, by name; updated in place.
        group: Hyper-parameters by name.
    """
    arguments, options = arguments_of(summary)
    made = summary(
        *(sums[name] if name in sums else kept.get(name, 0.0) for name in arguments),
        **{name: float(group[name]) for name in options},
    )
    kept.update({name: made.pop(name) for name in arguments if name in made})
    return made


def arguments_of(summary: Summary) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the positional arguments of a summary, and of its hyper-parameters."""
    code, count = summary.__code__, summary.__code__.co_argcount
    names = code.co_varnames[: count + code.co_kwonlyargcount]
    return names[:count], names[count:]
