"""Rules from outside the package: registered by hand, or offered by an installed package."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import pytest

from adamserve import optim
from adamserve.errors import Conflict, InvalidArgument
from adamserve.optim.arith import Ops, Value, Values
from adamserve.optim.registry import Registry

ROOT = Path(__file__).parents[2]


class Plain(optim.Rule):
    """w = w - rate g, for the classes below."""

    @property
    def slot_names(self) -> tuple[str, ...]:
        return ()

    def _constants(self, t: int, rate: float) -> dict[str, float]:
        return {"rate": rate}

    def _fades(self, c: Any) -> dict[str, float]:
        return {}

    def _moves(self) -> tuple[float, float]:
        return 0.0, 0.0

    def _update(self, op: Ops, g: Value, s: Values, c: Values) -> tuple[Value, dict[str, Value]]:
        return -(c["rate"] * g), {}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Descent(Plain):
    """Gradient descent."""

    lr: float = 0.1


def test_a_registered_rule_is_found_by_its_name() -> None:
    rules = Registry([optim.Adam])
    assert rules.register(Descent) is Descent
    assert rules.register(Descent) is Descent, "again changes nothing"
    assert dict(rules.items()) == {"Adam": optim.Adam, "Descent": Descent}
    assert rules.find("des-cent") is Descent
    assert (rules.get("Descent"), rules.get("descent"), rules.get("Ascent")) == (Descent, None, None)


def test_a_name_that_is_taken_is_refused() -> None:
    @final
    @dataclass(frozen=True, kw_only=True, slots=True)
    class adam(Plain):
        """Another Adam."""

        lr: float = 0.1

    with pytest.raises(Conflict, match=r"rule: adamserve.optim.adam.Adam has the name adam already \(rename"):
        optim.register(adam)
    assert optim.by_name("adam") == optim.Adam()


@dataclass(frozen=True, kw_only=True, slots=True)
class Open(Plain):
    """It may be derived from."""

    lr: float = 0.1


@final
class Bare(Plain):
    """Without the decorator."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Required(Plain):
    """An option without a default."""

    lr: float = 0.1
    power: float


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Half(optim.Rule):  # type: ignore[misc]  # that is the point
    """Abstract methods are missing."""

    lr: float = 0.1


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (Open, "Open is not final"),
        (Bare, "Bare is no dataclass of its own"),
        (Required, "Required has no default for power"),
        (Half, "Half lacks _constants, _fades, _moves, _update, slot_names"),
        (dict, "<class 'dict'> is no rule"),
        (optim.Adam(), "is no rule"),
    ],
)
def test_what_is_no_rule_is_refused(rule: Any, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says) as caught:
        optim.register(rule)
    assert caught.value.field == "rule"
    assert caught.value.fix


def offer(folder: Path, package: str, points: str) -> None:
    """Install a package that has nothing but entry points."""
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[adamserve.rules]\n{points}\n")


@pytest.mark.parametrize(
    ("points", "says"),
    [
        (
            "Broken = no_such_module:Broken",
            "cannot load Broken of torn: ModuleNotFoundError: No module named",
        ),
        (
            "Broken = adamserve.optim:Adam",
            "cannot load Broken of torn: Broken = adamserve.optim:Adam names another",
        ),
        ("path = os:path", "cannot load path of torn: path = os:path names another class"),
        ("Open = tests.optim.test_registry:Open", "cannot load Open of torn: Open is not final"),
    ],
)
def test_a_package_with_a_broken_rule_is_named(
    points: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(tmp_path, "torn", points)
    monkeypatch.syspath_prepend(tmp_path)
    name = points.partition(" ")[0]
    assert name in list(optim.RULES), "named, and not loaded"
    with pytest.raises(InvalidArgument, match=f"rule: {says}.*repair or uninstall the package"):
        optim.by_name(name)
    assert optim.by_name("adam") == optim.Adam(), "the others are there"


def test_two_packages_with_one_name_are_both_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("one", "other"):
        offer(tmp_path, package, "Descent = tests.optim.test_registry:Descent")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InvalidArgument, match="of one and other: they all offer Descent"):
        optim.by_name("Descent")


def test_an_unknown_rule_names_the_known_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(tmp_path, "more", "Offered = more:Offered")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        InvalidArgument, match=r"there is no rule 'Adm' \(one of SGD, .*, AdaMax, .*, Offered\)"
    ):
        optim.from_dict({"rule": "Adm"})


CHILD = """
import json, os, sys
import numpy as np, torch
from adamserve import optim
from adamserve.optim.engine import apply
from adamserve.optim.rows import Rows

assert "Lion" in list(optim.RULES) and "adamserve_example" not in sys.modules, "named, and not loaded"
rule = optim.from_dict(json.loads(json.dumps({"rule": "Lion", "lr": 0.125})))
assert type(rule) is optim.RULES["Lion"] and optim.by_name("lion", lr=0.125) == rule
assert optim.from_dict(json.loads(json.dumps(optim.to_dict(rule)))) == rule

def steps(w, gradients):
    slots = rule.init(w)
    for t, g in enumerate(gradients, start=1):
        rule.step_(w, g, slots, t)
    return torch.cat([w.view(-1), slots["m"].view(-1)])

given = [torch.sin((7 + k) * torch.linspace(-1, 1, 70_001)) for k in range(5)]
assert torch.equal(steps(torch.zeros(70_001), given[:1])[:70_001], -0.125 * given[0].sign())

index = [k % 7 for k in range(39)]
rows = [torch.full((1, 4), 20.0 - k) for k in range(39)]
sparse = [torch.zeros(50, 4).index_copy(0, torch.tensor([k]), g) for k, g in zip(index, rows)]
dense = steps(torch.ones(50, 4), sparse)

results = []
for executor in ("compiled", "eager"):
    os.environ["ADAMSERVE_KERNELS"] = executor
    apply.forget()
    assert optim.prepare(rule, torch.float32).executor == executor
    results.append(steps(torch.ones(70_001), given))
    table = {"w": torch.ones(50, 4), "m": torch.zeros(50, 4)}
    by_rows = Rows(rule, table, 0)
    for k, g in zip(index, rows):
        by_rows.step_(np.array([k]), g, lr=None, lr_scale=1.0)
    by_rows.catch_up()
    torch.testing.assert_close(torch.cat([x.view(-1) for x in table.values()]), dense, rtol=1e-5, atol=1e-6)
assert torch.equal(*results)
print("done")
"""


def test_an_installed_package_adds_a_rule(thirdparty: Path) -> None:
    """Its rule has the same bits on both executors, by name alone in a process that has not heard of it."""
    env = {**os.environ, "PYTHONPATH": f"{thirdparty}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD], env=env, capture_output=True, text=True, timeout=100, check=False
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    with pytest.raises(InvalidArgument, match="rule: there is no rule 'lion'"):
        optim.by_name("lion")  # in this process it is not installed
