"""A mixture of experts: eight experts in one parameter are eight matrices to Muon, and the plan says so.

pip install muonlab, then: python examples/mixture_of_experts.py
"""

import torch

import muonlab
from muonlab.optim import MatrixSpec

torch.manual_seed(0)


class Mixture(torch.nn.Module):
    def __init__(self, width=32, experts=8):
        super().__init__()
        self.router = torch.nn.Linear(width, experts, bias=False)
        self.up = torch.nn.Parameter(torch.randn(experts, width, 2 * width) / width**0.5)  # (expert, in, out)
        self.down = torch.nn.Parameter(torch.randn(experts, 2 * width, width) / (2 * width) ** 0.5)

    def forward(self, x):  # (rows, width), each row to its two best experts
        share, chosen = self.router(x).softmax(-1).topk(2)
        hidden = torch.relu(torch.einsum("rw,rkwh->rkh", x, self.up[chosen]))
        return torch.einsum("rkh,rkhw,rk->rw", hidden, self.down[chosen], share)


model = Mixture()
optimizer = muonlab.optimizer(
    model,
    "muon",
    lr=0.02,
    # Banks of well-known models are found by themselves. Of one's own: so many matrices, stored as (in, out).
    specs={"up": MatrixSpec(batch_dims=1, transposed=True), "down": MatrixSpec(batch_dims=1, transposed=True)},
    roles={"up": "matrix", "down": "matrix", "router": "vector"},  # the router by AdamW
)
print(optimizer.plan)

x = torch.randn(256, 32)
y = torch.relu(x @ torch.randn(32, 32) / 4)
for step in range(100):
    loss = torch.nn.functional.mse_loss(model(x), y)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step in (0, 99):
        print(f"step {step}: loss {loss.item():.3f}")
