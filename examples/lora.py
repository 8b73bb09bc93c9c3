"""Muon on LoRA's factors, with peft: frozen weights stay as they are, a new head goes to AdamW.

pip install muonlab peft transformers, then: python examples/lora.py
"""

import peft
import torch
import transformers

import muonlab

torch.manual_seed(0)
config = transformers.GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=64, n_positions=64, num_labels=4, pad_token_id=0)
model = peft.get_peft_model(
    transformers.GPT2ForSequenceClassification(config),
    peft.LoraConfig(task_type="SEQ_CLS", r=8, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True),
)
labels = torch.randint(4, (32,))
tokens = torch.randint(1, 64, (32, 16))
tokens[:, -1] = labels + 1

optimizer = muonlab.optimizer(model, "muon", lr=0.02)
print(optimizer.plan.summary())
for step in range(60):
    loss = model(input_ids=tokens, labels=labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if step in (0, 59):
        print(f"step {step}: loss {loss.item():.3f}")
