"""Rules by name, and to and from plain dictionaries (JSON, configuration files, the wire).

A rule comes from this package, from `register`, or from any installed package that offers one by an entry point:

    [project.entry-points."adamserve.rules"]
    Lion = "my_package.lion:Lion"

The dictionary of a rule carries its name only, so a package has to be installed wherever shards run.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, fields, replace
from inspect import isabstract
from typing import TYPE_CHECKING, Any, TypeVar

from adamserve.errors import AdamServeError, Conflict, InvalidArgument
from adamserve.optim.adam import Adam, AdaMax, LpAdam
from adamserve.optim.base import Rule
from adamserve.optim.momentum import SGD, Nesterov, TorchSGD
from adamserve.optim.rmsprop import AdaGrad, NesterovRMSProp, RMSProp, TorchRMSprop

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

ENTRY_POINTS = "adamserve.rules"
"""The group of entry points that offer rules. An entry point has the name of the class."""

RuleClass = TypeVar("RuleClass", bound=type[Rule])


class Registry(Mapping[str, type[Rule]]):
    """Rules by class name.

    Iterating names every rule, also those that packages offer. An offered one is loaded when it is first looked up.
    Thread-safe.
    """

    def __init__(self, rules: Iterable[type[Rule]]) -> None:
        self._rules: dict[str, type[Rule]] = {}
        for rule in rules:
            self.register(rule)

    def register(self, rule: RuleClass) -> RuleClass:
        """Add a rule, which is then found by its name, and return it. Adding it again does nothing.

        Raises:
            InvalidArgument: it is not a final, frozen dataclass that derives from `Rule`, defines its abstract methods,
                and has a default for every option.
            Conflict: another rule has that name, spelled in any way that `by_name` takes.
        """
        _check(rule)
        present = self._rules.setdefault(_plain(rule.__name__), rule)
        if present is not rule:
            raise Conflict(
                f"{present.__module__}.{present.__qualname__} has the name {rule.__name__} already",
                field="rule",
                fix="rename the new one",
            )
        return rule

    def find(self, name: str) -> type[Rule] | None:
        """Find a rule by its name, in any case and with or without hyphens and underscores.

        Raises:
            InvalidArgument: a package offers the rule, and it cannot be loaded; names the package.
        """
        return self._rules.get(_plain(name)) or self._discover(_plain(name))

    def __getitem__(self, name: str) -> type[Rule]:
        rule = self.find(name)
        if rule is None or rule.__name__ != name:
            raise KeyError(name)
        return rule

    def __iter__(self) -> Iterator[str]:
        yield from [rule.__name__ for rule in self._rules.values()]
        yield from sorted({point.name for point in _offered() if _plain(point.name) not in self._rules})

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def _discover(self, plain: str) -> type[Rule] | None:
        """Load and register the rule of that name that a package offers, if one does."""
        points = [point for point in _offered() if _plain(point.name) == plain]
        if not points:
            return None
        packages = " and ".join(sorted(point.dist.name if point.dist else point.module for point in points))
        try:
            if len(points) > 1:
                raise Conflict(f"they all offer {points[0].name}")
            rule: type[Rule] = points[0].load()
            if getattr(rule, "__name__", "") != points[0].name:
                raise InvalidArgument(f"{points[0].name} = {points[0].value} names another class")
            return self.register(rule)
        except Exception as error:  # whatever another's module does when it is imported
            told = error.problem if isinstance(error, AdamServeError) else f"{type(error).__name__}: {error}"
            raise InvalidArgument(
                f"cannot load {points[0].name} of {packages}: {told}",
                field="rule",
                fix="repair or uninstall the package",
            ) from error


def _check(rule: Any) -> None:
    if not (isinstance(rule, type) and issubclass(rule, Rule)):
        raise InvalidArgument(f"{rule!r} is no rule", field="rule", fix="derive it from adamserve.optim.Rule")
    problem = ""
    if isabstract(rule):
        problem = f"lacks {', '.join(sorted(rule.__abstractmethods__))}"
    elif "__dataclass_params__" not in vars(rule):
        problem = "is no dataclass of its own"
    elif "__final__" not in vars(rule):
        problem = "is not final"
    elif bare := [f.name for f in fields(rule) if f.default is MISSING and f.default_factory is MISSING]:
        problem = f"has no default for {', '.join(bare)}"
    if problem:
        raise InvalidArgument(
            f"{rule.__name__} {problem}",
            field="rule",
            fix="write @final @dataclass(frozen=True, kw_only=True, slots=True), and a default for every option",
        )


def _plain(name: str) -> str:
    """A name without what `by_name` overlooks."""
    return name.lower().replace("-", "").replace("_", "")


def _offered() -> Iterable[EntryPoint]:
    from importlib.metadata import entry_points

    return entry_points(group=ENTRY_POINTS)


RULES = Registry(
    [SGD, Nesterov, AdaGrad, RMSProp, NesterovRMSProp, Adam, LpAdam, AdaMax, TorchSGD, TorchRMSprop]
)
"""Every rule by its class name."""

register = RULES.register


def by_name(name: str, **options: Any) -> Rule:
    """Make a rule from its name, in any case and with or without hyphens and underscores ("nesterov-rmsprop").

    Raises:
        InvalidArgument: no such rule, or it cannot be loaded (field "rule"), no such option (field: its name), or a bad
            value.
    """
    rule = RULES.find(name) if isinstance(name, str) else None
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


def with_constants(rule: Rule, constants: Mapping[str, float]) -> Rule:
    """A job's rule with other constants, for one update: numbers and flags, so long as it keeps the same slots.

    Raises:
        InvalidArgument: no such constant, a value out of its range, or one that needs other slots; names it.
    """
    known = {f.name: getattr(rule, f.name) for f in fields(rule)}
    for name in constants:
        if not isinstance(known.get(name), bool | float):
            numbers = [name for name, x in known.items() if isinstance(x, bool | float)]
            raise InvalidArgument(
                f"is no constant of {type(rule).__name__} that a push may bring",
                field=name,
                fix=f"one of {', '.join(numbers)}",
            )
    given: dict[str, Any] = {
        name: bool(x) if isinstance(known[name], bool) else x for name, x in constants.items()
    }
    changed = replace(rule, **given)
    if changed.slot_names != rule.slot_names:
        raise InvalidArgument(
            f"the job keeps the slots {', '.join(rule.slot_names) or 'none'},"
            f" this would need {', '.join(changed.slot_names) or 'none'}",
            field=", ".join(constants),
            fix="make a new job",
        )
    return changed


def changes(rule: Rule, asked: Rule) -> dict[str, float]:
    """The constants, apart from the rate, that `with_constants` makes a job's rule into another one with.

    Raises:
        InvalidArgument: none do: it is of another class, or differs in what no push may bring; names it.
    """
    if type(asked) is not type(rule):
        raise InvalidArgument(f"{type(asked).__name__} in a job of {type(rule).__name__}", field="rule")
    pairs = {f.name: (getattr(rule, f.name), getattr(asked, f.name)) for f in fields(rule) if f.name != "lr"}
    changed = {
        name: float(now) for name, (was, now) in pairs.items() if now != was and isinstance(now, bool | float)
    }
    made = with_constants(rule, changed)
    for name, (was, now) in pairs.items():
        if getattr(made, name) != now:
            raise InvalidArgument(
                f"is {was!r} in the job, not {now!r}", field=name, fix="make a new job for it"
            )
    return changed


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
