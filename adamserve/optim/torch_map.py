"""torch.optim and the rules, both ways, in one table.

    rule = torch_map.rule_of(torch.optim.AdamW, group)      # a param group as a rule
    form = torch_map.form_of([rule])                        # the torch optimizer that computes the same
    form.optimizer, form.options(rule), form.state(rule, slots, t)

A row of the table names a torch optimizer, the rule, torch's options by the rule's constants, and torch's state by the
rule's slots. Options that say how torch computes (`foreach`, `fused`, `capturable`) are passed over; `maximize` is the
client's, which negates the gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from adamserve.errors import InvalidArgument
from adamserve.optim.adagrad import AdaGrad
from adamserve.optim.adam import Adam
from adamserve.optim.adamax import AdaMax
from adamserve.optim.base import Rule
from adamserve.optim.momentum import SGD, Nesterov
from adamserve.optim.rmsprop import RMSProp
from adamserve.optim.torch_forms import TorchRMSprop, TorchSGD

if TYPE_CHECKING:
    import torch
    from torch import Tensor

Group = Mapping[str, Any]
"""One of an optimizer's `param_groups`."""


def _same(slot: Tensor, rule: Rule) -> Tensor:
    return slot.clone()


def _square(slot: Tensor, rule: Rule) -> Tensor:
    return slot.square()


def _root(state: Tensor) -> Tensor:
    return state.sqrt()


def _over_rate(slot: Tensor, rule: Rule) -> Tensor:
    """SGD's velocity as torch keeps it, without the rate."""
    if not rule.lr:
        raise InvalidArgument("torch keeps the velocity over the rate, which is 0", field="lr")
    return slot / -rule.lr


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """A torch optimizer, and the rule that computes the same.

    Attributes:
        optimizer: the name of the class in torch.optim.
        rule: the rule's class.
        constants: by torch's option, the rule's constant, or one for each part of a pair.
        slots: by torch's state, the rule's slot. A slot that a rule does not have is passed over.
        change: makes torch's state of a slot.
        back: makes a slot of torch's state, for a form that a torch optimizer becomes.
        computed: by constant that torch has no option for, the value that torch computes with, where that is not the
            constant's default.
        refused: by constant, a value that torch does not take.
        extra: torch's options beside those that constants give.
        counted: whether torch keeps the number of updates.
    """

    optimizer: str
    rule: type[Rule]
    constants: Mapping[str, str | tuple[str, ...]]
    slots: Mapping[str, str]
    change: Callable[[Tensor, Rule], Tensor] = _same
    back: Callable[[Tensor], Tensor] | None = None
    computed: Mapping[str, Any] = field(default_factory=dict)
    refused: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    counted: bool = True

    def rule_of(self, group: Group) -> Rule:
        """Make the rule of a param group."""
        constants = dict(self.computed)
        for option, names in self.constants.items():
            if isinstance(names, str):
                constants[names] = group[option]
            else:
                constants.update(zip(names, group[option], strict=True))
        return self.rule(**constants)

    def options(self, rule: Rule) -> dict[str, Any]:
        """Return a param group's options, as the optimizer's constructor takes them."""
        options = dict(self.extra)
        for option, names in self.constants.items():
            options[option] = (
                getattr(rule, names) if isinstance(names, str) else tuple(getattr(rule, x) for x in names)
            )
        return options

    def state(self, rule: Rule, slots: Mapping[str, Tensor], t: int) -> dict[str, Tensor]:
        """Return a parameter's entry in an optimizer's state, in new tensors.

        Args:
            rule: the parameter's rule.
            slots: its slots.
            t: updates it has had. An optimizer without a count of its own takes the first gradient another way than
                later ones: before it, the entry is empty.
        """
        import torch

        if not self.counted and not t:
            return {}
        state = {"step": torch.tensor(float(t))} if self.counted else {}
        kept = {name: slot for name, slot in self.slots.items() if slot in rule.slot_names}
        return state | {name: self.change(slots[slot], rule) for name, slot in kept.items()}

    def slots_of(self, rule: Rule, w: Tensor, state: Mapping[str, Any]) -> tuple[dict[str, Tensor], int]:
        """Return a parameter's slots, and how many updates it has had, from its entry in an optimizer's state.

        Args:
            rule: the parameter's rule.
            w: the parameter.
            state: as torch keeps it; empty before the first step.

        Raises:
            InvalidArgument: it is the state of another optimizer; names what is missing.
        """
        kept = {name: slot for name, slot in self.slots.items() if slot in rule.slot_names}
        known = {name: x for name, x in state.items() if name in kept and x is not None}
        t = int(state.get("step", 0)) if self.counted else int(bool(known))
        if t and len(known) < len(kept):
            missing = ", ".join(kept.keys() - known.keys())
            raise InvalidArgument(
                f"lacks {missing}", field="state", fix=f"give the state of a torch.optim.{self.optimizer}"
            )
        slots = {slot: known.get(name, w.detach().new_zeros(w.shape)) for name, slot in kept.items()}
        return {slot: self.back(x) if self.back is not None else x for slot, x in slots.items()}, t

    def lost(self, rule: Rule) -> dict[str, Any]:
        """Return the constants, with their values, for which torch has no option."""
        carried: set[str] = set()
        for names in self.constants.values():
            carried.update((names,) if isinstance(names, str) else names)
        computed = {
            f.name: self.computed.get(f.name, f.default) for f in fields(rule) if f.name not in carried
        }
        if getattr(rule, "eps", None) == 0.0:
            computed.pop("eps_inside_sqrt", None)
        lost = {name: getattr(rule, name) for name, x in computed.items() if getattr(rule, name) != x}
        return lost | {name: x for name, x in self.refused.items() if getattr(rule, name) == x}

    def notes(self, rule: Rule) -> list[str]:
        """Say what torch does otherwise than the rule, if anything."""
        lost = self.lost(rule)
        said = [text.format_map(asdict(rule)) for name, text in _NOTES.items() if name in lost]
        if getattr(rule, "eps", None) == 0.0:
            said.append("where an element never had a gradient, torch divides 0 by 0 (NaN), this job gives 0")
        return said


