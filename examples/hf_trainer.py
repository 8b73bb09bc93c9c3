"""Muon under transformers' Trainer. The learning rate is the optimizer's: TrainingArguments.learning_rate is not read.

pip install muonlab "transformers[torch]", then: python examples/hf_trainer.py
"""

import tempfile

import torch
import transformers

import muonlab

torch.manual_seed(0)
model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=64, n_positions=64))
rows = [{"input_ids": row, "labels": row} for row in torch.randint(64, (8, 16)).repeat(8, 4)]

with tempfile.TemporaryDirectory() as folder:
    trainer = transformers.Trainer(
        model,
        transformers.TrainingArguments(folder, max_steps=40, per_device_train_batch_size=16, logging_steps=39, report_to="none"),
        train_dataset=rows,
        optimizer_cls_and_kwargs=(muonlab.optimizer, {"name": "muon", "lr": 0.02, "aux_lr": 3e-3}),
    )
    before = model(input_ids=rows[0]["input_ids"][None], labels=rows[0]["labels"][None]).loss.item()
    trainer.train()
    print(trainer.optimizer.optimizer.plan.summary())
    after = trainer.evaluate(rows)["eval_loss"]
    print(f"loss {before:.3f} before, {after:.3f} after")
