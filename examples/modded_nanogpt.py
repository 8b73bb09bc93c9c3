"""As in modded-nanogpt, for a model of one's own: NorMuon on matrices, a rate for each kind of the rest, momentum that warms up.

pip install muonlab, then: python examples/modded_nanogpt.py
"""

import torch

import muonlab
from muonlab.optim import ScalarSchedule

torch.manual_seed(0)


class Block(torch.nn.Module):
    def __init__(self, width, heads=4):
        super().__init__()
        self.qkv, self.out = torch.nn.Linear(width, 3 * width, bias=False), torch.nn.Linear(width, width, bias=False)
        self.up, self.down = torch.nn.Linear(width, 4 * width, bias=False), torch.nn.Linear(4 * width, width, bias=False)
        self.scale, self.heads = torch.nn.Parameter(torch.ones(2)), heads

    def forward(self, x):  # (batch, time, width)
        q, k, v = self.qkv(torch.rms_norm(x, x.shape[-1:])).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        x = x + self.scale[0] * self.out(mixed)
        return x + self.scale[1] * self.down(torch.relu(self.up(torch.rms_norm(x, x.shape[-1:]))).square())


width, tokens = 64, torch.randint(64, (8, 16)).repeat(1, 4)
blocks = torch.nn.Sequential(Block(width), Block(width))
model = torch.nn.Sequential()
model.embed, model.blocks, model.head = torch.nn.Embedding(64, width), blocks, torch.nn.Linear(width, 64, bias=False)

optimizer = muonlab.optimizer(model, "normuon", lr=0.02, aux_lr={"embedding": 0.01, "head": 3e-3, "vector": 5e-3})
print(optimizer.plan)  # q, k and v in one parameter are known by its name, and are three matrices
momentum = ScalarSchedule(optimizer, "momentum", [(0, 0.85), (30, 0.95)])
cooldown = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (60 - step) / 30))
for step in range(60):
    loss = torch.nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    momentum.step()
    cooldown.step()
    optimizer.zero_grad()
    if step in (0, 59):
        print(f"step {step}: loss {loss.item():.3f}")
