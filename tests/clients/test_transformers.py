"""Hugging Face's Trainer: every way to hand it an optimizer, its checkpoints, and the weights that it stores transposed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import muonlab
from muonlab.optim import Optimizer
from muonlab.optim.variants import variant
from tests.clients.tiny import assert_same_weights

transformers = pytest.importorskip("transformers", reason="transformers is not installed: it is in the extra 'clients'")
pytest.importorskip("accelerate", reason="accelerate is not installed, and transformers.Trainer needs it")

STEPS = 4


def gpt2(seed=0, dropout=0.1):
    """Two layers, 8 wide. The head is tied to the embedding; dropout is on, as in the released models."""
    torch.manual_seed(seed)
    sizes = {"vocab_size": 29, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0}
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **drops))


def examples(count=10):
    tokens = torch.randint(29, (count, 12), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in tokens]


def trainer(model, folder, device="cpu", **how):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        save_strategy="steps",
        save_steps=STEPS // 2,
        logging_strategy="no",
        per_device_train_batch_size=2,
        learning_rate=0.01,
        weight_decay=0.1,
        lr_scheduler_type="cosine",
        use_cpu=device == "cpu",
        dataloader_pin_memory=False,
        report_to=[],
        disable_tqdm=True,
    )
    return transformers.Trainer(model=model, args=arguments, train_dataset=examples(), **how)


def optimizer_and_scheduler(model):
    optimizer = muonlab.optimizer(model, "normuon", lr=0.05, weight_decay=0.1)
    return {"optimizers": (optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t)))}


def optimizer_alone(model):
    """Trainer makes the scheduler: its own, from its arguments."""
    return {"optimizers": (muonlab.optimizer(model, "muon", lr=0.05), None)}


def factory(model):
    """What is no Optimizer class, Trainer calls without arguments, and what comes back with the model and the options."""
    return {"optimizer_cls_and_kwargs": (muonlab.optimizer, {"name": "normuon", "lr": 0.05, "weight_decay": 0.1})}


def class_on_trainers_groups(model):
    """Trainer calls the class with two groups, decayed and not, and with the options."""
    return {"optimizer_cls_and_kwargs": (Optimizer, {"rules": variant("adamw").rule(), "lr": 0.01})}


def class_on_given_parameters(model):
    """The option "params" takes the place of Trainer's groups: here the attention's weights, the rest stays as it is."""
    return {"optimizer_cls_and_kwargs": (muonlab.Muon, {"params": [p for n, p in model.named_parameters() if "c_attn.w" in n]})}


@pytest.mark.parametrize(
    "way", [optimizer_and_scheduler, optimizer_alone, factory, class_on_trainers_groups, class_on_given_parameters]
)
def test_a_resumed_training_ends_with_the_weights_of_one_that_was_never_interrupted(way, tmp_path, device):
    whole, resumed = gpt2().to(device), gpt2(seed=5).to(device)
    start = copy.deepcopy(whole)
    trainer(whole, tmp_path, device, **way(whole)).train()
    trainer(resumed, tmp_path / "other", device, **way(resumed)).train(
        resume_from_checkpoint=str(tmp_path / f"checkpoint-{STEPS // 2}")
    )
    assert_same_weights(resumed, whole)
    with pytest.raises(AssertionError):
        assert_same_weights(start, whole)


def test_trainers_groups_bring_their_decay_as_to_torchs_adamw(tmp_path, device):
    weights = []
    for cls, options in (
        (Optimizer, {"rules": variant("adamw").rule(betas=(0.9, 0.95))}),
        (torch.optim.AdamW, {"betas": (0.9, 0.95)}),
    ):
        run = trainer(gpt2().double().to(device), tmp_path, device, optimizer_cls_and_kwargs=(cls, {"lr": 0.01, **options}))
        run.train()
        assert [group["weight_decay"] for group in run.optimizer.param_groups] == [0.1, 0.0]
        weights.append(run.model.state_dict())
    torch.testing.assert_close(*weights)


def test_trainer_trains_as_a_loop_by_hand(tmp_path, device):
    """Order of batches, clipping and schedule are Trainer's; the same ones around torch's own loop give the same weights."""
    model, by_hand = (gpt2(dropout=0.0).double().to(device) for _ in range(2))
    run = trainer(model, tmp_path, device, **factory(model))
    seen, collate = [], run.data_collator
    run.data_collator = lambda rows: seen.append(collate(rows)) or seen[-1]
    run.train()
    optimizer = muonlab.optimizer(by_hand, "normuon", lr=0.05, weight_decay=0.1)
    scheduler = transformers.get_cosine_schedule_with_warmup(optimizer, 0, STEPS)
    for batch in seen[:STEPS]:
        optimizer.zero_grad()
        batch = {key: value.to(device) for key, value in batch.items()}
        by_hand(**batch, num_items_in_batch=batch["labels"].numel()).loss.backward()  # Trainer divides by all tokens
        nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
    torch.testing.assert_close(model.state_dict(), by_hand.state_dict())


def test_the_plan_of_gpt2_knows_that_its_weights_are_stored_transposed():
    """The factor is sqrt(outputs / inputs) where there are more outputs; read from the storage it would be the inverse case."""
    rows = {row.name: row for row in muonlab.optimizer(gpt2(), "muon", lr=1.0).plan}
    layer = "transformer.h.1."
    assert rows[layer + "attn.c_attn.weight"].shape == (8, 24)
    assert rows[layer + "attn.c_attn.weight"].lr == 1.0  # three square matrices, queries, keys and values
    assert rows[layer + "attn.c_attn.weight"].matrices.startswith("3 × 8×8")
    assert rows[layer + "mlp.c_fc.weight"].lr == pytest.approx(2.0)
    assert rows[layer + "mlp.c_proj.weight"].shape == (32, 8)
    assert rows[layer + "mlp.c_proj.weight"].lr == 1.0
    assert {name for name, row in rows.items() if row.role == "matrix"} == {
        f"transformer.h.{i}.{name}.weight" for i in (0, 1) for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    assert rows["transformer.wte.weight"].role == rows["transformer.wpe.weight"].role == "embedding"


@pytest.mark.parametrize("axis", ["long", "output", "input"])
def test_gpt2_trains_as_the_same_model_with_plain_linear_layers(axis, device):
    stored = gpt2(dropout=0.0).double().to(device)
    plain = copy.deepcopy(stored)
    for path, module in list(plain.named_modules()):
        if type(module).__name__ == "Conv1D":
            linear = nn.Linear(*module.weight.shape)
            linear.weight = nn.Parameter(module.weight.detach().T.contiguous())
            linear.bias = module.bias
            plain.set_submodule(path, linear)
    batch = torch.stack([example["input_ids"] for example in examples(4)]).to(device)
    fused = {"*.c_attn.weight": {"split": 3}}  # recognized in Conv1D; of a plain layer it has to be said
    for model, specs in ((stored, {}), (plain, fused)):
        optimizer = muonlab.optimizer(model, "normuon", lr=0.02, weight_decay=0.5, axis=axis, specs=specs)
        for _ in range(3):
            optimizer.zero_grad()
            model(input_ids=batch, labels=batch).loss.backward()
            optimizer.step()
    linears = dict(plain.named_parameters())
    for name, p in stored.named_parameters():
        transposed = p.ndim == 2 and ".h." in name
        torch.testing.assert_close(p.T if transposed else p, linears[name])


def test_the_logged_rate_is_that_of_matrices_and_trainers_own_is_refused_in_words(tmp_path, device):
    model = gpt2().to(device)
    run = trainer(model, tmp_path, device, **factory(model))
    run.create_optimizer()
    assert run.get_learning_rates()[0] == 0.05
    run.create_scheduler(STEPS)
    assert run._get_learning_rate() == 0.05
    model = gpt2().to(device)
    silent = trainer(model, tmp_path, device, optimizer_cls_and_kwargs=(muonlab.optimizer, {"name": "normuon"}))
    with pytest.warns(UserWarning, match=r"TrainingArguments.learning_rate is not read: matrices train at 0\.02; give \"lr\""):
        silent.create_optimizer()
