"""Muon in a loop of one's own: any model, here a small GPT of transformers on a text that repeats itself.

pip install muonlab transformers, then: python examples/plain_loop.py
"""

import torch
import transformers

import muonlab

torch.manual_seed(0)
model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=64, n_positions=64))
tokens = torch.randint(64, (8, 16)).repeat(1, 4)

optimizer = muonlab.optimizer(model, "muon", lr=0.02)
scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (60 - step) / 30))
print(optimizer.plan)  # each parameter: who trains it, at which rate, and why

for step in range(60):
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    optimizer.step()
    scheduler.step()
    optimizer.zero_grad()
    if step in (0, 59):
        print(f"step {step}: loss {loss.item():.3f}")
