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
from adamserve.optim.adam import Adam, AdaMax
from adamserve.optim.base import Rule
from adamserve.optim.momentum import SGD, Nesterov, TorchSGD
from adamserve.optim.rmsprop import AdaGrad, RMSProp, TorchRMSprop

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def _square(slot: Tensor, rule: Rule) -> Tensor:
    return slot.square()


def _over_rate(slot: Tensor, rule: Rule) -> Tensor:
    """SGD's velocity as torch keeps it, without the rate."""
    if not rule.lr:
        raise InvalidArgument("torch keeps the velocity over the rate, which is 0", field="lr")
    return slot / -rule.lr


@dataclass(frozen=True, slots=True)
class Form:
    """A torch optimizer, and the rule that computes the same.

    Attributes:
        optimizer: the name of the class in torch.optim.
        rule: the rule's class.
        constants: by torch's option, the rule's constant. Torch's pair `betas` counts as two options.
        slots: by torch's state, the rule's slot. A slot that a rule does not have is passed over.
        change: makes torch's state of a slot.
        back: makes a slot of torch's state, for a form that a torch optimizer becomes.
        refused: by constant, a value that torch does not take.
        extra: torch's options beside those that constants give.
    """

    optimizer: str
    rule: type[Rule]
    constants: Mapping[str, str]
    slots: Mapping[str, str]
    change: Callable[[Tensor, Rule], Tensor] = lambda slot, rule: slot.clone()
    back: Callable[[Tensor], Tensor] = lambda state: state
    refused: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def options(self, rule: Rule) -> dict[str, Any]:
        """Return a param group's options, as the optimizer's constructor takes them."""
        options = {option: getattr(rule, constant) for option, constant in self.constants.items()}
        if "beta1" in options:
            options["betas"] = options.pop("beta1"), options.pop("beta2")
        return {**options, **self.extra}

    def state(self, rule: Rule, slots: Mapping[str, Tensor], t: int) -> dict[str, Tensor]:
        """Return a parameter's entry in an optimizer's state, in new tensors.

        `t` counts its updates. SGD keeps no count, and takes the first gradient another way than later ones: before it,
        the entry is empty.
        """
        import torch

        if self.optimizer == "SGD" and not t:
            return {}
        state = {} if self.optimizer == "SGD" else {"step": torch.tensor(float(t))}
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
        t = int(bool(known)) if self.optimizer == "SGD" else int(state.get("step", 0))
        if t and len(known) < len(kept):
            missing = ", ".join(kept.keys() - known.keys())
            raise InvalidArgument(
                f"lacks {missing}", field="state", fix=f"give the state of a torch.optim.{self.optimizer}"
            )
        slots = {slot: known.get(name, w.detach().new_zeros(w.shape)) for name, slot in kept.items()}
        return {slot: self.back(x) for slot, x in slots.items()}, t

    def lost(self, rule: Rule) -> dict[str, Any]:
        """Return the constants, with their values, for which torch has no option."""
        lost = {}
        for f in fields(rule):
            value = getattr(rule, f.name)
            carried = f.name in self.constants.values() or value == _COMPUTED.get(f.name, f.default)
            if f.name == "eps_inside_sqrt" and getattr(rule, "eps", None) == 0.0:
                carried = True
            if not carried or (f.name, value) in self.refused.items():
                lost[f.name] = value
        return lost

    def notes(self, rule: Rule) -> list[str]:
        """Say what torch does otherwise than the rule, if anything."""
        lost = self.lost(rule)
        said = [text.format_map(asdict(rule)) for name, text in _NOTES.items() if name in lost]
        if getattr(rule, "eps", None) == 0.0:
            said.append("where an element never had a gradient, torch divides 0 by 0 (NaN), this job gives 0")
        return said


def _named(*same: str, **other: str) -> dict[str, str]:
    """Constants by torch's options: those of the same name, and the others."""
    return dict(zip(same, same, strict=True)) | other


