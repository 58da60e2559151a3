"""`RemoteOptimizer`: a torch.optim.Optimizer whose state and arithmetic live in the service.

optimizer = adamserve.RemoteOptimizer(model.parameters(), "127.0.0.1:50051", optim.Adam(lr=1e-3), job="demo")
optimizer = adamserve.RemoteOptimizer.wrap(torch.optim.AdamW(model.parameters()), "127.0.0.1:50051", job="demo")
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from adamserve import optim
from adamserve.client.client import Client
from adamserve.client.connect import connect
from adamserve.client.pushes import OutgoingPush
from adamserve.errors import Conflict, InvalidArgument, RolledBack
from adamserve.optim import torch_map
from adamserve.shard.sparse import as_rows
from adamserve.values import Array, Clocks, Gradient, JobReceipt, Outcome

Group = dict[str, Any]
RuleOf = Callable[[Group], optim.Rule]


@dataclass(slots=True)
class _Early:
    """A push begun while backward runs; void where a gradient changed, so that it cannot be committed."""

    push: OutgoingPush
    sent: dict[str, Tensor]
    void: bool = False


class RemoteOptimizer(torch.optim.Optimizer):
    """Sends gradients to the service and takes parameters back, where a local optimizer would update them.

    Several trainers may share a job: the first one's parameters start it, and each begins with a pull. Param groups may
    differ in any constant of the rule; rates follow `group["lr"]` (so every scheduler of torch.optim.lr_scheduler
    works), the other constants are the job's and stay. A parameter without a gradient does not move.

    With `overlap`, a gradient starts on its way when autograd has accumulated it. It is copied then; `step` compares,
    and sends the push again from the start if a gradient has changed since (clipping, unscaling, accumulation), and
    no more early from then on. The numbers are the same either way.

    Args:
        params: parameters, (name, parameter) pairs or groups, as torch's optimizers take them; float32 or float64.
        target: host:port of the service.
        rule: the update rule.
        job: the job's name.
        consistency: "async", "bsp" or "ssp:S", when this call creates the job.
        sparse, tables: as in `Client.create`; a parameter with sparse gradients (nn.Embedding(sparse=True)) is sent by
            rows, and pulled whole.
        overlap: send gradients while backward runs.
        options: further arguments of `adamserve.connect`.

    Raises:
        InvalidArgument: a parameter or a group's option is not one that the service takes; names it.
        Conflict: the job exists and differs.
    """

    def __init__(
        self,
        params: Iterable[Any],
        target: str,
        rule: optim.Rule,
        *,
        job: str,
        consistency: str = "async",
        sparse: str = "exact",
        tables: Collection[str] = (),
        overlap: bool = True,
        **options: Any,
    ) -> None:
        names = [f.name for f in fields(rule)]
        self._connect(
            params,
            {name: getattr(rule, name) for name in names},
            lambda group: replace(rule, **{name: _plain(group[name]) for name in names}),
            target,
            job=job,
            consistency=consistency,
            sparse=sparse,
            tables=tables,
            overlap=overlap,
            **options,
        )

    @classmethod
    def wrap(
        cls,
        optimizer: torch.optim.Optimizer,
        target: str,
        *,
        job: str,
        consistency: str = "async",
        sparse: str = "exact",
        tables: Collection[str] = (),
        overlap: bool = True,
        **options: Any,
    ) -> Self:
        """The remote form of a torch optimizer that has not stepped yet: its groups, its names, its mathematics.

        SGD, Adam, AdamW, Adamax, Adagrad and RMSprop with every option that changes what they compute. `foreach`,
        `fused` and `capturable` say how they compute it, and are passed over. Adagrad's `lr_decay` counts the job's
        updates.

        Raises:
            InvalidArgument: an optimizer or option that cannot be reproduced; names it.
        """
        kind = type(optimizer)
        for group in optimizer.param_groups:
            torch_map.rule_of(kind, group)
        if any(float(state.get("step", 0)) for state in optimizer.state.values()):
            raise InvalidArgument(
                "it has taken steps already", field="optimizer", fix="wrap it before its first step"
            )
        made = cls.__new__(cls)
        made._connect(
            [dict(group) for group in optimizer.param_groups],
            dict(optimizer.defaults),
            lambda group: torch_map.rule_of(kind, group),
            target,
            job=job,
            consistency=consistency,
            sparse=sparse,
            tables=tables,
            overlap=overlap,
            **options,
        )
        return made

    def _connect(
        self,
        params: Iterable[Any],
        defaults: dict[str, Any],
        rule_of: RuleOf,
        target: str,
        *,
        job: str,
        consistency: str,
        sparse: str,
        tables: Collection[str],
        overlap: bool,
        **options: Any,
    ) -> None:
        self._ready = False
        self._clock = Clocks()
        torch.optim.Optimizer.__init__(self, params, defaults)
        self._rule_of = rule_of
        self._named = dict(_names(self.param_groups))
        self._name_of = {id(parameter): name for name, parameter in self._named.items()}
        for name, parameter in self._named.items():
            if parameter.dtype not in (torch.float32, torch.float64):
                raise InvalidArgument(
                    f"is a {parameter.dtype} parameter",
                    field=name,
                    fix="keep float32 parameters, and use autocast",
                )
        self._rules = [rule_of(group) for group in self.param_groups]
        self._updates = dict.fromkeys(self._named, 0)
        self._host = {name: _host_array(p) for name, p in self._named.items()}
        common = self._rules[0]
        others = {
            self._name_of[id(p)]: rule
            for group, rule in zip(self.param_groups, self._rules, strict=True)
            for p in group["params"]
            if replace(rule, lr=common.lr) != common
        }
        self.client: Client = connect(target, job, **options)
        self.receipt: JobReceipt | None = None
        """What became of the last push."""
        self._early: _Early | None = None
        self._sending = threading.Lock()
        self._overlap = overlap
        self._hooks: list[Any] = []
        try:
            self.client.create(
                self._host,
                common,
                consistency=consistency,
                tensor_rules=others,
                sparse=sparse,
                tables=tables,
            )
            self._pull()
        except BaseException:
            self.client.close()
            raise
        if overlap:
            for parameter in self._named.values():
                if parameter.requires_grad:
                    hook: Any = parameter.register_post_accumulate_grad_hook
                    self._hooks.append(hook(self._accumulated))
        self._ready = True

    # ---- what a torch optimizer does

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Push the gradients, and pull the parameters into the model.

        Raises:
            RolledBack: a shard was restored meanwhile. The model holds the restored parameters: compute the gradients
                again.
            InvalidArgument: a gradient holds NaN or infinity, or a constant other than `lr` was changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_constants()
        rates = self._rates()
        gradients = {name: self._gradient(name, p) for name, p in self._named.items() if p.grad is not None}
        early, self._early = self._early, None
        if early is not None and not self._still(early, gradients):
            early.push.abort()
            early, self._overlap = None, False
        try:
            if early is None:
                arrays = {name: _array(name, gradient) for name, gradient in gradients.items()}
                self.receipt, _, self._clock = self.client.push_pull(
                    arrays, self._clock, into=self._host, rates=rates
                )
            else:
                self.receipt, self._clock = _finish(early, gradients, rates)
        except RolledBack:
            self._pull()
            raise
        self._to_model()
        if self.receipt.outcome is not Outcome.STALE:
            for name in gradients:
                self._updates[name] += 1
        return loss

    def add_param_group(self, param_group: Group) -> None:
        """As torch's, while the optimizer is being made; the job's tensors stay the same afterwards."""
        if getattr(self, "_ready", False):
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
            "updates": dict(self._updates),
        }
        return {**super().state_dict(), "remote": remote}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the groups' options over, and pull the parameters that the job has now.

        Raises:
            Conflict: the state is of another job.
        """
        rest = dict(state_dict)
        remote = rest.pop("remote", {"job": self.client.job})
        if remote["job"] != self.client.job:
            raise Conflict(f"the state is of job {remote['job']!r}, not {self.client.job!r}", field="job")
        super().load_state_dict(rest)
        self._check_constants()
        self._updates.update(remote.get("updates", {}))
        self._pull()

    def close(self) -> None:
        """Leave the job and disconnect."""
        for hook in self._hooks:
            hook.remove()
        self._give_up_early()
        self.client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # ---- inside

    def _give_up_early(self) -> None:
        early, self._early = self._early, None
        if early is not None:
            early.push.abort()

    def _pull(self) -> None:
        """Take the job's parameters; a rollback is no news to a model that takes everything."""
        self._give_up_early()
        for last in (False, True):
            try:
                _, self._clock = self.client.pull(into=self._host)
                break
            except RolledBack:
                if last:
                    raise
        self._to_model()

    def _to_model(self) -> None:
        """Copy what was pulled into parameters whose own memory could not be pulled into."""
        for name, parameter in self._named.items():
            pulled = torch.from_numpy(self._host[name])
            if pulled.data_ptr() != parameter.data_ptr():
                parameter.data.copy_(pulled)

    def _accumulated(self, parameter: Tensor) -> None:
        """Send a gradient that autograd has accumulated. Autograd has a thread for each device."""
        with self._sending:
            if self._overlap:
                self._send_early(parameter)

    def _send_early(self, parameter: Tensor) -> None:
        name = self._name_of[id(parameter)]
        gradient = parameter.grad
        if gradient is None or gradient.layout is not torch.strided:
            return
        if self._early is None:
            if not torch.isfinite(gradient.sum()):
                return
            self._early = _Early(self.client.stream(self._clock, into=self._host), {})
        early = self._early
        if name in early.sent:
            early.void = True
        if early.void or not bool(torch.isfinite(gradient.sum())):
            early.void = True
            return
        copy = self._signed(name, gradient.detach()).to("cpu", copy=True)
        early.sent[name] = copy
        early.push.add(name, _array(name, copy))

    def _still(self, early: _Early, gradients: Mapping[str, Tensor]) -> bool:
        """Whether what was sent early is what is to be sent now, and is still on its way."""
        return (
            early.push.alive
            and not early.void
            and all(
                name in gradients and torch.equal(sent, gradients[name]) for name, sent in early.sent.items()
            )
        )

    def _gradient(self, name: str, parameter: Tensor) -> Tensor:
        gradient = parameter.grad
        assert gradient is not None
        return self._signed(name, gradient.detach()).to("cpu")

    def _signed(self, name: str, gradient: Tensor) -> Tensor:
        return -gradient if self._maximize.get(name) else gradient

    @property
    def _maximize(self) -> dict[str, bool]:
        return {
            self._name_of[id(p)]: True for g in self.param_groups if g.get("maximize") for p in g["params"]
        }

    def _rates(self) -> dict[str, float]:
        """Each tensor's rate for this push."""
        rates = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                name = self._name_of[id(parameter)]
                if parameter.grad is not None:
                    rates[name] = float(group["lr"])
        return rates

    def _check_constants(self) -> None:
        """The service keeps a rule's constants; only the rate goes with each push."""
        for group, rule in zip(self.param_groups, self._rules, strict=True):
            now = self._rule_of(group)
            for field in fields(now):
                if field.name != "lr" and getattr(now, field.name) != getattr(rule, field.name):
                    raise InvalidArgument(
                        f"was changed from {getattr(rule, field.name)} to {getattr(now, field.name)}",
                        field=field.name,
                        fix="only lr may change while a job runs",
                    )


