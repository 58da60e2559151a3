"""The one table of rules that the contract and oracle tests run over."""

from __future__ import annotations

from adamserve.optim import (
    SGD, AdaGrad, Adam, AdaMax, LpAdam, Nesterov, NesterovRMSProp, RMSProp, Rule, TorchRMSprop, TorchSGD,
)  # fmt: skip

RULES_UNDER_TEST: list[Rule] = [
    SGD(lr=0.01, momentum=0.0),
    SGD(lr=0.01, momentum=0.9, l2=0.01),
    SGD(lr=0.01, momentum=0.5, weight_decay=0.1, lr_schedule="inverse_sqrt"),
    Nesterov(lr=0.01, momentum=0.9),
    Nesterov(lr=0.01, momentum=0.9, l2=0.01),
    AdaGrad(lr=0.1),
    AdaGrad(lr=0.1, eps=1e-8),
    AdaGrad(lr=0.1, eps=1e-10, eps_inside_sqrt=False, weight_decay=0.1, lr_decay=0.01),
    RMSProp(lr=0.01),
    RMSProp(lr=0.01, decay=0.99, eps=1e-6, l2=0.01),
    RMSProp(lr=0.01, eps=1e-8, eps_inside_sqrt=False),
    NesterovRMSProp(lr=0.01, momentum=0.9),
    NesterovRMSProp(lr=0.01, momentum=0.5, decay=0.99, eps=1e-8, l2=0.01),
    Adam(lr=0.01),
    Adam(lr=0.01, eps_inside_sqrt=False),
    Adam(lr=0.01, bias_correction=False),
    Adam(lr=0.01, beta1_decay=0.99, lr_schedule="inverse_sqrt"),
    Adam(lr=0.01, amsgrad=True, weight_decay=0.1, l2=0.01),
    Adam(lr=0.001, beta2=1.0),
    Adam(lr=0.01, beta1=0.0),
    LpAdam(lr=0.01, p=1),
    LpAdam(lr=0.01, p=2),
    LpAdam(lr=0.01, p=3),
    LpAdam(lr=0.01, p=3.5, eps=1e-8),
    LpAdam(lr=0.01, p=100, bias_correction=False),
    AdaMax(lr=0.01),
    AdaMax(lr=0.01, eps=1e-8, weight_decay=0.1),
    TorchSGD(lr=0.01, l2=0.01),
    TorchSGD(lr=0.01, momentum=0.9, dampening=0.5),
    TorchSGD(lr=0.01, momentum=0.9, nesterov=True, l2=0.01, lr_decay=0.001),
    TorchRMSprop(lr=0.01),
    TorchRMSprop(lr=0.01, decay=0.9, momentum=0.9, l2=0.01),
    TorchRMSprop(lr=0.01, centered=True, weight_decay=0.1),
    SGD(lr=0.01, momentum=0.9, box=(-0.5, 0.25)),
    Nesterov(lr=0.01, momentum=0.9, box=(-0.5, 0.25)),
    Adam(lr=0.01, box=(-0.5, 0.25)),
    Adam(lr=0.01, box=(0.0625, 0.25), weight_decay=0.1),
]