_ADAM = _named("lr", "beta1", "beta2", "eps", "amsgrad")
_MOMENTS = {"exp_avg": "m", "exp_avg_sq": "v", "max_exp_avg_sq": "v_max"}
_SGD = _named("lr", "momentum", weight_decay="l2")
_RMSPROP = _named("lr", "eps", weight_decay="l2", alpha="decay")
_COMPUTED = {"eps_inside_sqrt": False}
"""What torch computes with where it has no option, if that is not the constant's default."""

FORMS: tuple[Form, ...] = (
    Form("SGD", TorchSGD, _SGD | _named("dampening", "nesterov"), {"momentum_buffer": "momentum_buffer"}),
    Form("Adam", Adam, _ADAM | {"weight_decay": "l2"}, _MOMENTS, refused={"beta2": 1.0}),
    Form("AdamW", Adam, _ADAM | _named("weight_decay"), _MOMENTS, refused={"beta2": 1.0}),
    Form(
        "Adamax",
        AdaMax,
        _named("lr", "beta1", "beta2", "eps", weight_decay="l2"),
        {"exp_avg": "m", "exp_inf": "u"},
    ),
    Form(
        "Adagrad",
        AdaGrad,
        _named("lr", "lr_decay", "eps", weight_decay="l2"),
        {"sum": "root"},
        _square,
        lambda state: state.sqrt(),
    ),
    Form(
        "RMSprop",
        TorchRMSprop,
        _RMSPROP | _named("momentum", "centered"),
        {"square_avg": "square", "grad_avg": "mean", "momentum_buffer": "momentum_buffer"},
    ),
    # The slides' own forms of two of them.
    Form("SGD", SGD, _SGD, {"momentum_buffer": "velocity"}, _over_rate),
    Form(
        "SGD",
        Nesterov,
        _SGD,
        {"momentum_buffer": "velocity"},
        _over_rate,
        refused={"momentum": 0.0},
        extra={"nesterov": True},
    ),
    Form("RMSprop", RMSProp, _RMSPROP, {"square_avg": "root"}, _square),
)
"""The table. A torch optimizer's first row says which rule it becomes; a rule's first row that loses nothing, which
optimizer."""

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


def rule_of(optimizer: type[torch.optim.Optimizer], group: Mapping[str, Any]) -> Rule:
    """Make the rule that computes what a torch optimizer computes for a param group.

    Raises:
        InvalidArgument: an optimizer or an option that no rule reproduces; names it.
    """
    import torch

    decoupled = optimizer is torch.optim.Adam and group.get("decoupled_weight_decay")
    form = form_named(torch.optim.AdamW if decoupled else optimizer)
    if group.get("differentiable", False):
        raise InvalidArgument("cannot be reproduced", field="differentiable", fix="leave it False")
    if "betas" in group:
        group = {**group, **dict(zip(("beta1", "beta2"), group["betas"], strict=True))}
    constants: dict[str, Any] = {f.name: _COMPUTED[f.name] for f in fields(form.rule) if f.name in _COMPUTED}
    return form.rule(**constants, **{name: group[option] for option, name in form.constants.items()})


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
    """Find the torch optimizer that goes on where these rules of one class stopped. Each becomes a param group.

    Raises:
        InvalidArgument: torch has no such optimizer.
    """
    forms = [form for form in FORMS if all(type(rule) is form.rule for rule in rules)]
    name, lacking = type(rules[0]).__name__, set()
    for form in forms:
        lost = {constant: x for rule in rules for constant, x in form.lost(rule).items()}
        if lost.keys() <= _NOTES.keys():
            return form
        lacking |= {f"{constant}={x}" for constant, x in lost.items() if constant not in _NOTES}
    wanted = f" with {' and '.join(sorted(lacking))}" if lacking else ""
    raise InvalidArgument(
        f"torch has no {name}{wanted}", field="rule", fix="export the model alone (--model-only)"
    )
