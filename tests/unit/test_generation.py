"""What a model writes after prompts: against a plain loop over full forward passes, and of models that say what they are told."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from muonlab.data.tokenizers import ByteTokenizer, train_bpe
from muonlab.errors import InputError, RunError
from muonlab.evaluate import generation
from muonlab.evaluate.generation import TextGenerator, sample
from muonlab.models.family import Model, families
from muonlab.models.gpt import GPTConfig
from muonlab.streams import stream_seed
from tests.contract.test_families import moved, smallest

CONTEXT = 64
END = ByteTokenizer.end
PROMPTS = ["How many?", "a", "", "Thirteen times eleven is", "a", "ünïcödé", "b" * 40]


def tiny(vocabulary=257, seed=0):
    model = GPTConfig(layers=2, width=16, head_width=8, context=CONTEXT).build(vocabulary)
    model.initialize(lambda name: torch.Generator().manual_seed(seed + len(name)))
    with torch.no_grad():
        for p in model.parameters():  # heads begin at zero
            p += 0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
    return model.eval()


class Parrot(Model):
    """Says the texts that it is told: after a prompt of two tokens that begins with the letter A the first, with B the second …"""

    def __init__(self, texts, tokenizer=ByteTokenizer, vocabulary=None):
        super().__init__()
        self.vocab_size = vocabulary or tokenizer.vocab_size
        self.scripts = [[*tokenizer().encode(text), tokenizer.end] if isinstance(text, str) else text for text in texts]
        self.nothing = torch.nn.Parameter(torch.zeros(()))
        self.reads = []

    def extend(self, tokens, states=None, lengths=None):
        """states: (B, 2): which text, how many tokens were read."""
        self.reads.append(tuple(tokens.shape))
        rows, columns = tokens.shape
        which = tokens[:, 0] - ord("A") if states is None else states[:, 0]
        read = torch.zeros(rows, dtype=torch.int64) if states is None else states[:, 1]
        logits = torch.zeros(rows, columns, self.vocab_size)
        for b in range(rows):
            script = self.scripts[which[b]]
            for t in range(columns):
                at = int(read[b]) + t - 1
                logits[b, t, script[at] if 0 <= at < len(script) else ord("?")] = 50.0
        return logits, torch.stack([which, read + (columns if lengths is None else lengths)], dim=1)


def parrot(*texts, context=None, **rest):
    model = Parrot(texts, **rest)
    model.longest = context
    return TextGenerator(model, ByteTokenizer())


@torch.no_grad()
def plain(model, prompt, many, choose):
    """One row, one full forward pass for each token, to the end or the context's: what generation is."""
    tokens = list(prompt.encode()) or [END]
    written = []
    while len(written) < many and len(tokens) <= CONTEXT:
        written.append(choose(model(torch.tensor([tokens]))[0, -1, :257]))
        tokens.append(written[-1])
        if written[-1] == END:
            break
    return ByteTokenizer().decode(written)


# -- the same as full forward passes --------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3, 64])
@pytest.mark.parametrize("at_a_time", [1 << 26, 5 * 257])
def test_the_likeliest_text_is_that_of_full_forward_passes(monkeypatch, batch, at_a_time):
    monkeypatch.setattr(generation, "_LOGITS_AT_A_TIME", at_a_time)  # also where prompts are read piece by piece
    model = tiny()
    expected = [plain(model, prompt, 40, lambda logits: int(logits.argmax())) for prompt in PROMPTS]
    writer = TextGenerator(model, ByteTokenizer(), batch=batch)
    assert writer.generate(PROMPTS, max_tokens=40) == expected
    assert len(set(expected)) > 3


@pytest.mark.parametrize("family", families())
def test_every_family_writes_what_its_forward_pass_finds_likeliest(family):
    model = smallest()[family].model.model_copy(update={"context": CONTEXT}).build(257)
    model.initialize(lambda name: torch.Generator().manual_seed(len(name)))
    model = moved(model).eval()
    if type(model).extend is Model.extend:
        pytest.skip("this family does not generate")
    prompts = ["How many?", "a", "Thirteen times eleven"]
    expected = [plain(model, prompt, 12, lambda logits: int(logits.argmax())) for prompt in prompts]
    assert TextGenerator(model, ByteTokenizer()).generate(prompts, max_tokens=12) == expected
    assert len(set(expected)) > 1