_Constants = dict[str, str | tuple[str, ...]]
_L2: _Constants = {"lr": "lr", "weight_decay": "l2"}
_BETAS: _Constants = {"betas": ("beta1", "beta2"), "eps": "eps"}
_MOMENTS = {"exp_avg": "m", "exp_avg_sq": "v", "max_exp_avg_sq": "v_max"}
_OUTSIDE = {"eps_inside_sqrt": False}

FORMS: tuple[Form, ...] = (
    Form(
        optimizer="SGD",
        rule=TorchSGD,
        constants=_L2 | {"momentum": "momentum", "dampening": "dampening", "nesterov": "nesterov"},
        slots={"momentum_buffer": "momentum_buffer"},
        counted=False,
    ),
    Form(
        optimizer="Adam",
        rule=Adam,
        constants=_L2 | _BETAS | {"amsgrad": "amsgrad"},
        slots=_MOMENTS,
        computed=_OUTSIDE,
        refused={"beta2": 1.0},
    ),
    Form(
        optimizer="AdamW",
        rule=Adam,
        constants=_BETAS | {"lr": "lr", "weight_decay": "weight_decay", "amsgrad": "amsgrad"},
        slots=_MOMENTS,
        computed=_OUTSIDE,
        refused={"beta2": 1.0},
    ),
    Form(
        optimizer="Adamax",
        rule=AdaMax,
        constants=_L2 | _BETAS,
        slots={"exp_avg": "m", "exp_inf": "u"},
    ),
    Form(
        optimizer="Adagrad",
        rule=AdaGrad,
        constants=_L2 | {"lr_decay": "lr_decay", "eps": "eps"},
        slots={"sum": "root"},
        change=_square,
        back=_root,
        computed=_OUTSIDE,
    ),
    Form(
        optimizer="RMSprop",
        rule=TorchRMSprop,
        constants=_L2 | {"alpha": "decay", "eps": "eps", "momentum": "momentum", "centered": "centered"},
        slots={
            "square_avg": "square",
            "grad_avg": "mean",
            "momentum_buffer": "momentum_buffer",
        },
    ),
    # The slides' own forms of two of them.
    Form(
        optimizer="SGD",
        rule=SGD,
        constants=_L2 | {"momentum": "momentum"},
        slots={"momentum_buffer": "velocity"},
        change=_over_rate,
        counted=False,
    ),
    Form(
        optimizer="SGD",
        rule=Nesterov,
        constants=_L2 | {"momentum": "momentum"},
        slots={"momentum_buffer": "velocity"},
        change=_over_rate,
        refused={"momentum": 0.0},
        extra={"nesterov": True},
        counted=False,
    ),
    Form(
        optimizer="RMSprop",
        rule=RMSProp,
        constants=_L2 | {"alpha": "decay", "eps": "eps"},
        slots={"square_avg": "root"},
        change=_square,
        computed=_OUTSIDE,
    ),
)
"""The table. A torch optimizer's first row says which rule it becomes; a rule's first row that loses nothing, which
optimizer."""

