"""TRL's SFTTrainer: the same two words as under transformers' Trainer."""

from __future__ import annotations

import pytest
import torch

import muonlab

transformers = pytest.importorskip("transformers", reason="transformers is not installed: it is in the extra 'clients'")
trl = pytest.importorskip("trl", reason="trl is not installed: it is in the extra 'clients'")
datasets = pytest.importorskip("datasets", reason="datasets is not installed: it is in the extra 'hf'")
tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is not installed: it is in the extra 'hf'")


def words():
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "<eos>": 1}, unk_token="<unk>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<eos>", pad_token="<eos>", unk_token="<unk>")


def test_supervised_fine_tuning_trains_matrices_by_muon_at_their_rate(tmp_path):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 32}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = trl.SFTTrainer(
        model,
        args=trl.SFTConfig(str(tmp_path), max_steps=3, logging_steps=1, max_length=16, report_to="none", use_cpu=True, bf16=False),
        train_dataset=datasets.Dataset.from_dict({"input_ids": torch.randint(32, (8, 12)).tolist()}),
        processing_class=words(),
        optimizer_cls_and_kwargs=(muonlab.optimizer, {"name": "muon", "lr": 0.02, "aux_lr": 3e-3}),
    )
    trainer.train()
    assert trainer.state.log_history[0]["learning_rate"] == 0.02
    rows = {row.name: row for row in trainer.optimizer.optimizer.plan}
    assert rows["model.layers.1.mlp.up_proj.weight"].by == "muon"
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())
