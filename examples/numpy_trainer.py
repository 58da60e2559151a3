"""Fit a line with numpy alone: no torch and no Ray on the trainer's side.

adamserve serve                       # in one shell
python examples/numpy_trainer.py      # in another
"""

import argparse

import numpy as np

import adamserve
from adamserve import optim

options = argparse.ArgumentParser()
options.add_argument("--target", default="127.0.0.1:50051")
options.add_argument("--job", default="line")
args = options.parse_args()

rng = np.random.default_rng(0)
x = rng.normal(size=(500, 3))
y = x @ [1.0, -2.0, 0.5] + 3.0

with adamserve.connect(args.target, job=args.job) as client:
    client.create({"weight": np.zeros(3), "bias": np.zeros(())}, optim.Adam(lr=0.05))
    for _step in range(400):
        params, clock = client.pull()
        error = x @ params["weight"] + params["bias"] - y
        loss = float(error @ error) / len(y)
        gradients = {"weight": 2 * x.T @ error / len(y), "bias": np.array(2 * error.mean())}
        client.push(gradients, clock)
        client.report(loss)
    params, _ = client.pull(training=False)
print(f"weight {np.round(params['weight'], 3).tolist()} bias {float(params['bias']):.3f} loss {loss:.2e}")
