"""A checkpoint as torch's own state_dicts, so that training can go on in plain torch."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adamserve import optim
from adamserve.checkpoint import cuts
from adamserve.checkpoint.folder import verify
from adamserve.optim import torch_map


def export_torch(folder: Path, out: Path, *, model_only: bool = False) -> list[str]:
    """Write {"model", "optimizer", "optimizer_class", "notes"}, which torch.load(weights_only=True) reads.

    "model" is a state_dict; "optimizer" is what `getattr(torch.optim, optimizer_class)` over the model's parameters
    takes in `load_state_dict`. It has a param group for each rule of the job, with the names of the parameters in
    "param_names"; most jobs have one rule, and one group with all tensors in the job's order. For Nesterov the model
    holds the look-ahead point, which is what torch calls the parameter. Rates and other constants are those that each
    tensor's last push brought, from schedulers or by group, and otherwise the rule's.

    Args:
        folder: a checkpoint; it is verified first.
        out: file to write.
        model_only: leave the optimizer out.

    Returns:
        Notes on what torch does otherwise, if anything.

    Raises:
        InvalidArgument: torch has no such rule, and `model_only` is not set.
        CheckpointError: the checkpoint does not verify.
    """
    manifest = verify(folder)
    loaded = cuts.load_tensors(folder, manifest)
    tensors = {
        spec.name: {slot: torch.from_numpy(np.array(arrays[spec.name])) for slot, arrays in loaded.items()}
        for spec in manifest.config.tensors
    }
    model = {name: arrays.pop("w") for name, arrays in tensors.items()}
    document: dict[str, Any] = {"model": model, "notes": []}
    if not model_only:
        common, others = optim.rules_of(manifest.config.rule, manifest.config.tensor_rules)
        given = cuts.last_constants(folder, manifest)
        rules = {name: optim.with_constants(others.get(name, common), given.get(name, {})) for name in model}
        counts = cuts.update_counts(folder, manifest)
        updates = {name: max(pieces, default=0) for name, pieces in counts.items()}
        document |= _optimizer(rules, model, tensors, updates)
        model |= {name: rules[name].lookahead(w, tensors[name]) for name, w in model.items()}
        if any(len(set(pieces)) > 1 for pieces in counts.values()):
            document["notes"].append("some tensors' pieces differ in update count; the largest is exported")
    temporary = out.with_name(out.name + ".tmp")
    torch.save(document, temporary)
    temporary.replace(out)
    return list(document["notes"])


def _optimizer(
    rules: Mapping[str, optim.Rule],
    model: Mapping[str, Tensor],
    slots: Mapping[str, Mapping[str, Tensor]],
    updates: Mapping[str, int],
) -> dict[str, Any]:
    """The optimizer's part of the document; all arguments are by tensor."""
    members: dict[optim.Rule, list[str]] = {}
    for name, rule in rules.items():
        members.setdefault(rule, []).append(name)
    form = torch_map.form_of(list(members))
    skeleton: Any = getattr(torch.optim, form.optimizer)(
        [
            {"params": [(name, torch.nn.Parameter(model[name])) for name in names], **form.options(rule)}
            for rule, names in members.items()
        ]
    )
    states = [form.state(rules[name], slots[name], updates[name]) for name in chain(*members.values())]
    return {
        "optimizer_class": form.optimizer,
        "optimizer": {
            "state": {i: state for i, state in enumerate(states) if state},
            "param_groups": skeleton.state_dict()["param_groups"],
        },
        "notes": list(dict.fromkeys(note for rule in members for note in form.notes(rule))),
    }
