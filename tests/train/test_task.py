"""Tasks by name, the settings that a checkpoint keeps, and a worker's part."""

from __future__ import annotations

import pickle
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adamserve.errors import InvalidArgument
from adamserve.train.config import TrainConfig
from adamserve.train.loop import gradient, loss_of, measured
from adamserve.train.task import GROUP, Part, arrays, initial_model, put, recipe, tensor_specs
from tests.train.line import Line
from workers.task import NetworkRecipe

PART = Part(rank=1, workers=2, batch=3, seed=5)


def test_a_task_of_one_s_own_needs_four_methods() -> None:
    task, model = Line(), initial_model(Line(), 0)
    batch = task.batches(PART)(0)
    assert task.rows(batch) is task.evaluate(model) is task.comparator() is task.regret([], PART) is None
    assert measured(task.summary, model) == {}
    assert not model.training
    assert (task.name, [spec.name for spec in tensor_specs(task, model)]) == ("Line", ["1.weight", "1.bias"])


def test_a_step_s_dropout_is_a_function_of_its_seed() -> None:
    task, model = Line(), initial_model(Line(), 0)
    batch = task.batches(PART)(0)
    found = gradient(task, model, batch, seed=3)
    torch.rand(5)
    assert gradient(task, model, batch, seed=3) == loss_of(task, model, batch, seed=3) == found
    assert loss_of(task, model, batch, seed=4) != found


def test_parameters_go_out_and_come_back() -> None:
    model, other = initial_model(Line(), 0), initial_model(Line(), 1)
    expected = {name: array.copy() for name, array in arrays(model).items()}
    for array in expected.values():
        array.flags.writeable = False
    put(other, expected)
    for name, array in arrays(other).items():
        np.testing.assert_array_equal(array, expected[name])


def test_the_paper_s_tasks_are_installed() -> None:
    assert {"cnn", "logreg", "mlp", "vae"} <= set(entry_points(group=GROUP).names)
    for name in ("cnn", "logreg", "mlp", "vae"):
        assert recipe(name, dataset="digits32").settings()["network"] == name
    assert recipe("mlp").label == "mlp-digits"


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "mpl",
            {},
            "network: there is no network 'mpl' (did you mean mlp? choose cnn or logreg or mlp or vae)",
        ),
        ("mlp", {"frobnicate": 1}, "frobnicate: mlp has no such option (leave it out)"),
        ("mlp", {"dataset": "mnits"}, "dataset: there is no data set 'mnits' (did you mean mnist?"),
        ("mlp", {"dtype": "float16"}, "dtype: must be float32 or float64, got 'float16'"),
        ("mlp", {"sparse": "none"}, "sparse: must be exact, lazy, dense, got 'none'"),
        ("logreg", {"l2": float("nan")}, "l2: must be at least 0, got nan"),
    ],
)
def test_a_wrong_option_is_refused_before_any_data_is_loaded(
    name: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        recipe(name, **options)
    assert str(caught.value).startswith(message)


def test_a_checkpoint_s_settings_make_the_recipe_again() -> None:
    chosen = NetworkRecipe(
        network="logreg",
        dataset="zipf",
        l2=0.5,
        regret=True,
        dtype="float64",
        sparse="lazy",
        data_dir=Path("a"),
    )
    again = NetworkRecipe(network="mlp", data_dir=Path("b")).resumed(chosen.settings())
    assert again == replace(chosen, data_dir=Path("b"))


def test_settings_of_an_older_version_are_read() -> None:
    """Some of today's options were not there yet; keys that are not the task's are passed over."""
    kept = {"network": "logreg", "dataset": "zipf", "sparse": "dense", "rule": {"rule": "SGD"}, "workers": 3}
    assert NetworkRecipe(network="mlp").resumed(kept) == NetworkRecipe(
        network="logreg", dataset="zipf", sparse="dense"
    )


def test_a_run_s_settings_are_flat() -> None:
    config = TrainConfig(recipe=recipe("mlp"), run_dir=Path("x"), workers=3)
    assert set(config.settings()) == {
        *("network", "dataset", "whiten", "l2", "dtype", "sparse", "regret"),
        *("rule", "consistency", "workers", "batch", "seed"),
    }


def test_a_task_travels_to_the_workers() -> None:
    task = recipe("logreg", dataset="zipf").load(lambda message: None)
    copy = pickle.loads(pickle.dumps(task))
    batch, other = task.batches(PART)(2), copy.batches(PART)(2)
    rows, same = task.rows(batch), copy.rows(other)
    assert rows is not None
    np.testing.assert_array_equal(rows["weight"], same["weight"])
    assert torch.equal(batch.y, other.y)
