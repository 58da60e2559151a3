"""Rules by name, and to and from plain dictionaries (JSON, configuration files, the wire)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from types import MappingProxyType
from typing import Any

from adamserve.errors import InvalidArgument
from adamserve.optim.adagrad import AdaGrad
from adamserve.optim.adam import Adam
from adamserve.optim.adamax import AdaMax
from adamserve.optim.base import Rule
from adamserve.optim.lp_adam import LpAdam
from adamserve.optim.momentum import SGD, Nesterov
from adamserve.optim.rmsprop import NesterovRMSProp, RMSProp
from adamserve.optim.torch_forms import TorchRMSprop, TorchSGD

RULES: Mapping[str, type[Rule]] = MappingProxyType(
    {
        r.__name__: r
        for r in (
            SGD,
            Nesterov,
            AdaGrad,
            RMSProp,
            NesterovRMSProp,
            Adam,
            LpAdam,
            AdaMax,
            TorchSGD,
            TorchRMSprop,
        )
    }
)
"""Every rule by its class name."""


def by_name(name: str, **options: Any) -> Rule:
    """Make a rule from its name, in any case and with or without hyphens and underscores ("nesterov-rmsprop").

    Raises:
        InvalidArgument: no such rule (field "rule"), no such option (field: its name), or a bad value.
    """
    wanted = name.lower().replace("-", "").replace("_", "") if isinstance(name, str) else None
    rule = next((r for known, r in RULES.items() if known.lower() == wanted), None)
    if rule is None:
        raise InvalidArgument(f"there is no rule {name!r}", field="rule", fix=f"one of {', '.join(RULES)}")
    valid = [f.name for f in fields(rule)]
    for option in options:
        if option not in valid:
            raise InvalidArgument(
                f"is no option of {rule.__name__}", field=str(option), fix=f"one of {', '.join(valid)}"
            )
    return rule(**options)


def to_dict(rule: Rule) -> dict[str, Any]:
    """Return a rule as a JSON-able dictionary: {"rule": "Adam", "lr": 0.001, ...}, every option written out."""
    plain = {name: list(x) if isinstance(x, tuple) else x for name, x in asdict(rule).items()}
    return {"rule": type(rule).__name__, **plain}


def from_dict(d: Mapping[str, Any]) -> Rule:
    """Make the rule that `to_dict` described; options left out take their defaults.

    Raises:
        InvalidArgument: "rule" is missing or unknown, or an option is.
    """
    if not isinstance(d, Mapping) or "rule" not in d:
        raise InvalidArgument("is missing", field="rule", fix=f"one of {', '.join(RULES)}")
    return by_name(d["rule"], **{str(k): v for k, v in d.items() if k != "rule"})


def rules_of(
    rule: Mapping[str, Any], by_tensor: Mapping[str, Mapping[str, Any]]
) -> tuple[Rule, dict[str, Rule]]:
    """A job's rule, and the rules of the tensors that have another.

    Raises:
        InvalidArgument: as `from_dict`; or a tensor's rule is of another class, keeps other slots, or takes its
            gradients at a look-ahead point of its own.
    """
    common = from_dict(rule)
    others = {name: from_dict(config) for name, config in by_tensor.items()}
    for name, other in others.items():
        if type(other) is not type(common) or other.slot_names != common.slot_names:
            raise InvalidArgument(
                f"{type(other).__name__} with slots {other.slot_names} beside {type(common).__name__} with"
                f" {common.slot_names}",
                field=name,
                fix="give all tensors of a job one kind of rule; a job each for several kinds",
            )
        if common.has_lookahead:
            raise InvalidArgument(
                f"{type(common).__name__} takes one rule for the whole job", field=name, fix="or use SGD"
            )
    return common, others