_ONLY = {"differentiable": False}
"""Options that no rule reproduces, with the only value allowed."""

_NOTES = {
    "eps_inside_sqrt": "torch adds eps={eps:g} outside the root, this job inside: torch's is a slightly different rule"
    " (eps_inside_sqrt=False would match)",
    "lr_schedule": "the rate's schedule {lr_schedule} is not exported: use torch.optim.lr_scheduler",
    "lr_decay": "the rate's decay lr_decay={lr_decay:g} is not exported: use torch.optim.lr_scheduler",
    "bias_correction": "torch has no bias_correction={bias_correction}: its rule is another one",
    "beta1_decay": "torch has no beta1_decay={beta1_decay:g}: its rule is another one",
    "box": "torch does not hold parameters in the box {box}: clamp them after each step",
}
"""What users must know who go on without a constant that torch lacks; without any other one nobody should."""


def rule_of(optimizer: type[torch.optim.Optimizer], group: Group) -> Rule:
    """Make the rule that computes what a torch optimizer computes for a param group.

    Raises:
        InvalidArgument: an optimizer or an option that no rule reproduces; names it.
    """
    import torch

    decoupled = optimizer is torch.optim.Adam and group.get("decoupled_weight_decay")
    form = form_named(torch.optim.AdamW if decoupled else optimizer)
    for option, only in _ONLY.items():
        if group.get(option, only) != only:
            raise InvalidArgument("cannot be reproduced", field=option, fix=f"leave it {only}")
    return form.rule_of(group)


def form_named(optimizer: type[torch.optim.Optimizer]) -> Form:
    """Find what a torch optimizer becomes.

    Raises:
        InvalidArgument: nothing that there is.
    """
    import torch

    form = next((form for form in FORMS if getattr(torch.optim, form.optimizer) is optimizer), None)
    if form is None:
        known = ", ".join(dict.fromkeys(form.optimizer for form in FORMS))
        raise InvalidArgument(
            f"{optimizer.__name__} cannot be reproduced", field="optimizer", fix=f"wrap one of {known}"
        )
    return form


def form_of(rules: Sequence[Rule]) -> Form:
    """Find the torch optimizer that goes on with some parameters where their rules stopped.

    Args:
        rules: of one class; each becomes a param group.

    Raises:
        InvalidArgument: torch has no such optimizer.
    """
    forms = [form for form in FORMS if all(type(rule) is form.rule for rule in rules)]
    name, fix = type(rules[0]).__name__, "export the model alone (--model-only)"
    if not forms:
        raise InvalidArgument(f"torch has no {name}", field="rule", fix=fix)
    lost = [{name: x for rule in rules for name, x in form.lost(rule).items()} for form in forms]
    for form, constants in zip(forms, lost, strict=True):
        if constants.keys() <= _NOTES.keys():
            return form
    wanted = " and ".join(
        sorted({f"{name}={x}" for constants in lost for name, x in constants.items() if name not in _NOTES})
    )
    raise InvalidArgument(f"torch has no {name} with {wanted}", field="rule", fix=fix)
