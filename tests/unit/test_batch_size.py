"""The largest micro-batch that fits: how it is looked for, what a run makes of it, and real processes that run out of memory."""

from __future__ import annotations

import json
import math
from functools import partial

import pytest
import torch

from muonlab.errors import InputError, Interrupted, RunError
from muonlab.train import batch_size, run
from muonlab.train.batch_size import Trial, fitted, largest, out_of_memory, sizes
from muonlab.train.memory import available_memory, parse_size
from muonlab.train.recipe import Recipe, load_recipe
from muonlab.train.run_folder import RunFolder
from muonlab.train.trainer import Machine, Trainer, choose_machine
from tests.unit.test_train import losses, stop_after

train = partial(run.train, device="cpu", threads=1)
AUTO = "train.accumulate=auto"


def up_to(most):
    """A way to try micro-batches of which those up to this size fit; `tried` tells what was asked."""

    def attempt(recipe, seed, machine, room):
        size = -(-recipe.train.batch // machine.accumulate)
        attempt.tried.append(size)
        attempt.room = room
        return Trial(True, 10**9) if size <= most else Trial(False, reason="out of memory")

    attempt.tried = []
    return attempt


@pytest.mark.parametrize("batch", [1, 2, 7, 10, 32, 96, 480])
def test_the_search_finds_the_largest_that_fits_with_few_trials(batch):
    candidates = sizes(batch)
    assert candidates == sorted({max(len(part) for part in torch.arange(batch).chunk(n)) for n in range(1, batch + 1)})
    for limit in range(batch + 2):
        tried = []
        found = largest(candidates, lambda size: (tried.append(size), size <= limit)[1])  # noqa: B023
        assert found == max((size for size in candidates if size <= limit), default=None)
        assert len(tried) == len(set(tried)) <= 2 + 2 * math.log2(batch)


@pytest.mark.parametrize(("most", "parts"), [(100, 1), (10, 1), (9, 2), (5, 2), (4, 3), (3, 4), (1, 10)])
def test_a_batch_is_split_into_as_few_parts_as_memory_allows(workdir, most, parts):
    recipe, machine = load_recipe("tiny.toml", [AUTO, "train.batch=10"]), Machine("cpu", "float32", 1, False)
    said = []
    found = fitted(machine, recipe, 0, memory_limit=10**10, attempt=up_to(most), say=said.append)
    assert found == Machine("cpu", "float32", 1, False, accumulate=parts)
    assert said[0] == "looking for the largest micro-batch that fits into 10.00 GB"
    assert f"in {parts} part" in said[-1]
    again = up_to(0)
    assert fitted(found, recipe, 0, attempt=again) == found
    assert not again.tried, "what has been found is not looked for again"


def test_where_not_even_one_sequence_fits_the_message_says_what_to_do(workdir):
    recipe, machine = load_recipe("tiny.toml", [AUTO]), Machine("cpu", "float32", 1, False)
    with pytest.raises(InputError) as caught:
        fitted(machine, recipe, 0, memory_limit=4 * 10**9, attempt=up_to(0))
    assert str(caught.value) == (
        "train.accumulate: not even one sequence of 32 tokens fits into 4.00 GB (out of memory): "
        "choose a smaller model or model.context, another optimizer, or more memory (--memory-limit)"
    )


def test_a_recipe_that_says_how_to_split_is_left_alone(workdir):
    attempt, machine = up_to(0), Machine("cpu", "float32", 1, False)
    assert fitted(machine, load_recipe("tiny.toml", ["train.accumulate=2"]), 0, attempt=attempt) is machine
    assert not attempt.tried


def test_uneven_parts_give_the_gradient_of_the_whole_batch(workdir):
    gradients = []
    for parts in (1, 3):  # 4 sequences in 2 + 2 would be even: torch makes 2, 2 of 4 in 3 parts, and 4, 4, 2 of 10
        recipe = load_recipe("tiny.toml", [AUTO, "train.batch=10", "model.context=16"])
        trainer = Trainer(recipe, 0, Machine("cpu", "float32", 1, False, accumulate=parts))
        trainer.optimizer.zero_grad = lambda set_to_none=True: None  # keep them to be looked at
        trainer.train_step()
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.model.parameters()]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_the_choice_is_recorded_and_kept_by_a_resume_and_is_no_part_of_the_identity(workdir, monkeypatch):
    recipe, first = load_recipe("tiny.toml", [AUTO]), up_to(2)
    monkeypatch.setattr(batch_size, "_in_a_process", first)
    whole = train(recipe, 5, "whole", memory_limit=10**9)
    assert first.room == 0.95e9
    with pytest.raises(Interrupted):
        train(recipe, 5, "parts", on_progress=stop_after(4))
    assert RunFolder("parts").run()["machine"]["accumulate"] == 2
    assert RunFolder("parts").run()["recipe"]["train"]["accumulate"] == "auto"
    other = up_to(1)  # a machine with less memory
    monkeypatch.setattr(batch_size, "_in_a_process", other)
    parts = train(recipe, 5, "parts", resume=True)
    assert not other.tried
    assert parts["weights_sha256"] == whole["weights_sha256"]
    assert losses("parts") == losses("whole")
    train(recipe, 5, "less")
    assert RunFolder("less").run()["machine"]["accumulate"] == 4
    assert RunFolder("less").run()["id"] == RunFolder("whole").run()["id"] == recipe.run_id(5)
    plain = train(load_recipe("tiny.toml", ["train.accumulate=2"]), 5, "plain")
    assert plain["weights_sha256"] == whole["weights_sha256"], "found or given, two parts are two parts"
    assert "accumulate" not in RunFolder("plain").run()["machine"]


