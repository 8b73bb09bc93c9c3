"""A text that is cut anywhere between its tokens: what the second part adds to the first, for four kinds of tokenizer."""

from __future__ import annotations

import pytest

from muonlab.data.tokenizers import ByteTokenizer, HubTokenizer, continuation, train_bpe
from muonlab.evaluate.generation import _Row

tokenizers = pytest.importorskip("tokenizers")
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers  # noqa: E402

TEXTS = [
    "the answer is 4", "the answer is 4.", " a space first", "two  spaces   three", "a trailing space ",
    "\ttabs\tand\nnew lines\n\n",
    "", " ", "x", "▁ is a letter here", "naïve Ωmega", "漢字 and 仮名", "🎈 balloons 🎈🎈", "e\u0301 is two", "I'm, you're; don't!",
    "1 + 1 = 2", "if (a<b) { return c[0]; }", "\r\nwindows\r\n", "\u00a0no break", "mixed🎈漢x ", "Q: who? A: me",
]  # fmt: skip
assert len(TEXTS) == 21
CORPUS = TEXTS * 30 + ["the answer is four and the question was two", "0 1 2 3 4 5 6 7 8 9"] * 50


def llama_like():
    """SentencePiece's BPE as tokenizers keeps it: ▁ for spaces, one before the text, bytes for what is unknown."""
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    plain = [word for text in CORPUS if text.isascii() for word in text.split()]  # no token across words; the rest comes in bytes
    made.train_from_iterator(plain, trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False))
    return HubTokenizer(made.to_str().encode(), "llama-like")


def metaspace():
    made = tokenizers.Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False)
    made.train_from_iterator(CORPUS, trainer)
    return HubTokenizer(made.to_str().encode(), "metaspace")


MAKERS = {"bytes": ByteTokenizer, "byte-level BPE": lambda: train_bpe(CORPUS, 330), "llama": llama_like, "metaspace": metaspace}


@pytest.fixture(scope="module", params=MAKERS)
def tokenizer(request):
    return MAKERS[request.param]()


def test_both_parts_are_the_whole_wherever_it_is_cut(tokenizer):
    for text in TEXTS:
        tokens = tokenizer.encode(text).tolist()
        whole = tokenizer.decode(tokens)
        for cut in range(len(tokens) + 1):
            head = tokenizer.decode(tokens[:cut])
            added = continuation(tokenizer, tokens[:cut], tokens[cut:])
            assert (head if whole.startswith(head) else head.rstrip("\ufffd")) + added == whole, (text, cut)


def test_a_word_keeps_its_space(tokenizer):
    """ "the answer" + "is 4" read "the answeris 4"."""
    tokens = tokenizer.encode("the answer is 4").tolist()
    cut = next(i for i in range(len(tokens)) if tokenizer.decode(tokens[:i]) == "the answer")
    assert continuation(tokenizer, tokens[:cut], tokens[cut:]) == " is 4"


def test_after_an_end_a_text_begins_anew(tokenizer):
    tokens = tokenizer.encode("the answer is 4").tolist()
    assert continuation(tokenizer, [*tokens, tokenizer.end], tokens) == tokenizer.decode(tokens)
    assert continuation(tokenizer, [], tokens) == tokenizer.decode(tokens)


def test_what_is_streamed_is_what_is_written_and_stops_are_found(tokenizer):
    """Token by token: the settled part only grows, and ends as the text; a stop text with a space before it stops."""
    for text in TEXTS:
        tokens = tokenizer.encode(f"the answer{text}").tolist()
        lead = len(tokenizer.encode("the answer"))
        if not 0 < lead < len(tokens):
            continue
        row = _Row(tokenizer, tokens[:lead], len(tokens) - lead, "length", (), None)
        shown = ""
        for token in tokens[lead:]:
            row.take(token)
            assert row.settled().startswith(shown)
            shown = row.settled()
        assert row.text() == continuation(tokenizer, tokens[:lead], tokens[lead:])
        assert row.text().startswith(shown)
    tokens = tokenizer.encode("the answer is 4 is 5 is 6").tolist()
    cut = next(i for i in range(len(tokens)) if tokenizer.decode(tokens[:i]) == "the answer")
    row = _Row(tokenizer, tokens[:cut], 100, "length", (" is 5",), None)
    for token in tokens[cut:]:
        if row.reason is None:
            row.take(token)
    assert row.reason == "stop"
    assert row.text() == " is 4"
