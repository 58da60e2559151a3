"""Tasks by name: what installed packages offer to the command line as entry points of `adamserve.tasks`."""

from __future__ import annotations

import difflib
import inspect
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from adamserve.errors import InvalidArgument

if TYPE_CHECKING:
    from adamserve.train.task import Recipe

GROUP = "adamserve.tasks"
"""An entry point of this group names a callable that takes a task's options by keyword and returns its `Recipe`."""


def recipe(name: str, **options: Any) -> Recipe:
    """Check the options of the task of that name.

    Raises:
        InvalidArgument: no installed package has such a task, or the task has no such option, or refuses its value.
    """
    known = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        choice = f"choose {' or '.join(sorted(known))}" if known else "install a package that has one"
        raise InvalidArgument(f"there is no network {name!r}", field="network", fix=hint + choice)
    make = known[name].load()
    taken = inspect.signature(make).parameters
    for option in options:
        if option not in taken:
            raise InvalidArgument(f"{name} has no such option", field=option, fix="leave it out")
    made: Recipe = make(**options)
    return made
