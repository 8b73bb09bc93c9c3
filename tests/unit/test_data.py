"""Corpora, shards and loaders."""

from __future__ import annotations

import json

import numpy as np
import pytest

from muonlab.data import corpus, tokenizer
from muonlab.data.config import DataConfig
from muonlab.data.loader import Loader, validation_batches
from muonlab.data.shards import read_shard, write_shard
from muonlab.errors import InputError


def tokens(n, seed=0):
    return np.random.default_rng(seed).integers(0, 50000, n, dtype=np.uint16)


# -- tokenizer -------------------------------------------------------------------------------------------------------


def test_bytes_come_back():
    text = bytes(range(256)) * 2
    encoded = tokenizer.encode(text)
    assert encoded.dtype == np.uint16
    assert encoded[-1] == tokenizer.END_OF_DOCUMENT == 256
    assert tokenizer.decode(encoded) == text
    with pytest.raises(ValueError, match="got 999"):
        tokenizer.decode(np.array([999], dtype=np.uint16))


# -- shards ----------------------------------------------------------------------------------------------------------


def test_a_shard_comes_back_memory_mapped(tmp_path):
    path, written = tmp_path / "a.bin", tokens(1000)
    write_shard(path, written)
    found = read_shard(path)
    assert isinstance(found, np.memmap)
    assert np.array_equal(found, written)
    assert not (tmp_path / "a.bin.tmp").exists()


def test_the_header_is_modded_nanogpts(tmp_path):
    write_shard(tmp_path / "a.bin", tokens(10))
    header = np.fromfile(tmp_path / "a.bin", dtype=np.int32, count=256)
    assert header[:3].tolist() == [20240520, 1, 10]
    assert not header[3:].any()
    assert (tmp_path / "a.bin").stat().st_size == 1024 + 20


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda data: data[:500], "header of 1024 bytes"),
        (lambda data: data[:-2], r"expected 10 tokens \(1044 bytes\)"),
        (lambda data: b"\0\0\0\0" + data[4:], "magic number 20240520 .* got 0"),
        (lambda data: data[:4] + b"\2\0\0\0" + data[8:], "version 1, got 2"),
    ],
)
def test_a_damaged_shard_is_refused(tmp_path, spoil, message):
    path = tmp_path / "a.bin"
    write_shard(path, tokens(10))
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(InputError, match=message):
        read_shard(path)


def test_tokens_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="65536"):
        write_shard(tmp_path / "a.bin", np.array([65536]))
    assert list(tmp_path.iterdir()) == []


# -- corpora ---------------------------------------------------------------------------------------------------------


def test_the_standard_library_is_real_fixed_and_host_independent():
    a, b = corpus.load(DataConfig()), corpus.load(DataConfig())
    assert a.provenance == b.provenance
    assert a.provenance["documents"] > 500
    assert a.provenance["train_tokens"] > 5_000_000
    share = a.provenance["validation_tokens"] / (a.provenance["train_tokens"] + a.provenance["validation_tokens"])
    assert 0.02 < share < 0.2
    names = [name for name, _ in corpus.standard_library()]
    assert names == sorted(names)
    assert "argparse.py" in names
    assert not any(name.startswith(("/", "site-packages", "test/")) for name in names)


