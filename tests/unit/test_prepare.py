"""Preparing data: every row once, in order, the same bytes every time, and nothing where the input is bad."""

from __future__ import annotations

import bz2
import errno
import gzip
import hashlib
import json
import lzma
import os
import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from muonlab.data import formats, prepare, shards
from muonlab.data.examples import Reader
from muonlab.data.prepare import Plan
from muonlab.data.prepared import open_prepared
from muonlab.data.seen import Seen
from muonlab.data.shards import write_shard
from muonlab.data.sources import HubDataset, find_sources
from muonlab.data.template import Template
from muonlab.data.tokenizers import ByteTokenizer, train_bpe
from muonlab.errors import InputError, RunError

ROWS = [{"question": f"What is {i} and {i % 7}?", "answer": f"It is {i + i % 7}: naïve Ω 🎈"} for i in range(60)]
BYTES = ByteTokenizer()
QA = ("question", "answer")


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name, rows=ROWS):
    with open(name, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return name


def made(*sources, out="out", **settings):
    where = {key: settings.pop(key) for key in ("shard_tokens", "say", "on_progress") if key in settings}
    return prepare.prepare(Plan(sources, **settings), out, **where)


def texts(prepared, splits=("train", "validation")):
    """(prompt, answer) of every document, sorted."""
    found = []
    for documents in (getattr(prepared, split) for split in splits):
        for i in range(len(documents)):
            tokens, lead = documents.tokens(i), documents.masked(i)
            assert tokens[-1] == BYTES.end
            found.append((BYTES.decode(tokens[:lead]), BYTES.decode(tokens[lead:])))
    return sorted(found)


def sums(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


EXPECTED = sorted((row["question"] + "\n", row["answer"]) for row in ROWS)


# -- what comes out --------------------------------------------------------------------------------------------------


def test_a_document_is_prompt_answer_and_end_and_the_prompt_is_no_target():
    prepared = made(write("rows.jsonl"), columns=QA)
    assert texts(prepared) == EXPECTED
    for documents in (prepared.train, prepared.validation):
        for i in range(len(documents)):
            lead = documents.tokens(i).tolist().index(ord("\n")) + 1
            assert documents.counts(i).tolist() == [t >= lead for t in range(len(documents.tokens(i)))]
    about = prepared.manifest
    assert about["rows"] == about["train"]["documents"] + about["validation"]["documents"] == 60
    assert about["train"]["targets"] == sum(len(BYTES.encode(a)) + 1 for _, a in texts(prepared, ["train"]))
    assert isinstance(prepared.train.tokens(0).base, np.memmap)


def test_without_a_mask_all_but_the_first_token_is_a_target():
    prepared = made(write("rows.jsonl"), columns=QA, mask="none", held_out=0)
    assert all(prepared.train.counts(i).all() for i in range(60))
    assert prepared.manifest["train"]["targets"] == prepared.manifest["train"]["tokens"] - 60


def test_one_column_is_plain_text():
    prepared = made(write("rows.jsonl", [{"text": f"text {i}"} for i in range(5)]), held_out=0)
    assert texts(prepared) == [("", f"text {i}") for i in range(5)]


def test_the_template_makes_the_prompt_and_the_answer_follows():
    rows = [{"q": "2 + 2?", "hint": "", "a": "4"}, {"q": "3 * 3?", "hint": "not 6", "a": "9"}]
    template = "Q: {{ q }}{% if hint %} ({{ hint }}){% endif %}\nA: "
    prepared = made(write("rows.jsonl", rows), columns=("q", "hint", "a"), template=template, held_out=0)
    assert texts(prepared) == [("Q: 2 + 2?\nA: ", "4"), ("Q: 3 * 3? (not 6)\nA: ", "9")]
    assert prepared.template.prompt(rows[1]) == "Q: 3 * 3? (not 6)\nA: "
    lined = made("rows.jsonl", columns=("q", "hint", "a"), template="{{ prompt }} ->\n", held_out=0, out="lined")
    assert [prompt for prompt, _ in texts(lined)] == ["2 + 2? ->\n", "3 * 3?\nnot 6 ->\n"], "a line end of the template's is kept"
    plain = made("rows.jsonl", columns=("q", "hint", "a"), held_out=0, out="plain")
    assert texts(plain) == [("2 + 2?\n", "4"), ("3 * 3?\nnot 6\n", "9")], "empty columns leave no line"


def test_prompt_and_answer_are_tokenized_apart():
    """So that what generation begins with is what training began with: jointly, a token could reach across."""
    bpe = train_bpe(["ab" * 30, "a b ab"] * 9, 259)
    bpe.save(Path("tok.json"))
    rows = [{"p": "aa", "a": "bb"}]
    prepared = made(write("rows.jsonl", rows), columns=("p", "a"), template="{{ p }}", held_out=0, tokenizer="tok.json")
    tokens, lead = prepared.train.tokens(0), prepared.train.masked(0)
    assert tokens[:lead].tolist() == [bpe.end, *bpe.encode("aa").tolist()]
    assert tokens[lead:-1].tolist() == bpe.encode("bb").tolist()
    assert len(bpe.encode("aabb")) < len(tokens) - 2
    assert prepared.tokenizer.sha256 == bpe.sha256


def test_a_question_never_lands_on_both_sides():
    """Whatever its answer, letter case, spaces, template and tokenizer, and in whichever data set it stands."""
    questions = [f"What  is {i}?" for i in range(200)]
    one = [{"question": q, "answer": f"{k}"} for q in questions for k in range(3)]
    two = [{"question": q.upper().replace("  ", " \t") + "\n", "answer": "other"} for q in reversed(questions)]
    first = made(write("one.jsonl", one), columns=QA, held_out=0.3, out="first")
    second = made(write("two.jsonl", two), columns=QA, held_out=0.3, out="second", template="{{ question }} =", mask="none")
    keys = {}
    for prepared in (first, second):
        for side in ("train", "validation"):
            documents = getattr(prepared, side)
            for i in range(len(documents)):
                number = int("".join(c for c in BYTES.decode(documents.tokens(i)).split("?")[0] if c.isdigit()))
                keys.setdefault(number, set()).add(side)
    assert set(map(len, keys.values())) == {1}
    assert len(keys) == 200
    assert 35 < sum("validation" in sides for sides in keys.values()) < 85


def test_duplicates_are_rows_whose_columns_came_before():
    rows = [*ROWS, *ROWS[:20], {**ROWS[0], "answer": "another"}, {**ROWS[1], "unused": 1}]
    prepared = made(write("rows.jsonl", rows), columns=QA, dedupe=True)
    assert prepared.manifest["duplicates"] == 21
    assert texts(prepared) == sorted([*EXPECTED, (ROWS[0]["question"] + "\n", "another")])
    assert len(texts(made("rows.jsonl", columns=QA, out="all"))) == 82


def test_duplicates_are_found_over_many_batches(monkeypatch):
    monkeypatch.setattr(prepare, "_BATCH_ROWS", 7)
    drawn = [f"row {random.Random(i).randrange(300)}" for i in range(1000)]
    prepared = made(write("rows.jsonl", [{"text": t} for t in drawn]), dedupe=True, held_out=0)
    assert [BYTES.decode(prepared.train.tokens(i)) for i in range(len(prepared.train))] == list(dict.fromkeys(drawn))


def test_a_limit_is_a_number_of_rows_read():
    assert made(write("rows.jsonl"), columns=QA, limit=7).manifest["rows"] == 7
    assert made("rows.jsonl", "rows.jsonl", columns=QA, limit=70, out="two").manifest["rows"] == 70


# -- sources ---------------------------------------------------------------------------------------------------------


def as_csv(name, delimiter=","):
    import csv

    with open(name, "w", newline="", encoding="utf-8-sig") as file:
        table = csv.DictWriter(file, ["question", "answer"], delimiter=delimiter, lineterminator="\r\n")
        table.writeheader()
        table.writerows(ROWS)


def as_json(name, **layout):
    with open(name, "w", encoding="utf-8") as file:
        json.dump(ROWS, file, **layout)


def compressed(name, content):
    if name.endswith(".zst"):
        with pa.output_stream(name, compression="zstd") as file:
            file.write(content)
    else:
        opener = {".gz": gzip, ".bz2": bz2, ".xz": lzma}[name[name.rindex(".") :]]
        with opener.open(name, "wb") as file:
            file.write(content)


WRITERS = {
    "rows.jsonl": write,
    "crlf.jsonl": lambda n: Path(n).write_bytes("\r\n\r\n".join(map(json.dumps, ROWS)).encode()),
    "bom.jsonl": lambda n: Path(n).write_bytes(b"\xef\xbb\xbf" + "\n".join(map(json.dumps, ROWS)).encode()),
    "rows.json": as_json,
    "pretty.json": lambda n: as_json(n, indent=4, ensure_ascii=False),
    "lines.json": write,
    "rows.csv": as_csv,
    "rows.tsv": lambda n: as_csv(n, "\t"),
    "rows.parquet": lambda n: pa.parquet.write_table(pa.Table.from_pylist(ROWS), n, row_group_size=13),
    "rows.jsonl.gz": lambda n: compressed(n, "".join(json.dumps(r) + "\n" for r in ROWS).encode()),
    "rows.json.bz2": lambda n: compressed(n, json.dumps(ROWS).encode()),
    "rows.jsonl.xz": lambda n: compressed(n, "".join(json.dumps(r) + "\n" for r in ROWS).encode()),
    "rows.jsonl.zst": lambda n: compressed(n, "".join(json.dumps(r) + "\n" for r in ROWS).encode()),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_rows(name):
    WRITERS[name](name)
    assert texts(made(name, columns=QA)) == EXPECTED


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("skip", [0, 1, 26, 59, 60])
def test_every_reader_begins_after_any_row(name, skip):
    WRITERS[name](name)
    kind = formats.format_of(Path(name))
    everything = list(formats.DataFile(Path(name), kind).rows(0, QA))
    number = everything[skip - 1][0] if skip else 0
    assert list(formats.DataFile(Path(name), kind).rows(number, QA)) == everything[skip:]


def test_json_is_decoded_row_by_row(monkeypatch):
    """However the chunks fall: also within numbers, escapes and nested rows."""
    rows = [{"text": f'{i} "quoted" \\ \u2028 {{[,]}}', "more": {"a": [1, 2.5e10, None, True]}} for i in range(40)]
    for chunk in (1, 2, 3, 7, 64, 1 << 16):
        monkeypatch.setattr(formats, "_CHUNK", chunk)
        for number, layout in enumerate(({}, {"indent": 1})):
            name = f"{chunk}-{number}.json"
            with open(name, "w") as file:
                json.dump(rows, file, **layout)
            assert [row for _, row in formats.DataFile(Path(name), "json").rows(0, ())] == rows


@pytest.mark.parametrize("after", ['[{"text": "b"}]', '{"text": "b"}', "]", ",", "x", "\x00"])
@pytest.mark.parametrize("chunk", [1, 1 << 16])
def test_what_follows_an_array_is_not_cut_silently(monkeypatch, after, chunk):
    monkeypatch.setattr(formats, "_CHUNK", chunk)
    Path("a.json").write_text('[{"text": "a"}]' + " \r\n\t" * 3)
    assert [row for _, row in formats.DataFile(Path("a.json"), "json").rows(0, ())] == [{"text": "a"}]
    Path("b.json").write_text('[{"text": "a"}] \n\n ' + after)
    with pytest.raises(InputError, match=r"b\.json: expected nothing after the array's end \(row 1\), got"):
        list(formats.DataFile(Path("b.json"), "json").rows(0, ()))


def test_folders_globs_and_several_sources_are_read_in_order():
    os.makedirs("folder/deep/.hidden")
    for i, name in enumerate(["folder/b.jsonl", "folder/a.jsonl", "folder/deep/c.jsonl", "folder/deep/.hidden/d.jsonl", "z.jsonl"]):
        write(name, [{"text": f"{i}"}])
    open("folder/README", "w").close()
    prepared = made("z.jsonl", "folder", "folder/*.jsonl", held_out=0)
    assert [BYTES.decode(prepared.train.tokens(i)) for i in range(6)] == ["4", "1", "0", "2", "1", "0"]


def test_text_files_are_documents_and_long_ones_are_cut_after_a_line(monkeypatch):
    monkeypatch.setattr(formats, "TEXT_BLOCK", 64)
    long = "".join(f"línea {i} 🎈漢\r\n" for i in range(40)) + "漢" * 100
    for name, content in (("a.txt", "\ufeffshort"), ("b.txt", long), ("c.txt", "x" * 64), ("d.txt", "")):
        with open(name, "w", encoding="utf-8", newline="") as file:
            file.write(content)
    prepared = made("a.txt", "b.txt", "c.txt", "d.txt", held_out=0)
    documents = [prepared.train.tokens(i).tolist() for i in range(len(prepared.train))]
    assert documents[0] == [256, *b"short", 256]
    assert documents[-1] == [256, *b"x" * 64, 256]
    blocks = documents[1:-1]
    assert [token for block in blocks for token in block] == [256, *long.encode(), 256], (
        "beginning and end come once, where they are"
    )
    assert all(len(block) <= 65 for block in blocks)
    assert sum(block[-1] == ord("\n") for block in blocks) > 8


def shard(name, *parts):
    """A token shard of byte tokens; a number is a token itself."""
    tokens = [token for part in parts for token in ([part] if isinstance(part, int) else part.encode())]
    write_shard(name, np.array(tokens, dtype=np.uint16))
    return name


def found(*names, **options):
    """Each document as a text, with | for the token that ends one."""
    prepared = made(*names, held_out=0, out=f"out{len(list(Path().glob('out*')))}", **options)
    every = [prepared.train.tokens(i) for i in range(len(prepared.train))]
    return ["".join("|" if token == 256 else chr(token) for token in tokens) for tokens in every]


def test_token_shards_may_have_the_end_before_each_document_or_after():
    """llm.c and modded-nanogpt write it before."""
    assert found(shard("a.bin", 256, "hello world", 256, "second doc")) == ["|hello world|", "|second doc"]
    assert found(shard("b.bin", "hello world", 256, "second doc", 256)) == ["|hello world|", "|second doc|"]
    assert found(shard("c.bin", 256, "one")) == ["|one"]
    assert found(shard("d.bin", "no end at all")) == ["|no end at all"]
    with pytest.raises(InputError, match=r"e\.bin, row 2: a document without a token: an end of document follows another"):
        made(shard("e.bin", 256, "a", 256, 256, "b"))
    assert found("e.bin", skip_bad=True) == ["|a|", "|b"]
    with pytest.raises(InputError, match=r"expected tokens below 257, got 5000: the shard has another tokenizer"):
        made(shard("f.bin", 5000, 1))


STREAM = [256, *"the first", 256, *"second", 256, *"a third, which is long", 256, *"x", 256, *"last"]


@pytest.mark.parametrize("cut", range(len(STREAM) + 1))
def test_shards_that_follow_one_another_are_one_stream(cut):
    """Wherever it is cut, also into a third shard and an empty one, and wherever the preparation is stopped."""
    shard("s_001.bin", *STREAM[:cut])
    shard("s_002.bin")
    shard("s_003.bin", *STREAM[cut : cut + 3])
    shard("s_004.bin", *STREAM[cut + 3 :])
    whole = ["|the first|", "|second|", "|a third, which is long|", "|x|", "|last"]
    assert found("s_*.bin") == whole
    sources = find_sources(["s_*.bin"])
    reader = Reader(sources, Template(("text",)), BYTES, Plan(["s_*.bin"], held_out=0))
    steps = list(reader.batches(0, 0, 0, 1, 1))
    for stop in range(len(steps)):
        again = Reader(find_sources(["s_*.bin"]), Template(("text",)), BYTES, Plan(["s_*.bin"], held_out=0))
        rest = again.batches(steps[stop].source, steps[stop].number, stop + 1, 1, 1)
        texts = [bytes(e.tokens[e.tokens != 256].astype(np.uint8)).decode() for batch in rest for e in batch.examples]
        assert texts == [text.strip("|") for text in whole[stop + 1 :]]


def test_shards_of_different_streams_are_not_joined():
    shard("train_000001.bin", 256, "cut he")
    shard("train_000002.bin", "re", 256, "whole")
    shard("train_000004.bin", "after a gap")
    shard("val_000000.bin", "other", 256)
    assert found("*.bin") == ["|cut here|", "|whole", "|after a gap", "|other|"]
    shard("x.bin", 256, "cut he")
    shard("y.bin", "re")
    assert found("x.bin", "y.bin") == ["|cut here"], "names that say nothing are a stream in the order given"


def test_a_stream_without_ends_has_another_tokenizer(monkeypatch):
    monkeypatch.setattr(shards, "_LONGEST", 10)
    for i in range(3):
        shard(f"s_{i}.bin", "eightbts")
    with pytest.raises(InputError, match=r"s_2\.bin: no document ends in 16 tokens: expected the token 256"):
        made("s_*.bin")


def test_data_sets_saved_by_datasets_are_read():
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk("one")
    datasets.DatasetDict({"train": table, "test": table.select(range(5))}).save_to_disk("several")
    assert texts(made("one", columns=QA, out="a")) == EXPECTED
    assert texts(made("several", columns=QA, out="b")) == EXPECTED
    assert made("several", columns=QA, split="test", out="c").manifest["rows"] == 5
    with pytest.raises(InputError, match="no split 'dev'; there are: train, test"):
        made("several", columns=QA, split="dev", out="d")
    with pytest.raises(InputError, match="there are: question, answer"):
        made("one", columns=("question", "output"), out="d")


def test_a_hub_name_is_loaded_by_datasets_and_streamed(monkeypatch):
    """The real load_dataset call, on a folder that stands for the hub's repository."""
    datasets = pytest.importorskip("datasets")
    os.makedirs("hub/somebody/questions")
    write("hub/somebody/questions/train.jsonl")
    write("hub/somebody/questions/test.jsonl", ROWS[:3])
    real = datasets.load_dataset
    asked = []

    def load(name, *arguments, **options):
        asked.append((name, arguments, options))
        return real(f"hub/{name}", *arguments, **options)

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert texts(made("somebody/questions", columns=QA, out="a")) == EXPECTED
    assert asked == [("somebody/questions", (None,), {"split": "train", "streaming": True})]
    assert made("somebody/questions", columns=QA, split="test", out="b").manifest["rows"] == 3
    with pytest.raises(InputError, match=r"somebody/questions: .*dev"):
        made("somebody/questions", columns=QA, split="dev", out="c")


def test_a_data_set_that_breaks_off_goes_on(monkeypatch):
    """A connection that is lost after hours costs nothing: what is there stays, and the same command goes on."""
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(ROWS)
    broken = [23]

    class Streamed:
        def __init__(self, skipped=0):
            self.skipped = skipped

        def skip(self, n):
            return Streamed(n)

        def __iter__(self):
            for i in range(self.skipped, 60):
                if i in broken:
                    broken.remove(i)
                    raise TimeoutError("the line is dead")
                yield table[i]

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Streamed())
    monkeypatch.setattr(prepare, "_BATCH_ROWS", 4)
    monkeypatch.setattr(prepare, "_SAVE_EVERY", 0.0)
    with pytest.raises(RunError, match=r"somebody/rows, after row 23: the line is dead; the same command goes on"):
        made("somebody/rows", columns=QA)
    heard = []
    assert texts(made("somebody/rows", columns=QA, say=heard.append)) == EXPECTED
    assert heard == ["out: goes on after row 20"]


def test_a_real_data_set_begins_after_any_row(monkeypatch):
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(ROWS).save_to_disk("saved")
    os.makedirs("hub")
    write("hub/train.jsonl")
    real = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda _, *rest, **options: real("hub", *rest, **options))
    for source in (HubDataset("saved", None, None), HubDataset("somebody/rows", None, None)):
        for skip in (0, 7, 59, 60):
            assert [(n, dict(row)) for n, row in source.rows(skip, QA)] == list(enumerate(ROWS[skip:], skip + 1))


# -- the same bytes --------------------------------------------------------------------------------------------------


def test_two_runs_give_equal_bytes_and_copies_too():
    write("rows.jsonl")
    made("rows.jsonl", columns=QA, out="a", dedupe=True)
    os.utime("rows.jsonl", (1, 1))
    made("rows.jsonl", columns=QA, out="b", dedupe=True)
    first, second = (sums(open_prepared(name).folder) for name in "ab")
    assert first == second
    assert "manifest.json" in first
    for trace in (".lock", "progress.json", "seen.u64"):  # of a kill at the very end
        Path("a", trace).touch()
    assert (
        made("rows.jsonl", columns=QA, out="a", dedupe=True).sha256
        == hashlib.sha256(Path("b/manifest.json").read_bytes()).hexdigest()
    )
    first = sums(Path("a"))
    assert not {".lock", "progress.json", "seen.u64"} & set(first)


def test_the_format_is_part_of_what_is_prepared():
    """The same file read as text is another preparation, whether the first was finished or stopped."""
    write("rows", [{"text": "a"}])
    made("rows", kind="jsonl", held_out=0)
    with pytest.raises(InputError, match="holds another preparation"):
        made("rows", kind="text", held_out=0)

    def stop(_):
        raise Killed

    with pytest.raises(Killed):
        made("rows", kind="jsonl", held_out=0, on_progress=stop, out="stopped")
    with pytest.raises(InputError, match="holds another preparation"):
        made("rows", kind="text", held_out=0, out="stopped")


def test_other_content_of_the_same_name_size_and_time_is_another_preparation():
    os.mkdir("one")
    os.mkdir("two")
    for folder, text in (("one", "a"), ("two", "b")):
        write(f"{folder}/rows.jsonl", [{"text": text}])
        os.utime(f"{folder}/rows.jsonl", (1, 1))
    prepared = made("one/rows.jsonl", held_out=0)
    content = Path("one/rows.jsonl").read_bytes()
    assert prepared.manifest["sources"][0]["sha256"] == hashlib.sha256(content).hexdigest()
    with pytest.raises(InputError, match=r"another preparation \(sources: two/rows.jsonl has not the content that was prepared"):
        made("two/rows.jsonl", held_out=0)
    Path("two/rows.jsonl").write_bytes(content)
    heard = []
    assert made("two/rows.jsonl", held_out=0, say=heard.append).sha256 == prepared.sha256
    assert heard == ["out: already prepared"]


def test_other_content_of_the_same_name_size_and_time_does_not_go_on_with_what_was_stopped():
    for folder, text in (("one", "a"), ("two", "b")):
        os.mkdir(folder)
        write(f"{folder}/rows.jsonl", [{"text": text}])
        os.utime(f"{folder}/rows.jsonl", (1, 1))

    def stop(_):
        raise Killed

    with pytest.raises(Killed):
        made("one/rows.jsonl", held_out=0, on_progress=stop)
    with pytest.raises(InputError, match="holds another preparation"):
        made("two/rows.jsonl", held_out=0)
    assert texts(made("one/rows.jsonl", held_out=0)) == [("", "a")]


def test_a_file_that_changes_while_it_is_read_is_refused_and_nothing_is_left():
    write("rows.jsonl")

    def append(_):
        with open("rows.jsonl", "a") as file:
            file.write('{"question": "late", "answer": "late"}\n')

    with pytest.raises(InputError, match=r"rows\.jsonl: changed while it was read"):
        made("rows.jsonl", columns=QA, on_progress=append)
    assert not Path("out").exists()


def test_hashes_that_were_saved_and_forgotten_come_again(tmp_path):
    seen = Seen(tmp_path / "seen", 0)
    assert seen.first(np.array([5, 3, 5, 9], np.uint64)).tolist() == [True, True, False, True]
    count = seen.save()
    seen.first(np.array([1, 2], np.uint64))
    seen.save()
    again = Seen(tmp_path / "seen", count)  # killed before progress.json knew of 1 and 2
    assert again.first(np.array([9, 2, 7], np.uint64)).tolist() == [False, True, True]
    last = Seen(tmp_path / "seen", again.save())
    assert last.first(np.array([7, 1, 2, 3], np.uint64)).tolist() == [False, True, False, False]


SHARED = Path(os.environ.get("MUONLAB_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))


@pytest.mark.skipif(not (SHARED / "gsm8k_train_400.jsonl").exists(), reason="needs ../shared/data (400 problems of GSM8K)")
def test_gsm8k_is_prepared_whole_and_the_same_twice():
    source = str(SHARED / "gsm8k_train_400.jsonl")
    first, second = (made(source, columns=QA, out=name) for name in "ab")
    assert first.manifest["rows"] == len(first.train) + len(first.validation) == 400
    assert sums(first.folder) == sums(second.folder)
    rows = [json.loads(line) for line in Path(source).read_text().splitlines()]
    assert texts(first) == sorted((row["question"] + "\n", row["answer"]) for row in rows)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet", "pretty.json", "rows.jsonl.gz"])
@pytest.mark.parametrize("batches", [0, 1, 4, 9])
def test_what_was_stopped_goes_on_to_the_same_bytes(monkeypatch, name, batches):
    """Stopped after any batch, with what was written after the last save still in the files. (With a real SIGKILL:
    tests/cli/test_data_commands.py.)"""
    monkeypatch.setattr(prepare, "_BATCH_ROWS", 6)
    monkeypatch.setattr(prepare, "_BATCH_CHARACTERS", 230)
    WRITERS[name](name)
    settings = {"columns": QA, "dedupe": True, "held_out": 0.3, "shard_tokens": 400}
    made(name, name, out="whole", **settings)
    done = []

    def stop(progress):
        done.append(progress)
        monkeypatch.setattr(prepare, "_SAVE_EVERY", 0.0 if len(done) < batches else 1e9)
        if len(done) > batches + 2:
            raise Killed

    monkeypatch.setattr(prepare, "_SAVE_EVERY", 0.0 if batches else 1e9)
    with pytest.raises(Killed):
        made(name, name, on_progress=stop, **settings)
    with pytest.raises(InputError, match="not finished"):
        open_prepared("out")
    heard = []
    made(name, name, say=heard.append, **settings)
    assert (heard == []) == (batches == 0), heard
    assert sums(open_prepared("out").folder) == sums(open_prepared("whole").folder)
    assert len(open_prepared("out").manifest["train"]["shards"]) > 3


def test_a_full_disk_is_said_and_the_same_command_goes_on(monkeypatch):
    """A limit on the size of a file stands for the disk: the system's own error, in the middle of a write."""
    import resource

    monkeypatch.setattr(prepare, "_BATCH_ROWS", 6)
    monkeypatch.setattr(prepare, "_SAVE_EVERY", 0.0)
    write("rows.jsonl")
    made("rows.jsonl", columns=QA, out="whole")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size, left in ((200, "progress.json.tmp"), (4000, "progress.json")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            with pytest.raises(RunError, match="out: cannot be written: File too large; the same command goes on from there"):
                made("rows.jsonl", columns=QA)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert Path("out", left).exists()
    heard = []
    assert sums(made("rows.jsonl", columns=QA, say=heard.append).folder) == sums(Path("whole"))
    assert "goes on after row" in heard[0]


def test_a_disk_without_room_for_the_folder_is_no_bad_input(monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write("rows.jsonl")
    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(RunError, match="--out out: cannot be written: No space left on device"):
        made("rows.jsonl", columns=QA)


def test_a_stopped_preparation_that_lacks_a_file_says_which():
    write("rows.jsonl")

    def stop(_):
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "_SAVE_EVERY", 0.0)
        with pytest.raises(Killed):
            made("rows.jsonl", columns=QA, on_progress=stop)
    Path("out/train-00000.index").unlink()
    with pytest.raises(InputError, match=r"out: damaged: out/train-00000\.index is missing; delete the folder"):
        made("rows.jsonl", columns=QA)