def test_a_batch_of_auto_leaves_the_batch_and_splits_it(workdir):
    for recipe in (
        load_recipe("tiny.toml", ["train.batch=auto"]),
        load_recipe("tiny.toml", ["train.batch=auto", AUTO]),
        load_recipe("tiny.toml", [AUTO]),
    ):
        assert (recipe.train.batch, recipe.train.accumulate) == (4, "auto")
        assert Recipe.model_validate(recipe.canonical()).canonical() == recipe.canonical()
    assert load_recipe(None, ["train.batch=auto"]).train.batch == 32
    (workdir / "auto.toml").write_text((workdir / "tiny.toml").read_text().replace("batch = 4", 'batch = "auto"'))
    assert load_recipe("auto.toml", ["train.batch=6"]).train.batch == 6
    with pytest.raises(InputError, match=r"train\.batch: auto is accumulate = auto; beside it, accumulate says something else"):
        load_recipe("tiny.toml", ["train.batch=auto", "train.accumulate=2"])
    with pytest.raises(InputError, match=r"train\.accumulate: expected a number of at least 1, or auto, got 'all'"):
        load_recipe("tiny.toml", ["train.accumulate=all"])
    schema = Recipe.model_json_schema()["$defs"]["TrainConfig"]["properties"]
    assert {"const": "auto"} in schema["batch"]["anyOf"]
    assert {"const": "auto"} in schema["accumulate"]["anyOf"]


def test_the_flags(workdir, muonlab, monkeypatch):
    attempt = up_to(2)
    monkeypatch.setattr(batch_size, "_in_a_process", attempt)
    code, out, err = muonlab(
        "train", "tiny.toml", "--out", "run", "--vram-auto", "--memory-limit", "2GB", "--threads", "1", "--json"
    )
    assert (code, attempt.room) == (0, 1.9e9)
    assert json.loads(out)["status"] == "finished"
    assert "a batch of 4 sequences in 2 parts of 2" in err
    assert RunFolder("run").run()["machine"]["accumulate"] == 2
    for arguments, problem in (
        (["--vram-auto", "--set", "train.accumulate=2"], "--set train.accumulate: it is given by a flag, too"),
        (["--memory-limit", "2GB"], "--memory-limit: nothing asks for it here"),
        (["--vram-auto", "--memory-limit", "lots"], "--memory-limit: expected a size such as 4GB or 900MiB, got 'lots'"),
    ):
        code, _, err = muonlab("train", "tiny.toml", "--out", "other", *arguments)
        assert code == 2
        assert problem in err
        assert not (workdir / "other").exists()


FULL = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), MemoryError()]


@pytest.mark.parametrize("error", FULL)
def test_a_run_that_is_out_of_memory_says_so(workdir, monkeypatch, error):
    def full(self):
        raise error

    monkeypatch.setattr(Trainer, "train_step", full)
    with pytest.raises(RunError, match="run: stopped at step 0: out of memory on cpu; split batches further in a new run"):
        train(load_recipe("tiny.toml"), 0, "run", device="cpu", threads=1)


