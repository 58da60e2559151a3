"""`RemoteOptimizer`: a torch.optim.Optimizer whose state and arithmetic live in the service.

optimizer = adamserve.RemoteOptimizer(model.parameters(), "127.0.0.1:50051", optim.Adam(lr=1e-3), job="demo")
optimizer = adamserve.RemoteOptimizer.wrap(torch.optim.AdamW(model.parameters()), "127.0.0.1:50051", job="demo")
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import fields, replace
from functools import partial
from typing import Any, NoReturn, Self

import torch
from torch import Tensor, nn

from adamserve import optim
from adamserve.client.client import Client
from adamserve.client.early import Early, as_array
from adamserve.client.moments import Moments, moments_of
from adamserve.client.parameters import Group, Parameters, warn
from adamserve.client.pushes import OutgoingPush
from adamserve.client.replicas import Replicas
from adamserve.errors import Conflict, InvalidArgument, NotFound, RolledBack
from adamserve.optim import torch_map
from adamserve.values import Array, Clocks, JobReceipt, Stamp

ASYNC = {"max_staleness": None, "staleness_lr": "none", "delay_compensation": 0.0}
"""Options of the mode "async", which say like the mode what the job is; what they are where they are not given."""


class RemoteOptimizer(torch.optim.Optimizer):
    """Sends gradients to the service and takes parameters back, where a local optimizer would update them.

    Several trainers may share a job: the first one's parameters start it, and each begins with a pull. Every constant
    in `param_groups` counts from the next step on, so schedulers of any of them work. A parameter without a gradient
    does not move, and one that needs none stays out of the job.

    The model stays the user's. What was done to a parameter since the last step (loaded, clamped, averaged, given other
    memory) is noticed, and assigned to the job before the gradient.

    With `overlap`, a gradient starts on its way when autograd has accumulated it. It is copied then; `step` compares,
    and sends the push again from the start if a gradient has changed since (clipping, unscaling, accumulation), and
    no more early from then on. The numbers are the same either way.

    Under DistributedDataParallel, which averages gradients, rank 0 pushes and the others take its parameters; in bsp
    every rank pushes.

    docs/drop-in.md goes through torch's interface entry by entry.

    Args:
        params: parameters, (name, parameter) pairs or groups, as torch's optimizers take them; float32 or float64.
        target: host:port of the service.
        rule: the update rule.
        job: the job's name.
        model: gives the parameters' names. Without it they are those given, or those in the module that is found to
            have the parameters.
        consistency: "async", "bsp" or "ssp:S", when this call creates the job.
        sparse, tables: as in `Client.create`; a parameter with sparse gradients (nn.Embedding(sparse=True)) is sent by
            rows, and pulled whole.
        overlap: send gradients while backward runs.
        checkpoint_every_s: as in `Client.create`.
        options: further arguments of `adamserve.connect`, and those of `Client.create` in `ASYNC`.

    Raises:
        InvalidArgument: a parameter or a group's option is not one that the service takes; names it.
        Conflict: the job exists and differs.
    """

    _local: torch.optim.Optimizer | None = None

    def __init__(
        self,
        params: Iterable[Any],
        target: str,
        rule: optim.Rule,
        *,
        job: str,
        model: nn.Module | None = None,
        consistency: str = "async",
        sparse: str = "exact",
        tables: Collection[str] = (),
        overlap: bool = True,
        checkpoint_every_s: float | None = None,
        **options: Any,
    ) -> None:
        self._rule_of: Callable[[Group], optim.Rule]
        if (local := self._local) is None:
            names = [f.name for f in fields(rule)]
            super().__init__(params, {name: getattr(rule, name) for name in names})
            self._rule_of = lambda group: replace(rule, **{name: _plain(group[name]) for name in names})
        else:
            super().__init__([dict(group) for group in params], dict(local.defaults))
            self.param_groups = local.param_groups
            self._rule_of = partial(torch_map.rule_of, type(local))
        self._parameters = Parameters(self.param_groups, model)
        trained = self._parameters.trained
        rules = {name: self._rule_of(group) for group, name, _ in self._members()}
        common = next(iter(rules.values()), self._rule_of(self.param_groups[0]))
        others = {name: rule for name, rule in rules.items() if replace(rule, lr=common.lr) != common}
        modes: dict[str, Any] = {"consistency": consistency.strip().lower(), "sparse": sparse}
        modes |= {name: options.pop(name, default) for name, default in ASYNC.items()}
        self._clock = Clocks()
        self._replicas = Replicas(() if modes["consistency"] == "bsp" else trained.values())
        self.receipt: JobReceipt | None = None
        """What became of the last push; None on a rank that another one pushes for."""
        self.client = Client(target, job, **options)
        self._early = Early(allowed=overlap and not self._replicas.here)
        self._hooks: list[Any] = []
        self._dropped = weakref.finalize(self, _leave, self.client, self._early, self._hooks)

        def start() -> None:
            created = not self._join(modes)
            if created:
                memory = self._parameters.memory()
                try:
                    created = self.client.create(
                        memory,
                        common,
                        tensor_rules=others,
                        tables=tables,
                        checkpoint_every_s=checkpoint_every_s,
                        **modes,
                    )
                except Conflict:  # another trainer may have been faster, with constants of its own
                    created = False
                    if not self._join(modes):
                        raise
                else:
                    self._join(modes)
            moments = Moments() if local is None else self._moments(local.state_dict())
            if created and not moments.fresh:
                self._bring(moments)
            elif not moments.fresh:
                warn("the job has moments of its own; those of the optimizer that was wrapped are not used")
            self._pull()

        try:
            self._replicas.together(start)
        except BaseException:
            self._dropped()
            raise
        if not self._replicas.follows:
            self.client.before_checkpoint = _weakly(self._settle)
        accumulated = _weakly(self._accumulated)
        for parameter in trained.values() if self._early.allowed else ():
            hook: Any = parameter.register_post_accumulate_grad_hook
            self._hooks.append(hook(accumulated))
        self.state = _Elsewhere()

    @classmethod
    def wrap(cls, optimizer: torch.optim.Optimizer, target: str, **options: Any) -> Self:
        """The remote form of a torch optimizer: its groups, which both share, its mathematics, its moments.

        SGD, Adam, AdamW, Adamax, Adagrad and RMSprop with every option that changes what they compute. `foreach`,
        `fused` and `capturable` say how they compute it, and are passed over. Adagrad's `lr_decay` counts the job's
        updates. Moments of an optimizer that has stepped start the job; one that exists keeps its own. The optimizer
        that was wrapped can no longer step.

        Args:
            options: `job` and the other keywords of `RemoteOptimizer`.

        Raises:
            InvalidArgument: an optimizer or option that cannot be reproduced; names it.
        """
        rules = [torch_map.rule_of(type(optimizer), group) for group in optimizer.param_groups]
        made = cls.__new__(cls)
        made._local = optimizer
        RemoteOptimizer.__init__(made, optimizer.param_groups, target, rules[0], **options)
        optimizer.register_step_pre_hook(_wrapped)
        return made

    # ---- what a torch optimizer does

    @property
    def param_groups(self) -> list[Group]:
        """The groups, which a wrapped optimizer shares: a scheduler of either moves both."""
        groups: list[Group] = vars(self if self._local is None else self._local)["param_groups"]
        return groups

    @param_groups.setter
    def param_groups(self, groups: list[Group]) -> None:
        vars(self if self._local is None else self._local)["param_groups"] = groups

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Push the gradients, and pull the parameters into the model.

        Raises:
            RolledBack: a shard was restored meanwhile. The model holds the restored parameters: compute the gradients
                again.
            InvalidArgument: a gradient or a changed parameter holds NaN or infinity, or a group asks for what the job's
                rule cannot do.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._replicas.together(self._exchange)
        if self._local is not None:
            self._local._opt_called = True  # type: ignore[attr-defined] # so that its schedulers do not warn
        return loss

    def add_param_group(self, param_group: Group) -> None:
        """As torch's, while the optimizer is being made; the job's tensors stay the same afterwards."""
        if hasattr(self, "_parameters"):
            raise InvalidArgument(
                "the job's tensors are fixed",
                field="param_group",
                fix="make a new RemoteOptimizer with a new job",
            )
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The groups, and which job holds the moments; those are in the service's checkpoints."""
        remote = {
            "job": self.client.job,
            "seq": self.client.seq,
            "clocks": [tuple(stamp) for stamp in self._clock],
        }
        return {**super().state_dict(), "remote": remote}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the groups' options, and of a torch optimizer's state its moments.

        A state of this class holds no moments: the job's stay as they are, with a warning where they have moved on.
        Parameters that were not changed since the last step are pulled; those that were go to the job with the next
        step.

        Raises:
            Conflict: the state is of another job.
            InvalidArgument: its moments are of another optimizer; nothing has changed.
        """
        rest = dict(state_dict)
        remote = rest.pop("remote", None)
        if remote is not None and remote["job"] != self.client.job:
            raise Conflict(f"the state is of job {remote['job']!r}, not {self.client.job!r}", field="job")
        given: list[Moments] = []

        def read() -> None:
            if rest.get("state"):
                given.append(self._moments(rest))

        def bring() -> None:
            for moments in given:
                self._bring(moments)
            if not self._parameters.changed():
                self._pull()
            clocks = remote and [tuple(stamp) for stamp in remote["clocks"]]
            if clocks and clocks != list(self._clock):
                warn("the job has had updates since this state was taken, and its moments are those of now")

        self._replicas.together(read)
        self._early.give_up()
        super().load_state_dict({**rest, "state": {}})
        self._replicas.together(bring)

    def __setstate__(self, state: dict[str, Any]) -> None:
        rest = dict(state)
        groups = rest.pop("param_groups", None)
        super().__setstate__({**rest, "state": _Elsewhere()})
        if groups is not None:
            self.param_groups = groups

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise InvalidArgument(
            "cannot be copied or pickled: it is one trainer's connection",
            field="RemoteOptimizer",
            fix="make another one, or keep its state_dict()",
        )

    def close(self) -> None:
        """Leave the job and disconnect. The end of the process, and of the last reference, do it too."""
        if self._dropped.detach() is not None:
            _leave(self.client, self._early, self._hooks, close=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- inside

    def _join(self, modes: dict[str, Any]) -> bool:
        """Use the job if it exists, and say whether it does.

        Constants are each push's own, and may be other ones than the job's; anything else that differs is a Conflict.
        """
        try:
            self._rules = self.client.rules
        except NotFound:
            return False
        here = {name: (tuple(p.shape), str(p.dtype)[6:]) for name, p in self._parameters.trained.items()}
        there = {tensor.name: (tensor.shape, tensor.dtype) for tensor in self.client.tensors}
        for found, asked in ((there, here), (self.client.modes, modes)):
            for name in found | asked:
                has, wants = found.get(name, "none"), asked.get(name, "none")
                if has != wants:
                    raise Conflict(f"the job has {has}, this optimizer {wants}", field=name)
        for _ in self._asked():  # what cannot be is refused now
            pass
        return True

    def _exchange(self) -> None:
        """One push and pull."""
        gradients, rates, constants = {}, {}, {}
        for name, parameter, group, rate, changed in self._asked():
            if parameter.grad is not None:
                gradient = parameter.grad.detach()
                gradients[name] = (-gradient if group.get("maximize") else gradient).to("cpu")
                rates[name] = rate
                if changed:
                    constants[name] = changed
        memory = self._parameters.memory()
        early, changed_values = self._early, self._parameters.changed()
        if early.push is not None and (changed_values or not early.stands(gradients, memory)):
            early.give_up()
            early.allowed = early.allowed and bool(changed_values)
        try:
            if changed_values:
                self._assign(changed_values)
            if early.push is None:
                arrays = {name: as_array(name, gradient) for name, gradient in gradients.items()}
                self.receipt, _, self._clock = self.client.push_pull(
                    arrays, self._clock, into=memory, rates=rates, constants=constants
                )
            else:
                self.receipt, self._clock = early.finish(gradients, rates, constants)
        except RolledBack:
            self._pull()
            raise
        except InvalidArgument:  # nothing was sent, or nothing came back
            raise
        except BaseException:
            self._parameters.forget()
            raise
        self._parameters.take(memory)

    def _settle(self) -> None:
        """Give the job what the next step would bring besides gradients: changed parameters and constants."""
        self._early.give_up()
        if changed := self._parameters.changed():
            self._assign(changed)
        constants = {name: {"lr": rate, **rest} for name, _, _, rate, rest in self._asked()}
        self.client.set({}, constants=constants)

    def _assign(self, values: Mapping[str, Array]) -> None:
        """Give the job what the user has made of some parameters; it does not make the next gradient stale."""
        for name in values:
            if self._rules[name].has_lookahead:
                raise InvalidArgument(
                    "was changed, but the model holds the look-ahead point, not the parameter",
                    field=name,
                    fix="assign it with client.set and pull, or wrap torch.optim.SGD(nesterov=True)",
                )
        now = self.client.set(values).clock
        self._clock = Clocks(
            new if new == Stamp(old.incarnation, old.clock + 1) else old
            for old, new in zip(self._clock, now, strict=True)
        )

    def _moments(self, state: Mapping[str, Any]) -> Moments:
        """Those in a state_dict of the optimizer that was wrapped."""
        return moments_of(self._form(), state, self.param_groups, self._parameters, self._rules)

    def _bring(self, moments: Moments) -> None:
        self.client.set({}, updates=moments.updates)
        for slot, values in moments.slots.items():
            self.client.set(values, slot=slot)

    def _form(self) -> torch_map.Form:
        """How torch keeps the state of the optimizer that was wrapped."""
        if self._local is None:
            raise InvalidArgument(
                "the moments of a torch optimizer can be taken over only where one was wrapped",
                field="state",
                fix="use RemoteOptimizer.wrap",
            )
        return torch_map.form_named(type(self._local))

    def _members(self) -> Iterable[tuple[Group, str, Tensor]]:
        return self._parameters.by_group(self.param_groups)

    def _asked(self) -> Iterator[tuple[str, Tensor, Group, float, dict[str, float]]]:
        """Each trained parameter with its name, its group, and the rate and constants that the group asks for now."""
        for group, name, parameter in self._members():
            rule = self._rule_of(group)
            changed = optim.changes(self._rules[name], rule) if rule != self._rules[name] else {}
            yield name, parameter, group, rule.lr, changed

    def _pull(self) -> None:
        """Take the job's parameters; a rollback is no news to a model that takes everything."""
        self._early.give_up()
        memory = self._parameters.memory()
        try:
            _, self._clock = self.client.pull(into=memory)
        except RolledBack:
            _, self._clock = self.client.pull(into=memory)
        self._parameters.take(memory)

    def _accumulated(self, parameter: Tensor) -> None:
        """Send a gradient that autograd has accumulated."""
        name, gradient = self._parameters.names[id(parameter)], parameter.grad
        if gradient is None or gradient.layout is not torch.strided:
            return
        group = next(g for g in self.param_groups if any(p is parameter for p in g["params"]))
        signed = -gradient.detach() if group.get("maximize") else gradient.detach()
        self._early.send(name, signed, self._begin)

    def _begin(self) -> tuple[OutgoingPush, Mapping[str, Array]]:
        memory = self._parameters.memory()
        return self.client.stream(self._clock, into=memory), memory


