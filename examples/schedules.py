"""Schedules: torch's for the learning rates (warm-up, then cosine), and one for the momentum, which is a live key like any other.

pip install muonlab, then: python examples/schedules.py
"""

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR

import muonlab
from muonlab.optim import ScalarSchedule

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Embedding(64, 64), torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64))
tokens = torch.randint(64, (512,))
following = torch.randint(64, (64,))[tokens]  # which token comes after which

optimizer = muonlab.optimizer(model, "normuon", lr=0.02, aux_lr=3e-3)
rates = SequentialLR(optimizer, [LinearLR(optimizer, 0.1, total_iters=10), CosineAnnealingLR(optimizer, 90)], milestones=[10])
momentum = ScalarSchedule(optimizer, "momentum", [(0, 0.85), (50, 0.95)])  # (step, value); between them a straight line

for step in range(100):
    loss = torch.nn.functional.cross_entropy(model(tokens), following)
    loss.backward()
    optimizer.step()
    rates.step()
    momentum.step()
    optimizer.zero_grad()
    if step in (0, 99):
        print(f"step {step}: loss {loss.item():.3f}")
    if step % 25 == 0:
        matrices = optimizer.param_groups[0]
        print(f"after step {step}: lr {matrices['lr']:.4f}, momentum {matrices['momentum']:.3f}")
