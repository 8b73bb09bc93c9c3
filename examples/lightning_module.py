"""Muon in Lightning: configure_optimizers gives the optimizer and its schedule.

pip install muonlab lightning transformers, then: python examples/lightning_module.py
"""

import lightning
import torch
import transformers

import muonlab


class Model(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        config = transformers.GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=64, n_positions=64)
        self.gpt, self.losses = transformers.GPT2LMHeadModel(config), []

    def training_step(self, tokens, _):
        loss = self.gpt(input_ids=tokens, labels=tokens).loss
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self):
        optimizer = muonlab.optimizer(self, "muon", lr=0.02)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (40 - step) / 20))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


torch.manual_seed(0)
rows = torch.utils.data.DataLoader(torch.randint(64, (8, 16)).repeat(8, 4), batch_size=16, num_workers=0)
model = Model()
trainer = lightning.Trainer(max_epochs=10, accelerator="auto", logger=False, enable_checkpointing=False, enable_progress_bar=False)
trainer.fit(model, rows)
print(f"loss {model.losses[0]:.3f} before, {model.losses[-1]:.3f} after")
