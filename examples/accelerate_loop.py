"""Muon with Accelerate: prepare wraps model, optimizer and data; the optimizer is made before, from the bare model.

pip install muonlab accelerate transformers, then: accelerate launch examples/accelerate_loop.py
"""

import accelerate
import torch
import transformers

import muonlab

torch.manual_seed(0)
accelerator = accelerate.Accelerator()
model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=64, n_positions=64))
optimizer = muonlab.optimizer(model, "muon", lr=0.02)
rows = torch.utils.data.DataLoader(torch.randint(64, (8, 16)).repeat(8, 4), batch_size=16)
model, optimizer, rows = accelerator.prepare(model, optimizer, rows)

losses = []
for _ in range(10):
    for tokens in rows:
        loss = model(input_ids=tokens, labels=tokens).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
accelerator.print(f"loss {losses[0]:.3f} before, {losses[-1]:.3f} after")