def drawn_in_full(prompt, temperature, top_p, seed, occurrence=0):
    """Inverse transform sampling in plain Python, over the nucleus written as its paper has it."""
    tokens = tuple(prompt.encode()) or (END,)
    random = np.random.Generator(np.random.PCG64(stream_seed(seed, "row", tokens, occurrence)))

    def choose(logits):
        chances = (logits.double() / temperature).softmax(-1).tolist()
        tokens = list(range(257))
        if top_p < 1:
            tokens.sort(key=lambda token: -chances[token])
            mass, kept = 0.0, []
            for token in tokens:
                if mass >= top_p:
                    break
                kept.append(token)
                mass += chances[token]
            tokens = kept
        target, total = random.random() * sum(chances[token] for token in tokens), 0.0
        for token in tokens:
            total += chances[token]
            if total > target:
                return token
        raise AssertionError

    return choose


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.8), (3.0, 0.3)])
def test_each_row_draws_from_a_stream_of_its_own(temperature, top_p):
    model = tiny()
    occurrences = [PROMPTS[:i].count(prompt) for i, prompt in enumerate(PROMPTS)]
    expected = [
        plain(model, prompt, 20, drawn_in_full(prompt, temperature, top_p, 3, before))
        for prompt, before in zip(PROMPTS, occurrences, strict=True)
    ]
    how = {"max_tokens": 20, "temperature": temperature, "top_p": top_p, "seed": 3}
    for batch in (1, 2, 64):
        assert TextGenerator(model, ByteTokenizer(), batch=batch).generate(PROMPTS, **how) == expected
    writer = TextGenerator(model, ByteTokenizer())
    assert writer.generate(PROMPTS[3:4], **how) == expected[3:4], "whatever stands beside it"
    assert writer.generate(PROMPTS, **{**how, "seed": 4}) != expected
    assert expected[1] != expected[4], "the same prompt again is another sample"


def test_a_beginning_that_all_prompts_share_is_read_once():
    shown = "Question: what? Answer: that.\n\n"
    prompts = [f"{shown}Q{i}" for i in range(5)]
    model = tiny()
    expected = [plain(model, prompt, 10, lambda logits: int(logits.argmax())) for prompt in prompts]
    shapes = []
    extend = model.extend
    model.extend = lambda tokens, *rest: shapes.append(tuple(tokens.shape)) or extend(tokens, *rest)
    assert TextGenerator(model, ByteTokenizer()).generate(prompts, max_tokens=10) == expected
    assert shapes[:2] == [(1, len(shown) + 1), (5, 1)]
    assert TextGenerator(model, ByteTokenizer()).generate([prompts[0]] * 3, max_tokens=10) == [expected[0]] * 3


# -- drawing --------------------------------------------------------------------------------------------------------


def test_tokens_are_drawn_in_their_proportions():
    logits = torch.tensor([[0.3, -1.0, 2.0, 0.0, -9.0]])
    n = 20_000
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    for temperature in (0.5, 1.0, 2.0):
        drawn = sample(logits.expand(n, -1), uniform, temperature=temperature).bincount(minlength=5) / n
        torch.testing.assert_close(drawn.double(), (logits[0].double() / temperature).softmax(-1), atol=2 / n, rtol=0)


def test_the_nucleus_is_the_fewest_tokens_that_reach_top_p():
    logits = torch.tensor([0.1, 0.4, 0.2, 0.3]).log()[None]
    uniform = torch.linspace(0, 1 - 1e-9, 1000, dtype=torch.float64)
    for top_p, expected in [(0.39, {1}), (0.41, {1, 3}), (0.69, {1, 3}), (0.71, {1, 2, 3}), (0.95, {0, 1, 2, 3})]:
        drawn = sample(logits.expand(1000, -1), uniform, temperature=1.0, top_p=top_p)
        assert set(drawn.tolist()) == expected
    half = sample(logits.expand(1000, -1), uniform, temperature=1.0, top_p=0.6)
    assert abs((half == 1).double().mean() - 4 / 7) < 0.002


def test_rounding_never_leads_to_a_token_without_a_chance():
    logits = torch.full((1, 300), -torch.inf)
    logits[0, 5:8] = torch.randn(3, generator=torch.Generator().manual_seed(0))
    largest = torch.tensor([np.nextafter(1.0, 0.0)], dtype=torch.float64)
    for seed in range(2000):
        many = 3 * torch.randn(1, 40, generator=torch.Generator().manual_seed(seed))
        many[0, 30:] = -torch.inf
        assert sample(many, largest, temperature=1.0).item() < 30
    assert sample(logits, largest, temperature=1.0).item() == 7
    assert 5 <= sample(logits, largest, temperature=1.0, top_p=0.999999).item() <= 7
    assert sample(logits, torch.zeros(1, dtype=torch.float64), temperature=1.0).item() == 5
    assert sample(torch.tensor([[1.0, 1.1, 0.0]]), largest, temperature=1e-300).item() == 1


# -- where a text ends ----------------------------------------------------------------------------------------------


def test_a_text_ends_with_the_document_a_stop_text_the_tokens_or_the_context():
    writer = parrot("one.", "two; three", "four" * 50, context=40)
    found = writer.complete(["A\n", "B\n", "C\n"], max_tokens=60, stop=(";", "!"))
    assert [(one.text, one.tokens, one.reason) for one in found] == [
        ("one.", 5, "end"),
        ("two", 4, "stop"),
        ("four" * 9 + "fou", 39, "context"),  # the last token is written, and not read
    ]
    (cut,) = writer.complete(["C\n"], max_tokens=3)
    assert (cut.text, cut.reason) == ("fou", "max_tokens")
    assert writer.work.reasons == {"end": 1, "stop": 1, "context": 1, "max_tokens": 1}
    assert (writer.work.prompts, writer.work.prompt_tokens, writer.work.tokens) == (4, 8, 5 + 4 + 39 + 3)
    assert writer.work.tokens_per_second > 0