def test_documents_are_split_whole_and_equal_ones_together(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = [f"document {i % 60} " * 5 for i in range(120)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": t}) + "\n" for t in texts))
    found = corpus.load(DataConfig(source="jsonl", files=("*.jsonl",), text_key="body", validation_fraction=0.3))
    assert found.provenance["split"] == "by document hash"
    split = [
        set(tokenizer.decode(part).decode().replace(" document", " \ndocument").split("\n"))
        for part in (found.train[0], found.validation[0])
    ]
    assert not split[0] & split[1]
    assert len(found.train[0]) + len(found.validation[0]) == sum(len(t) + 1 for t in texts)


def test_one_text_file_holds_out_its_tail(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_bytes(bytes(range(100)))
    found = corpus.load(DataConfig(source="text", files=("a.txt",), validation_fraction=0.2))
    assert found.train[0].tolist() == list(range(81))
    assert found.validation[0].tolist() == [*range(81, 100), 256]


def test_validation_files_are_used_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("train.txt", "held.txt"):
        (tmp_path / name).write_text(name)
    found = corpus.load(DataConfig(source="text", files=("train.txt",), validation_files=("held.txt",)))
    assert tokenizer.decode(found.train[0]) == b"train.txt"
    assert tokenizer.decode(found.validation[0]) == b"held.txt"


def test_held_out_files_are_not_trained_on_and_no_file_counts_twice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(name * 30)
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    found = corpus.load(DataConfig(source="text", files=("*.txt", str(tmp_path / "a.txt")), validation_files=("b.txt",)))
    assert sorted(set(tokenizer.decode(found.train[0]))) == [ord("a"), ord("c")]
    assert len(found.train[0]) == 62
    assert set(tokenizer.decode(found.validation[0])) == {ord("b")}


def test_shards_are_a_corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        write_shard(tmp_path / f"train_{i}.bin", tokens(1000, i))
    found = corpus.load(DataConfig(source="bin", files=("train_*.bin",), validation_fraction=0.25))
    assert [len(s) for s in found.train] == [1000, 1000, 250]
    assert [len(s) for s in found.validation] == [750]
    assert np.array_equal(found.validation[0], tokens(1000, 2)[250:])


def test_the_hash_follows_the_content_not_the_place(tmp_path, monkeypatch):
    digests = []
    for folder, text in (("a", "same text"), ("b", "same text"), ("c", "other text")):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        (tmp_path / folder / "t.txt").write_text(text * 50)
        digests.append(corpus.load(DataConfig(source="text", files=("t.txt",))).provenance["sha256"])
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("name", "content", "config", "message"),
    [
        ("a.txt", b"", {"source": "text"}, "corpus is empty"),
        ("a.jsonl", b'{"text": "x"}\nnope\n', {"source": "jsonl"}, r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", b'{"body": "x"}\n', {"source": "jsonl"}, r"line 1: .* got keys \['body'\]; set data.text_key"),
        ("a.jsonl", b'{"text": 3}\n', {"source": "jsonl"}, "line 1: expected text in 'text', got int"),
        ("a.jsonl", b"[1]\n", {"source": "jsonl"}, "line 1: expected an object"),
    ],
)
def test_bad_files_are_refused_in_words(tmp_path, monkeypatch, name, content, config, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        corpus.load(DataConfig(files=(name,), **config))


def test_a_missing_file_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no file matches 'nothing/\*\.txt'"):
        corpus.load(DataConfig(source="text", files=("nothing/*.txt",)))


# -- loaders ---------------------------------------------------------------------------------------------------------


def loader(seed=1, n=1000, **options):
    return Loader([np.arange(n, dtype=np.uint16)], **{"context": 10, "batch": 4, "seed": seed, **options})


def test_targets_are_the_inputs_shifted_by_one():
    x, y, _ = loader().next()
    assert x.shape == y.shape == (4, 10)
    assert (y == x + 1).all()


def test_the_order_depends_on_the_seed_alone():
    a, b, c = (loader(seed=s) for s in (1, 1, 2))
    first = [a.next()[0].tolist() for _ in range(60)]
    assert first == [b.next()[0].tolist() for _ in range(60)]
    assert first != [c.next()[0].tolist() for _ in range(60)]


def test_an_epoch_visits_each_window_once():
    one = loader()
    starts = [int(s) for _ in range(24) for s in one.next()[0][:, 0]]
    assert one.epoch == 0
    assert len(set(starts)) == 96
    assert len({s % 10 for s in starts}) == 1, "windows of one epoch share a phase and do not overlap"
    one.next()
    one.next()
    assert one.epoch == 1


def test_position_is_state():
    one, two = loader(), loader()
    for _ in range(37):  # into the second epoch
        one.next()
    two.load_state_dict(one.state_dict())
    for _ in range(30):
        assert one.next()[0].tolist() == two.next()[0].tolist()


def test_windows_do_not_cross_segments():
    segments = [np.full(25, i, dtype=np.uint16) for i in range(8)]
    one = Loader(segments, context=10, batch=3, seed=0)
    for _ in range(20):
        x, y, _ = one.next()
        assert (x == y).all()


def test_a_corpus_shorter_than_a_batch_is_refused():
    loader(n=50, batch=4)
    with pytest.raises(InputError, match=r"49 training tokens, and a batch of 4 × 10 needs 50"):
        loader(n=49, batch=4)


def test_validation_is_always_the_same_tokens():
    segment = np.arange(1000, dtype=np.uint16)
    batches = validation_batches([segment], context=10, batch=3, tokens=70)
    assert [len(x) for x, _, _ in batches] == [3, 3, 1]
    assert sorted(int(t) for x, _, _ in batches for t in x.flatten()) == list(range(70))
    with pytest.raises(InputError, match=r"eval_tokens: expected 10 .* to 990"):
        validation_batches([segment], context=10, batch=3, tokens=1000)
