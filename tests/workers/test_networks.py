"""The paper's MLP: its size, its start, and that it learns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from adamserve.errors import InvalidArgument
from adamserve.train.loop import gradient
from adamserve.train.task import Part, initial_model
from workers import networks
from workers.data import Dataset, load
from workers.task import Batch, NetworkTask

X = np.zeros((2, 64), np.float32)
Y = np.arange(2, dtype=np.int64)
DIGITS = Dataset("shape of digits", X, Y, X, Y, classes=10)


def mlp(seed: int) -> nn.Module:
    """The MLP for digits as a run starts it."""
    return initial_model(NetworkTask(network="mlp", data=DIGITS), seed)


@pytest.mark.parametrize(
    ("name", "features", "parameters"),
    [
        ("mlp", 64, 1_076_010),
        ("mlp", 784, 1_796_010),
        ("vae", 64, 140_164),
        ("vae", 784, 860_884),
        ("logreg", 784, 7_850),
    ],
)
def test_a_network_has_so_many_parameters(name: str, features: int, parameters: int) -> None:
    model = networks.lookup(name).make(features, 10)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_the_auto_encoder_s_loss_is_the_negative_lower_bound() -> None:
    """Against the definition: E_q[log q(z|x) - log p(z) - log p(x|z)], by many draws and torch.distributions."""
    from torch import distributions

    torch.manual_seed(0)
    model = networks.VariationalAutoencoder(6, hidden=5, latent=2).double()
    x = torch.rand(3, 6, dtype=torch.float64)
    draws = 40_000
    with torch.no_grad():
        hidden = functional.softplus(model.encoder(x))
        posterior = distributions.Normal(model.mean(hidden), (0.5 * model.log_variance(hidden)).exp())
        z = posterior.sample((draws,))
        logits = model.output(functional.softplus(model.decoder(z)))
        p = logits.sigmoid()
        likelihood = (x * p.log() + (1 - x) * (1 - p).log()).sum(-1)
        prior = distributions.Normal(0.0, 1.0).log_prob(z).sum(-1)
        expected = (posterior.log_prob(z).sum(-1) - prior - likelihood).mean(0)
        found = torch.stack([model(x) for _ in range(2000)]).mean(0)
    # Two Monte Carlo means with standard deviations near 0.02 and 0.005.
    torch.testing.assert_close(found, expected, rtol=0, atol=0.1)


def test_the_penalty_is_in_the_loss_and_its_gradient() -> None:
    batch = Batch(torch.rand(4, 64), torch.arange(4))
    plain, penalised = networks.Logistic(64, 10), networks.Logistic(64, 10)
    losses = []
    for model, l2 in ((plain, 0.0), (penalised, 0.5)):
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(0.25)
        task = NetworkTask(network="logreg", data=DIGITS, l2=l2)
        losses.append(gradient(task, model, batch, seed=0))
    gap = losses[1] - losses[0]
    assert gap == pytest.approx(0.5 * 0.5 * 0.25**2 * 650, rel=1e-5)
    for a, b in zip(penalised.parameters(), plain.parameters(), strict=True):
        assert a.grad is not None
        assert b.grad is not None
        torch.testing.assert_close(a.grad - b.grad, torch.full_like(a, 0.5 * 0.25))


def test_a_penalty_that_a_network_has_not_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"l2: mlp on shape of digits has no penalty .*use -o l2="):
        NetworkTask(network="mlp", data=DIGITS, l2=0.1)


def test_the_mlp_s_tensors_have_names_for_people() -> None:
    shapes = {name: tuple(p.shape) for name, p in mlp(0).named_parameters()}
    assert shapes == {
        "hidden1.weight": (1000, 64),
        "hidden1.bias": (1000,),
        "hidden2.weight": (1000, 1000),
        "hidden2.bias": (1000,),
        "output.weight": (10, 1000),
        "output.bias": (10,),
    }


def test_logits_are_float32_by_class() -> None:
    logits = mlp(0)(torch.zeros(5, 64))
    assert (logits.shape, logits.dtype) == ((5, 10), torch.float32)


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_start_is_a_function_of_the_seed_alone() -> None:
    first = flat(mlp(3))
    torch.manual_seed(99)
    torch.testing.assert_close(flat(mlp(3)), first, rtol=0, atol=0)
    assert not torch.equal(flat(mlp(4)), first)


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    mlp(3)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_start_is_he_s() -> None:
    for name, parameter in mlp(0).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any()
        else:
            deviation = (2 / parameter.shape[1]) ** 0.5
            assert float(parameter.detach().std()) == pytest.approx(deviation, rel=0.03)


def test_dropout_is_on_in_training_only() -> None:
    model = networks.mlp(64, 10, hidden=50)
    x = torch.ones(1, 64)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("mpl", "did you mean mlp? choose mlp or cnn or logreg or vae"),
        ("resnet", "choose mlp or cnn or logreg or vae"),
        ("", "choose mlp or cnn or logreg or vae"),
    ],
)
def test_an_unknown_network_lists_the_known(name: str, fix: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        NetworkTask(network=name, data=DIGITS)
    assert (caught.value.field, caught.value.fix) == ("network", fix)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("features", 0),
        ("classes", 0),
        ("hidden", 0),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("dropout", float("nan")),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: Any) -> None:
    with pytest.raises(InvalidArgument) as caught:
        networks.mlp(**{"features": 4, "classes": 2, field: value})
    assert caught.value.field == field


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Two threads on a busy machine wait for each other at every layer: ten times slower."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def accuracies(data: Dataset, *, epochs: int, batch: int = 128, seed: int = 0) -> list[float]:
    """Test accuracy after each epoch of torch's Adam on one worker."""
    x, y, test_x, test_y = map(torch.from_numpy, (data.train_x, data.train_y, data.test_x, data.test_y))
    model = initial_model(NetworkTask(network="mlp", data=data), seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    part = Part(rank=0, workers=1, batch=batch, seed=seed)
    steps = part.steps_per_epoch(len(y))
    found = []
    for step in range(epochs * steps):
        chosen = torch.from_numpy(part.examples(len(y), step))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(part.random(step))
            loss = functional.cross_entropy(model.train()(x[chosen]), y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % steps == 0:
            with torch.no_grad():
                found.append(float((model.eval()(test_x).argmax(dim=1) == test_y).float().mean()))
    return found


@pytest.mark.usefixtures("one_thread")
def test_digits_are_learnt_in_ten_epochs() -> None:
    assert accuracies(load("digits"), epochs=10, batch=64)[-1] >= 0.97


@pytest.mark.usefixtures("one_thread")
def test_mnist_is_learnt(mnist_dir: Path) -> None:
    assert accuracies(load("mnist", mnist_dir), epochs=2)[-1] > 0.92


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_mnist_exceeds_95_percent_in_ten_epochs(mnist_dir: Path) -> None:
    assert accuracies(load("mnist", mnist_dir), epochs=10)[-1] > 0.95