def test_the_first_stop_text_counts_wherever_its_letters_come_from():
    texts = ["x\n\nQuestion: why?", "Quest", "Question", "aé<|x|>é", "QuQuestion:"]
    writer = parrot(*texts)
    found = writer.generate(["A\n", "B\n", "C\n", "D\n", "E\n"], max_tokens=60, stop=("Question:", "<|x|>", "\n\n"))
    assert found == ["x", "Quest", "Question", "aé", "Qu"]
    assert parrot("xabcd").generate(["A\n"], max_tokens=9, stop=("cd", "abcd")) == ["x"]


def test_tokens_of_several_letters_may_hold_a_stop_text():
    pytest.importorskip("tokenizers")
    tokenizer = train_bpe(["the end; the end; the end;"] * 50, 300)
    text = "at the end; the end; x"
    script = [*tokenizer.encode(text).tolist(), tokenizer.end]
    assert len(script) <= len(text) / 2
    writer = TextGenerator(Parrot([script], vocabulary=tokenizer.vocab_size), tokenizer)
    prompt = tokenizer.decode([ord("A")])  # any text of one token
    writer.model.extend = lambda tokens, states=None, lengths=None: follow(script, tokenizer.vocab_size, states)
    assert writer.generate([prompt], max_tokens=50, stop=("d; t",)) == ["at the en"]


def follow(script, vocabulary, states):
    at = 0 if states is None else int(states[0, 0])
    logits = torch.zeros(1, 1, vocabulary)
    logits[0, 0, script[at]] = 9.0
    return logits, torch.tensor([[at + 1]])


def test_rows_that_have_ended_are_not_computed_any_more():
    writer = parrot("a", "bbbb", "cc")
    writer.generate(["A\n", "B\n", "C\n"], max_tokens=60)
    assert writer.model.reads == [(3, 2), (3, 1), (2, 1), (1, 1), (1, 1)]


def test_a_prompt_without_room_is_left_alone():
    writer = parrot("a", context=10)
    full, just, fits = writer.complete(["A" * 11, "A" * 10, "A\n"], max_tokens=5)
    assert (full.text, full.tokens, full.reason) == ("", 0, "context")
    assert (just.tokens, just.reason) == (1, "context")
    assert fits.reason == "end"
    assert writer.work.too_long == 1


def test_an_empty_prompt_begins_a_document():
    model = tiny()
    with torch.no_grad():
        first = int(model(torch.tensor([[END]]))[0, -1].argmax())
    assert TextGenerator(model, ByteTokenizer()).generate([""], max_tokens=1) == [ByteTokenizer().decode([first])]
    assert TextGenerator(model, ByteTokenizer()).generate([], max_tokens=1) == []


def test_rows_of_the_head_beyond_the_tokenizer_are_never_chosen():
    writer = parrot([300, 301], vocabulary=320)
    assert writer.generate(["A\n"], max_tokens=2) == ["\0\0"]
    drawn = writer.complete(["A\n"], max_tokens=50, temperature=5.0)
    assert drawn[0].tokens >= 1


def test_logits_that_are_not_finite_are_an_error():
    model = tiny()
    with torch.no_grad():
        model.embed.weight[ord("b")] = torch.nan
    with pytest.raises(RunError, match="logits are not finite"):
        TextGenerator(model, ByteTokenizer()).generate(["ab"], max_tokens=5)


def test_a_prompt_that_is_no_text_is_refused():
    with pytest.raises(InputError, match="expected a prompt of Unicode text"):
        TextGenerator(tiny(), ByteTokenizer()).generate(["\udce4"], max_tokens=5)


# -- streaming ------------------------------------------------------------------------------------------------------


def test_a_text_comes_in_pieces_that_stay():
    text = "Zwölf 🐎 und\n\nQuiz ist Question: nicht"
    writer = parrot(text)
    pieces = []
    done = writer.stream("A\n", pieces.append, max_tokens=100, stop=("Question:",))
    assert "".join(pieces) == done.text == "Zwölf 🐎 und\n\nQuiz ist "
    assert done.reason == "stop"
    assert "ö" in pieces
    assert "🐎" in pieces, "whole characters, in one piece"
    assert "Qui" in pieces, "held back while it may become a stop text"


def test_streaming_says_what_a_batch_says():
    for seed in range(5):
        writer, pieces = TextGenerator(tiny(), ByteTokenizer()), []
        how = {"max_tokens": 30, "temperature": 1.0, "seed": seed}
        done = writer.stream("Hm", pieces.append, **how)
        assert [done] == writer.complete(["Hm"], **how)
        assert "".join(pieces) == done.text
        assert len(pieces) > 5
    cut = []
    assert parrot("ab🐎").stream("A\n", cut.append, max_tokens=4).reason == "max_tokens"
    assert "".join(cut) == "ab\ufffd", "a character that was cut in half is shown at last"