class _Elsewhere(defaultdict[Any, Any]):
    """The state of an optimizer whose moments are with the service: empty, and no parameter's can be read."""

    def __missing__(self, key: Any) -> NoReturn:
        raise InvalidArgument(
            "the moments are with the service", field="state", fix="export a checkpoint to see them"
        )

    def __bool__(self) -> bool:
        """Asked by torch.distributed.checkpoint, which would make a step with zero gradients to fill it."""
        self.__missing__(None)


def _leave(client: Client, early: Early, hooks: list[Any], *, close: bool = False) -> None:
    """Give an early push up and leave the job, at the end of the object or of the process; or close it in good time."""
    for hook in hooks:
        hook.remove()
    if (push := early.taken()) is not None:
        push.give_up()
    if close:
        client.close()
    else:
        client.drop()


def _wrapped(optimizer: torch.optim.Optimizer, *_: Any) -> NoReturn:
    raise InvalidArgument(
        "was wrapped, and no longer steps by itself", field="optimizer", fix="step the RemoteOptimizer"
    )


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value


def _weakly(method: Callable[..., None]) -> Callable[..., None]:
    """A method to be called while its object is there, and that does not keep it."""
    reference = weakref.WeakMethod(method)

    def call(*args: Any) -> None:
        if (alive := reference()) is not None:
            alive(*args)

    return call
