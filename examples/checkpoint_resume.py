"""Save in a loop of one's own, and go on exactly: the same weights to the last bit as without the break.

pip install muonlab, then: python examples/checkpoint_resume.py
"""

import tempfile
from pathlib import Path

import torch

import muonlab


def begin():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(64, 64), torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64))
    optimizer = muonlab.optimizer(model, "normuon", lr=0.02)
    return model, optimizer, torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=60)


def steps(parts, first, last):
    model, optimizer, scheduler = parts
    losses = []
    for step in range(first, last):
        tokens = torch.randint(64, (128,), generator=torch.Generator().manual_seed(step))  # the data follow from the step
        loss = torch.nn.functional.cross_entropy(model(tokens), 63 - tokens)
        loss.backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


whole, half, again = begin(), begin(), begin()
losses = steps(whole, 0, 60)
print(f"loss {losses[0]:.3f} before, {losses[-1]:.3f} after")

with tempfile.TemporaryDirectory() as folder:
    file = Path(folder) / "step30.pt"
    steps(half, 0, 30)
    torch.save([part.state_dict() for part in half], file)  # model, optimizer, scheduler
    for part, state in zip(again, torch.load(file, weights_only=True), strict=True):
        part.load_state_dict(state)
    steps(again, 30, 60)
print("equal:", all(map(torch.equal, whole[0].parameters(), again[0].parameters())))
