"""Tokenizers: what they encode comes back, and nothing in a text is taken for a command."""

from __future__ import annotations

import json

import numpy as np
import pytest

from muonlab.data.tokenizers import ByteTokenizer, load_tokenizer, train_bpe
from muonlab.errors import InputError

tokenizers = pytest.importorskip("tokenizers")

TEXTS = ["Ada has 12 pears and 120 plums.", "naïve Ωmega 🎈 漢字", "line\r\nline\n\n\ttab", "", " ", "\ufeff", "0123456789 12 1 2"]


@pytest.fixture(scope="module")
def bpe():
    return train_bpe(TEXTS * 5, 320)


def test_bytes_are_the_utf8_of_a_text():
    one = ByteTokenizer()
    for text in TEXTS:
        assert one.encode(text).tolist() == list(text.encode())
        assert one.decode([*one.encode(text), one.end]) == text
    assert one.decode([0xC3]) == "\ufffd"


def test_a_trained_bpe_reads_any_text_back(bpe):
    assert bpe.vocab_size <= 320
    for text in [*TEXTS, "never seen before: žluťoučký kůň \x00 <|endoftext|>"]:
        tokens = bpe.encode(text)
        assert bpe.decode(tokens) == text
        assert bpe.decode([*tokens, bpe.end]) == text
        assert tokens.dtype == np.uint16
    assert sum(len(bpe.encode(t)) for t in TEXTS) < sum(len(t.encode()) for t in TEXTS)


def test_training_is_deterministic():
    assert train_bpe(TEXTS, 300).content == train_bpe(TEXTS, 300).content


def test_the_end_of_a_document_is_never_read_out_of_a_text(bpe):
    """A text that spells the special token must not end its document: the library's default is that it does."""
    text = "before <|endoftext|> after"
    assert bpe.end not in bpe.encode(text)
    plain = tokenizers.Tokenizer.from_str(bpe.content.decode())
    assert bpe.end in plain.encode(text).ids


def test_truncation_padding_and_marks_in_the_file_are_not_used(bpe, tmp_path):
    """Sentence models ship a tokenizer.json that cuts at 512 tokens and adds marks: a document is all of its text."""
    cutting = tokenizers.Tokenizer.from_str(bpe.content.decode())
    cutting.enable_truncation(4)
    cutting.enable_padding(length=999)
    mark = ("<|endoftext|>", bpe.end)
    cutting.post_processor = tokenizers.processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[mark])
    cutting.save(str(tmp_path / "tokenizer.json"))
    text = "Ada has 12 pears and 120 plums. " * 4
    assert load_tokenizer(tmp_path / "tokenizer.json").encode(text).tolist() == bpe.encode(text).tolist()


def test_digits_stand_alone_where_asked():
    texts = ["the year 1999 and 1999 again 1999"] * 30
    for split, longest in ((True, 1), (False, 4)):
        trained = train_bpe(texts, 300, split_digits=split)
        pieces = [trained.decode([t]).strip() for t in trained.encode("in 1999")]
        assert max(len(p) for p in pieces if p.isdigit()) == longest


def test_encoding_many_is_encoding_each(bpe):
    for one in (bpe, ByteTokenizer()):
        assert [t.tolist() for t in one.encode_all(TEXTS)] == [one.encode(t).tolist() for t in TEXTS]


def test_a_copy_is_the_same_tokenizer(bpe, tmp_path):
    for one in (bpe, ByteTokenizer()):
        one.save(tmp_path / "tokenizer.json")
        again = load_tokenizer(tmp_path)  # the folder will do
        assert (again.sha256, again.vocab_size, again.end) == (one.sha256, one.vocab_size, one.end)
        assert again.encode("a copy").tolist() == one.encode("a copy").tolist()


def test_a_vocabulary_with_gaps_counts_to_its_largest_token(bpe, tmp_path):
    table = json.loads(bpe.content)
    table["model"]["vocab"]["far"] = 70000
    (tmp_path / "t.json").write_text(json.dumps(table))
    far = load_tokenizer(tmp_path / "t.json")
    assert far.vocab_size == 70001
    assert far.encode("abc").dtype == np.uint32


def test_half_a_surrogate_pair_is_refused(bpe):
    for one in (bpe, ByteTokenizer()):
        with pytest.raises(UnicodeEncodeError):
            one.encode("broken \ud800")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read .*t.json: No such file"),
        ("{", "t.json: not JSON"),
        ("{}", "t.json: expected a tokenizer.json of the library"),
        ("no end", r"t.json: no token ends a document; expected one of <\|endoftext\|>, .*: add it"),
    ],
)
def test_what_is_no_tokenizer_is_named(bpe, tmp_path, content, message):
    path = tmp_path / "t.json"
    if content is not None:
        path.write_text(bpe.content.decode().replace("<|endoftext|>", "<x>") if content == "no end" else content)
    with pytest.raises(InputError, match=message):
        load_tokenizer(path)


def test_too_small_a_vocabulary_is_refused():
    with pytest.raises(InputError, match="expected at least 257"):
        train_bpe(TEXTS, 256)