@pytest.mark.parametrize("error", FULL)
@pytest.mark.parametrize("where", ["__init__", "to"])
def test_a_model_that_does_not_fit_into_memory_is_said(workdir, monkeypatch, where, error):
    from muonlab.models.gpt import GPT

    def full(*_, **__):
        raise error

    monkeypatch.setattr(GPT, where, full)
    with pytest.raises(RunError, match="run: cannot begin: out of memory on cpu; choose a smaller model or another device"):
        train(load_recipe("tiny.toml"), 0, "run", device="cpu", threads=1)
    assert not (workdir / "run").exists()


def test_lack_of_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert out_of_memory(caught.value)
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory."))
    assert out_of_memory(MemoryError())
    assert out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"))
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


@pytest.mark.slow
def test_real_processes_find_what_fits_and_are_gone_when_it_does_not(workdir):
    """The whole batch's activations take gigabytes, one sequence's a few megabytes."""
    settings = [AUTO, "train.batch=256", "model.context=64", "model.width=256", "model.layers=8", "model.vocab_size=8192"]
    recipe = load_recipe("tiny.toml", [*settings, "train.eval_tokens=64", "optimizer.name=adamw", "optimizer.lr=0.001"])
    machine = choose_machine(recipe, "cpu", 1, False)
    room = 800 * 10**6

    def attempt(parts):
        return batch_size._in_a_process(recipe, 0, Machine("cpu", "float32", 1, False, accumulate=parts), room)

    assert attempt(1) == Trial(False, reason="out of memory")
    one = attempt(256)
    assert one.fits, one
    state = 4 * 4 * 8192 * 2 * 256  # embedding and head with gradients and two moments
    assert state < one.peak <= room
    unfit = load_recipe("tiny.toml", [AUTO, "train.batch=100000"])
    with pytest.raises(InputError, match="the corpus is shorter than a batch"):
        fitted(machine, unfit, 0, memory_limit=room)


def tree(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_available_memory_heeds_the_machine_and_every_group_above(tmp_path):
    machine = {"proc/meminfo": "MemTotal: 4000 kB\nMemAvailable:    3000 kB\n"}
    assert available_memory(tree(tmp_path / "a", machine)) == 3000 * 1024
    two = {
        "proc/self/cgroup": "0::/job/step\n",
        "sys/fs/cgroup/job/memory.max": "2000000\n",
        "sys/fs/cgroup/job/memory.current": "900000\n",
        "sys/fs/cgroup/job/memory.stat": "anon 5\ninactive_file 300000\n",
        "sys/fs/cgroup/job/step/memory.max": "max\n",
        "sys/fs/cgroup/job/step/memory.current": "100\n",
    }
    assert available_memory(tree(tmp_path / "b", machine | two)) == 2000000 - 900000 + 300000
    inside = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "500\n", "sys/fs/cgroup/memory.current": "200\n"}
    assert available_memory(tree(tmp_path / "c", machine | inside)) == 300
    one = {
        "proc/self/cgroup": "4:cpu:/x\n3:memory:/x\n",
        "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/x/memory.usage_in_bytes": "700\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "5000\n",
        "sys/fs/cgroup/memory/memory.usage_in_bytes": "700\n",
        "sys/fs/cgroup/memory/memory.stat": "cache 1\ntotal_inactive_file 50\n",
    }
    assert available_memory(tree(tmp_path / "d", machine | one)) == 4350
    assert available_memory(tmp_path / "nothing") > 10**8, "not Linux: all of the machine's"


def test_sizes_are_read():
    for text, size in {"4GB": 4e9, "900MiB": 900 * 2**20, "1.5 gb": 1.5e9, "2G": 2e9, "1000": 1000, "3Gi": 3 * 2**30}.items():
        assert parse_size(text) == size
    for text in ("", "GB", "-1GB", "4 apples", "0", "4GBs", "1XB", "nan", "inf", "0.1", "9" * 320, "9" * 5000 + "TB", "1000000TB"):
        with pytest.raises(InputError, match="expected a size such as 4GB or 900MiB, got '") as caught:
            parse_size(text)
        assert len(str(caught.value)) < 150


def test_processes_that_train_at_once_share_the_memory(workdir):
    plain, auto = load_recipe("tiny.toml"), load_recipe("tiny.toml", [AUTO])
    assert batch_size.shared_memory_limit([plain], "cpu", 4) == {}
    assert batch_size.shared_memory_limit([plain, auto], "cpu", 1) == {}
    share = batch_size.shared_memory_limit([plain, auto], "cpu", 4)["memory_limit"]
    assert share == pytest.approx(available_memory() / 4, rel=0.1)
