"""The parameters that an optimizer trains: what they are called, where they lie, and what their owner did to them."""

from __future__ import annotations

import ctypes
import gc
import sys
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adamserve.errors import InvalidArgument
from adamserve.values import Array
from adamserve.wire import codec

Group = dict[str, Any]
"""One of an optimizer's `param_groups`."""


def warn(text: str) -> None:
    """Warn of what the nearest caller outside the package does."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).startswith("adamserve."):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)


class Parameters:
    """The parameters that a job trains, by name, as they were left in the model.

    Those that need no gradient stay with the model, whatever they hold. No view of a parameter's memory is kept: its
    owner may give it another at any time.

    Args:
        model: gives the names; without it they come with the groups, or from the module that has the parameters.

    Attributes:
        names: by id, those of all parameters.
        trained: by name, those that the job holds.
    """

    def __init__(self, groups: Sequence[Group], model: nn.Module | None) -> None:
        named = _named(groups, model)
        _check_names(named)
        self.names = {id(parameter): name for name, parameter in named}
        self.trained = {name: parameter for name, parameter in named if parameter.requires_grad}
        for name, parameter in self.trained.items():
            if parameter.dtype not in (torch.float32, torch.float64):
                raise InvalidArgument(
                    f"is a {parameter.dtype} parameter",
                    field=name,
                    fix="keep float32 parameters, and use autocast",
                )
        _check_apart(self.trained)
        self._hosts: dict[str, Array] = {}
        self._left: dict[str, int | Tensor] = {}

    def by_group(self, groups: Iterable[Group]) -> Iterable[tuple[Group, str, Tensor]]:
        """Each trained parameter with its group and name; refuses a gradient of any other."""
        for group in groups:
            for parameter in group["params"]:
                name = self.names.get(id(parameter), "param_groups")
                if name in self.trained:
                    yield group, name, parameter
                elif parameter.grad is not None:
                    raise InvalidArgument(
                        "has a gradient, but needed none, or was elsewhere, when the optimizer was made",
                        field=name,
                        fix="make a RemoteOptimizer with a new job",
                    )

    def memory(self) -> dict[str, Array]:
        """Memory to pull into, by name: a parameter's own, where it lies on the CPU in one run."""
        return {name: self._memory(name, parameter) for name, parameter in self.trained.items()}

    def take(self, memory: Mapping[str, Array]) -> None:
        """Note what a pull has written, and bring it into parameters whose own memory could not be pulled into."""
        for name, parameter in self.trained.items():
            host = self._hosts.get(name)
            if host is not None and memory[name] is host:
                parameter.data.copy_(torch.from_numpy(host))
            self._left[name] = _left(parameter)
        # What autograd has saved of them is void, as after a local step.
        torch.autograd.graph.increment_version(list(self.trained.values()))

    def forget(self) -> None:
        """After an error, which may have left anything: nothing counts as changed until the next pull."""
        self._left.clear()

    def changed(self) -> dict[str, Array]:
        """Those whose values are not what the last pull left, with copies of their values."""
        return {
            name: parameter.detach().cpu().contiguous().numpy().copy()
            for name, parameter in self.trained.items()
            if name in self._left and not _still(self._left[name], parameter)
        }

    def _memory(self, name: str, parameter: Tensor) -> Array:
        data = parameter.detach()
        if data.device.type == "cpu" and data.is_contiguous():
            self._hosts.pop(name, None)
            own: Array = data.numpy()
            return own
        host = self._hosts.get(name)
        if host is None or host.shape != data.shape:
            host = self._hosts[name] = data.to("cpu", copy=True).contiguous().numpy()
        return host


def _left(parameter: Tensor) -> int | Tensor:
    """What a parameter holds: a digest of it, or a copy of what is not in one run on the CPU."""
    data = parameter.detach()
    digest = _digest(data)
    return data.clone() if digest is None else digest


def _still(left: int | Tensor, parameter: Tensor) -> bool:
    data = parameter.detach()
    if isinstance(left, Tensor):
        alike = left.shape == data.shape and left.dtype == data.dtype
        return alike and torch.equal(left, data.to(left.device))
    return _digest(data.cpu().contiguous()) == left


