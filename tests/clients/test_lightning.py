"""Lightning: configure_optimizers, its closures, its checkpoints."""

from __future__ import annotations

import pytest
import torch

import muonlab
from tests.clients.tiny import Tiny, assert_same_weights, batches, loss_of, train

lightning = pytest.importorskip("lightning", reason="lightning is not installed: it is in the extra 'clients'")

# Advice on workers and folders, and a call inside of Lightning that newer torch deprecates.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:.*{text}") for text in ("does not have many workers", "dirpath has changed", "LeafSpec")
]


class Module(lightning.LightningModule):
    def __init__(self, name, seed=0, schedule=lambda t: 1.0):
        super().__init__()
        self.name, self.schedule = name, schedule
        self.tiny = Tiny(seed)

    def training_step(self, batch, _):
        return loss_of(self.tiny, batch)

    def configure_optimizers(self):
        optimizer = muonlab.optimizer(self, self.name, lr=0.05, weight_decay=0.1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.schedule)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def trainer(folder, epochs, **settings):
    keep_all = lightning.pytorch.callbacks.ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    return lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=epochs,
        callbacks=[keep_all],
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def data(steps):
    return torch.utils.data.DataLoader(torch.cat(batches(steps)), batch_size=16)


@pytest.mark.parametrize("name", muonlab.optimizers())
def test_a_resumed_fit_ends_with_the_weights_of_one_that_was_never_interrupted(name, tmp_path):
    def schedule(t):
        return 1 / (1 + t)

    whole, resumed = Module(name, schedule=schedule), Module(name, seed=5, schedule=schedule)
    trainer(tmp_path, 2, gradient_clip_val=1.0).fit(whole, data(3))
    # weights_only: nothing in the checkpoint that torch does not load without trust
    other = trainer(tmp_path / "other", 2, gradient_clip_val=1.0)
    other.fit(resumed, data(3), ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=True)
    assert other.global_step == 6
    assert_same_weights(resumed, whole)


def test_fit_trains_as_a_loop_by_hand(tmp_path):
    """Lightning hands forward and backward to `step` as a closure; torch's own loop calls them before it."""
    module, by_hand = Module("normuon"), Tiny()
    trainer(tmp_path, 1).fit(module, data(4))
    train(by_hand, muonlab.optimizer(by_hand, "normuon", lr=0.05, weight_decay=0.1), batches(4))
    assert_same_weights(module.tiny, by_hand)


def test_roles_are_those_of_the_model_inside_the_module():
    inside = {row.name: row.role for row in muonlab.optimizer(Tiny(), "muon").plan}
    outside = {row.name: row.role for row in muonlab.optimizer(Module("muon"), "muon").plan}
    assert outside == {f"tiny.{name}": role for name, role in inside.items()}


class Unfreeze(lightning.pytorch.callbacks.BaseFinetuning):
    """Trains the backbone from the second epoch on."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.tiny)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.tiny, optimizer, lr=0.02)


class Tuned(Module):
    def __init__(self):
        super().__init__("muon")
        self.scale = torch.nn.Linear(4, 4)

    def training_step(self, batch, _):
        return loss_of(self.tiny, batch) + self.scale.weight.square().sum()

    def configure_optimizers(self):
        return muonlab.optimizer(torch.nn.ModuleDict({"scale": self.scale}), "muon", lr=0.05)


def test_a_backbone_is_unfrozen_in_mid_training(tmp_path):
    module = Tuned()
    first = {name: p.detach().clone() for name, p in module.tiny.named_parameters()}
    fit = trainer(tmp_path, 2)
    fit.callbacks.append(Unfreeze())
    fit.fit(module, data(3))
    moved = [name for name, p in module.tiny.named_parameters() if not torch.equal(p.detach(), first[name])]
    assert moved == list(first)
    added = [row for row in fit.optimizers[0].plan if "group" in row.name]
    assert {row.by for row in added} == {"muon", "adamw"}