def _finish(
    early: _Early, gradients: Mapping[str, Tensor], rates: Mapping[str, float]
) -> tuple[JobReceipt, Clocks]:
    """Add what was not sent early, and commit; a gradient that is refused gives the whole push up."""
    with early.push:
        for name, gradient in gradients.items():
            if name not in early.sent:
                early.push.add(name, _array(name, gradient))
        receipt, _, clock = early.push.commit(rates=rates)
    return receipt, clock


def _names(groups: Iterable[Group]) -> Iterable[tuple[str, Tensor]]:
    """Every parameter's name: its own where it was given, else its place."""
    for g, group in enumerate(groups):
        names = group.get("param_names") or [f"group{g}.{i}" for i in range(len(group["params"]))]
        yield from zip(names, group["params"], strict=True)


def _host_array(parameter: Tensor) -> Array:
    """Memory to pull a parameter into: its own, where it lies on the CPU in one run."""
    data = parameter.detach()
    own = data.device.type == "cpu" and data.is_contiguous()
    array: Array = data.numpy() if own else data.to("cpu", copy=True).contiguous().numpy()
    return array


def _array(name: str, gradient: Tensor) -> Gradient:
    """A gradient on the CPU as numpy; bfloat16 is widened."""
    wide = gradient.float() if gradient.dtype in (torch.bfloat16, torch.float16) else gradient
    rows = as_rows(name, wide)
    if rows is not None:
        return rows
    array: Array = wide.contiguous().numpy()
    return array


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) else value
