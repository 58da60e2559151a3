"""Train an MLP on scikit-learn's digits with the optimizer in the service.

    adamserve serve                         # in one shell
    python examples/pytorch_trainer.py      # in another; several may run at once

What differs from a local trainer is marked with "adamserve".
"""

import argparse

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import adamserve  # adamserve

options = argparse.ArgumentParser()
options.add_argument("--target", default="127.0.0.1:50051")  # adamserve
options.add_argument("--token-file")  # adamserve
options.add_argument("--job", default="digits")  # adamserve
options.add_argument("--epochs", type=int, default=30)
args = options.parse_args()

digits = load_digits()
split = train_test_split(
    digits.data / 16.0, digits.target, test_size=0.2, stratify=digits.target, random_state=0
)
train_x, test_x = (torch.tensor(x, dtype=torch.float32) for x in split[:2])
train_y, test_y = (torch.tensor(y) for y in split[2:])

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
local = torch.optim.AdamW(model.parameters(), lr=3e-3)
optimizer = adamserve.RemoteOptimizer.wrap(  # adamserve
    local, args.target, job=args.job, token_file=args.token_file
)

for epoch in range(args.epochs):
    for batch in torch.randperm(len(train_x)).split(64):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(train_x[batch]), train_y[batch])
        loss.backward()
        optimizer.step()
    optimizer.client.report(float(loss.detach()))  # adamserve
    print(f"epoch {epoch + 1}: loss {float(loss.detach()):.4f}", flush=True)

with torch.no_grad():
    accuracy = float((model(test_x).argmax(dim=1) == test_y).float().mean())
print(f"test accuracy {accuracy:.4f}")
optimizer.close()  # adamserve
