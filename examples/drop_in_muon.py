"""torch.optim.Muon, and muonlab.Muon in its place: half of a training by each. Same arguments, same state.

pip install muonlab, then: python examples/drop_in_muon.py
"""

import torch

import muonlab

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(32, 128), torch.nn.Tanh(), torch.nn.Linear(128, 32))
x = torch.randn(256, 32)
y = torch.tanh(x @ torch.randn(32, 32) / 6)

matrices = [p for p in model.parameters() if p.ndim == 2]  # both are for matrices alone; muonlab.optimizer takes whole models
settings = {"lr": 0.02, "weight_decay": 0.01, "momentum": 0.95}
first = torch.optim.Muon(matrices, **settings)
second = muonlab.Muon(matrices, **settings)

for step in range(200):
    if step == 100:
        second.load_state_dict(first.state_dict())  # momentum and all goes on where torch's has stopped
    optimizer = first if step < 100 else second
    loss = torch.nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    model.zero_grad()
    if step in (0, 199):
        print(f"step {step}: loss {loss.item():.3f}")
