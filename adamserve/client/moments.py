"""The moments in a torch optimizer's state, as the slots of a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adamserve import optim
from adamserve.client.parameters import Group, Parameters
from adamserve.optim.torch_map import Form
from adamserve.values import Array


@dataclass(frozen=True)
class Moments:
    """By slot and tensor the values, and by tensor how many updates it has had."""

    slots: dict[str, dict[str, Array]] = field(default_factory=dict)
    updates: dict[str, int] = field(default_factory=dict)

    @property
    def fresh(self) -> bool:
        """Whether these are what a job begins with."""
        return not any(self.updates.values()) and not any(
            values.any() for tensors in self.slots.values() for values in tensors.values()
        )


def moments_of(
    form: Form,
    state: Mapping[str, Any],
    groups: Sequence[Group],
    parameters: Parameters,
    rules: Mapping[str, optim.Rule],
) -> Moments:
    """Read a state_dict of the optimizer that `form` is of; `groups` are those that it is loaded into.

    Raises:
        InvalidArgument: it is of another optimizer, or of other groups.
    """
    moments = Moments()
    numbers = [i for group in state["param_groups"] for i in group["params"]]
    trained = [parameter for group in groups for parameter in group["params"]]
    for number, parameter in zip(numbers, trained, strict=True):
        name = parameters.names[id(parameter)]
        if name in parameters.trained:
            own = state["state"].get(number, {})
            slots, moments.updates[name] = form.slots_of(rules[name], parameter, own)
            for slot, values in slots.items():
                array = values.detach().cpu().contiguous().numpy()
                moments.slots.setdefault(slot, {})[name] = array
    return moments