def _digest(data: Tensor) -> int | None:
    """A number that changes when an element does; None for a tensor that is not in one run on the CPU."""
    if data.device.type != "cpu" or not data.is_contiguous():
        return None
    library = codec.library()
    if library is None:
        return zlib.crc32(data.numpy().data)
    digest = ctypes.c_uint64()
    library.digest_words(data.nbytes // 4, data.data_ptr(), ctypes.byref(digest))
    return digest.value


# ---- names


def _named(groups: Sequence[Group], model: nn.Module | None) -> list[tuple[str, Tensor]]:
    """Every parameter and its name."""
    parameters = [parameter for group in groups for parameter in group["params"]]
    places = [[f"group{g}.{i}" for i in range(len(group["params"]))] for g, group in enumerate(groups)]
    given = [n for group, here in zip(groups, places, strict=True) for n in group.get("param_names") or here]
    have_names = any(group.get("param_names") for group in groups)
    module = _owner(parameters) if model is None and not have_names else model
    if module is None:
        alike = len({(parameter.shape, parameter.dtype) for parameter in parameters}) < len(parameters)
        if alike and not have_names:
            warn(
                "the parameters have no names, only places (group0.0, group0.1, ...): a trainer that lists equal"
                " shapes in another order would exchange them. Give model=..., or named parameters"
            )
        return list(zip(given, parameters, strict=True))
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    for parameter in parameters:
        if id(parameter) not in names:
            raise InvalidArgument(
                f"has no parameter of shape {tuple(parameter.shape)} that the optimizer trains",
                field="model",
                fix="give the module whose parameters the optimizer was made with",
            )
    return [(names[id(parameter)], parameter) for parameter in parameters]


def _owner(parameters: Sequence[Tensor]) -> nn.Module | None:
    """The module that these are the parameters of: the one with the fewest others, without what is wrapped around it;
    None where there is none, or more than one."""
    wanted = {id(parameter) for parameter in parameters}
    having: list[tuple[int, nn.Module]] = []
    for thing in gc.get_objects():
        if issubclass(type(thing), nn.Module):
            own = {id(parameter) for parameter in thing.parameters()}
            if wanted <= own:
                having.append((len(own), thing))
    fewest = min((size for size, _ in having), default=0)
    modules = [module for size, module in having if size == fewest]
    inner = {id(child) for module in modules for child in module.modules() if child is not module}
    outer = [module for module in modules if id(module) not in inner]
    if len(outer) != 1:
        return None
    module = outer[0]
    while isinstance(inside := _inside(module), nn.Module):
        module = inside
    return module


def _inside(module: nn.Module) -> nn.Module | None:
    """What torch's own wrappers wrap: DistributedDataParallel, DataParallel, torch.compile."""
    parallel = isinstance(module, (nn.parallel.DistributedDataParallel, nn.DataParallel))
    return getattr(module, "module" if parallel else "_orig_mod", None)


# ---- checks


def _check_names(named: Sequence[tuple[str, Tensor]]) -> None:
    seen: dict[str, Tensor] = {}
    for name, parameter in named:
        if name in seen and seen[name] is parameter:
            raise InvalidArgument("is given twice", field=name, fix="give each parameter once")
        if name in seen:
            raise InvalidArgument(
                "is the name of two parameters", field=name, fix="give model=..., or names that differ"
            )
        seen[name] = parameter


def _check_apart(trained: Mapping[str, Tensor]) -> None:
    """Check that no two parameters share memory, and that no parameter's elements do."""
    last: dict[torch.device, tuple[int, str]] = {}
    for name, parameter in sorted(trained.items(), key=lambda item: item[1].data_ptr()):
        if not parameter.numel():
            continue
        data = parameter.detach()
        if torch._debug_has_internal_overlap(data) == 1:
            raise InvalidArgument(
                "has elements that share memory", field=name, fix="give it memory of its own"
            )
        reach = sum((size - 1) * stride for size, stride in zip(data.shape, data.stride(), strict=True))
        end, before = last.get(data.device, (0, ""))
        if data.data_ptr() < end:
            raise InvalidArgument(
                f"shares memory with {before}", field=name, fix="tie weights by using one parameter twice"
            )
        last[data.device] = (data.data_ptr() + (reach + 1) * data.element_size(), name)
