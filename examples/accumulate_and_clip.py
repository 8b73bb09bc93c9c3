"""Mixed precision, gradients of several batches in one step, and clipping: as with any optimizer of torch.

pip install muonlab, then: python examples/accumulate_and_clip.py
"""

import torch

import muonlab

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.set_default_device(device)
model = torch.nn.Sequential(torch.nn.Embedding(64, 64), torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 64))
following = torch.randint(64, (64,))  # which token comes after which
optimizer = muonlab.optimizer(model, "muon", lr=0.02)

BATCHES = 4  # of 128 tokens, in one step
for step in range(60):
    total = 0.0
    for _ in range(BATCHES):
        tokens = torch.randint(64, (128,))
        with torch.autocast(device, dtype=torch.bfloat16):  # weights and gradients stay float32
            loss = torch.nn.functional.cross_entropy(model(tokens), following[tokens]) / BATCHES
        loss.backward()
        total += loss.item()
    # Muon's update has one size whatever the gradient's; clipping is for embeddings, head and vectors, which AdamW trains.
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()  # a step with a gradient that is not finite would be left out, and counted
    optimizer.zero_grad()
    if step in (0, 59):
        print(f"step {step}: loss {total:.3f}")
print(f"{optimizer.skipped} steps left out")
