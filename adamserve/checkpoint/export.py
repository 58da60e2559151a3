"""A checkpoint as torch's own state_dicts, so that training can go on in plain torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adamserve import checkpoint, optim
from adamserve.errors import InvalidArgument
from adamserve.values import Array

Tensors = Mapping[str, Mapping[str, Array]]


def export_torch(folder: Path, out: Path, *, model_only: bool = False) -> list[str]:
    """Write {"model", "optimizer", "optimizer_class", "notes"}, which torch.load(weights_only=True) reads.

    "model" is a state_dict; "optimizer" is what `getattr(torch.optim, optimizer_class)` over the model's
    parameters, in the job's order, takes in `load_state_dict`. For Nesterov the model holds the look-ahead
    point, which is what torch calls the parameter.

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
    manifest = checkpoint.verify(folder)
    rule = optim.from_dict(manifest.rule)
    tensors = checkpoint.load_tensors(folder, manifest)
    names = [spec.name for spec in manifest.tensors]
    document: dict[str, Any] = {"notes": []}
    if not model_only:
        counts = checkpoint.update_counts(folder, manifest)
        steps = {name: max(counts[name], default=0) for name in names}
        name, options, state = _optimizer(rule, tensors, steps)
        notes = _notes(rule)
        if any(len(set(found)) > 1 for found in counts.values()):
            notes.append("some tensors' pieces differ in update count; the largest is exported")
        parameters = [torch.nn.Parameter(torch.from_numpy(tensors["w"][key].copy())) for key in names]
        skeleton: Any = getattr(torch.optim, name)(parameters, **options)
        groups = skeleton.state_dict()["param_groups"]
        document |= {
            "optimizer_class": name,
            "optimizer": {
                "state": {i: state[key] for i, key in enumerate(names) if steps[key]},
                "param_groups": groups,
            },
            "notes": notes,
        }
    point = dict(tensors["w"])
    if isinstance(rule, optim.Nesterov) and not model_only:
        point = {key: w + rule.momentum * tensors["velocity"][key] for key, w in point.items()}
    document["model"] = {key: torch.from_numpy(np.array(value)) for key, value in point.items()}
    temporary = out.with_name(out.name + ".tmp")
    torch.save(document, temporary)
    temporary.replace(out)
    return list(document["notes"])


def _optimizer(
    rule: optim.Rule, tensors: Tensors, steps: Mapping[str, int]
) -> tuple[str, dict[str, Any], dict[str, dict[str, torch.Tensor]]]:
    """torch's class, its options, and the state of each parameter."""

    def state(**slots: str | tuple[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
        """torch's key -> our slot, or (slot, function of its array)."""
        made: dict[str, dict[str, torch.Tensor]] = {}
        for name, step in steps.items():
            made[name] = {"step": torch.tensor(float(step))}
            for key, source in slots.items():
                slot, change = source if isinstance(source, tuple) else (source, np.copy)
                made[name][key] = torch.from_numpy(np.array(change(tensors[slot][name])))
        return made

    common: dict[str, Any] = {"lr": rule.lr, "weight_decay": rule.weight_decay or rule.l2}
    if rule.weight_decay and not isinstance(rule, optim.Adam):
        raise InvalidArgument(
            f"torch has no {type(rule).__name__} with decoupled weight decay",
            field="rule",
            fix="use --model-only",
        )
    match rule:
        case optim.Adam():
            options = common | {"betas": (rule.beta1, rule.beta2), "eps": rule.eps, "amsgrad": rule.amsgrad}
            extra = {"max_exp_avg_sq": rule.slot_names[2]} if rule.amsgrad else {}
            made = state(exp_avg="m", exp_avg_sq="v", **extra)
            return ("AdamW" if rule.weight_decay else "Adam"), options, made
        case optim.AdaMax():
            options = common | {"betas": (rule.beta1, rule.beta2), "eps": rule.eps}
            return "Adamax", options, state(exp_avg="m", exp_inf="u")
        case optim.AdaGrad():
            return "Adagrad", common | {"eps": rule.eps}, state(sum=(rule.slot_names[0], np.square))
        case optim.RMSProp():
            options = common | {"alpha": rule.decay, "eps": rule.eps}
            return "RMSprop", options, state(square_avg=(rule.slot_names[0], np.square))
        case optim.SGD() | optim.Nesterov():
            options = common | {"momentum": rule.momentum, "nesterov": isinstance(rule, optim.Nesterov)}
            slots = {"momentum_buffer": ("velocity", lambda v: v / -rule.lr)} if rule.slot_names else {}
            return "SGD", options, state(**slots)
        case _:
            raise InvalidArgument(f"torch has no {type(rule).__name__}", field="rule", fix="use --model-only")


def _notes(rule: optim.Rule) -> list[str]:
    notes = []
    eps: float = getattr(rule, "eps", 0.0)
    if eps > 0.0 and getattr(rule, "eps_inside_sqrt", False):
        notes.append(
            f"torch adds eps={eps:g} outside the root, this job inside: torch's is a slightly different rule"
            " (eps_inside_sqrt=False would match)"
        )
    if rule.lr_schedule != "constant":
        notes.append(f"the rate's schedule {rule.lr_schedule} is not exported: use torch.optim.lr_scheduler")
    for name, plain in (("bias_correction", True), ("beta1_decay", 1.0)):
        if getattr(rule, name, plain) != plain:
            notes.append(f"torch has no {name}={getattr(rule, name)}: its rule is another one")
    return notes
