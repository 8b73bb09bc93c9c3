"""`muonlab data`: prepared by one command, killed and gone on, shown; bad input gets one clear message and leaves nothing."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUESTIONS = ROOT / "tests/data/questions.jsonl"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def sums(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())}


def test_prepare_says_what_it_made_and_show_shows_it(muonlab):
    command = ("data", "prepare", QUESTIONS, "--columns", "question,answer", "--held-out", "0.2", "--out", "d")
    code, out, err = muonlab(*command)
    assert code == 0, err
    assert "40 rows; tokenizer bytes" in out
    made = json.loads(Path("d/manifest.json").read_text())
    assert f"train: {made['train']['documents']:,} documents, {made['train']['tokens']:,} tokens" in out
    code, out, err = muonlab(*command, "--json")
    assert code == 0
    assert "already prepared" in err
    assert json.loads(out)["files"] == made["files"]
    code, out, _ = muonlab("data", "show", "d", "--context", "256", "--examples", "1", "--verify")
    assert code == 0
    assert "packed for a context of 256:" in out
    assert "How many pages is that in all?\n⟧Tuesday: 14 * 2 = <<14*2=28>>28 pages." in out
    found = json.loads(muonlab("data", "show", "d", "--context", "64", "--json")[1])
    assert found["packing"]["cut"] == 30
    assert len(found["examples"]) == 3


def test_a_template_is_a_text_or_a_file(muonlab):
    Path("p.jinja").write_text("Question: {{ question }}\nAnswer: ")
    for i, template in enumerate(("p.jinja", "Question: {{ question }}\nAnswer: ")):
        assert (
            muonlab("data", "prepare", QUESTIONS, "--columns", "question,answer", "--template", template, "--out", f"d{i}")[0] == 0
        )
    assert sums("d0") == sums("d1")


def test_a_tokenizer_is_trained_and_used(muonlab):
    pytest.importorskip("tokenizers")
    train = ("data", "tokenizer", QUESTIONS, "--columns", "question,answer", "--vocab-size", "400")
    assert muonlab(*train, "--out", "tok/one.json")[1] == "tok/one.json: 400 tokens\n"
    assert muonlab(*train, "--out", "two.json")[0] == 0
    assert Path("tok/one.json").read_bytes() == Path("two.json").read_bytes()
    code, out, _ = muonlab("data", "prepare", QUESTIONS, "--columns", "question,answer", "--tokenizer", "two.json", "--out", "d")
    assert code == 0
    assert "tokenizer two.json" in out
    code, _, err = muonlab(*train, "--out", "two.json")
    assert code == 2
    assert "is already there" in err


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["empty.jsonl", "empty.txt"], "empty.jsonl, empty.txt: no text to train a tokenizer on"),
        ([], "muonlab data tokenizer: expected files, a folder or a data set's name, got none"),
    ],
)
def test_no_tokenizer_is_trained_on_nothing(muonlab, sources, message):
    pytest.importorskip("tokenizers")
    for name in sources:
        Path(name).touch()
    code, out, err = muonlab("data", "tokenizer", *sources, "--vocab-size", "300", "--out", "new/t.json")
    assert (code, out) == (2, "")
    assert message in err
    assert sorted(path.name for path in Path().iterdir()) == sources


@pytest.mark.slow
def test_killed_again_and_again_it_ends_with_the_same_bytes():
    """A real SIGKILL, after the first save, after later ones, and between two."""
    rows = [{"question": f"How much is {i} + {i % 97}? " * 3, "answer": f"{i + i % 97} " * 9} for i in range(20_000)]
    with gzip.open("rows.jsonl.gz", "wt", compresslevel=1) as file:
        file.writelines(json.dumps(row) + "\n" for row in [*rows, *rows[:3000]])
    command = [
        sys.executable,
        "-m",
        "muonlab",
        "data",
        "prepare",
        "rows.jsonl.gz",
        "--columns",
        "question,answer",
        "--dedupe",
        "--out",
    ]
    every_batch = "import muonlab.data.prepare as p, sys; p._SAVE_EVERY = 0; from muonlab.cli import main; main()"
    often = [command[0], "-c", every_batch, *command[3:]]  # saves after every batch, so that a kill falls beside a save
    subprocess.run([*often, "whole"], check=True, capture_output=True)
    rows_at, went_on = [0], 0
    for _ in range(4):
        process = subprocess.Popen([*often, "parts"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        while process.poll() is None and rows_saved("parts") < rows_at[-1] + 3000:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        went_on += "goes on after row" in (process.communicate()[1] or "")
        rows_at.append(rows_saved("parts"))
        assert process.returncode == -signal.SIGKILL
    assert rows_at == sorted(set(rows_at))
    assert went_on == 3
    last = subprocess.run([*command, "parts"], check=True, capture_output=True, text=True)
    assert f"goes on after row {rows_at[-1]:,}" in last.stderr
    assert sums("parts") == sums("whole")
    about = json.loads(Path("parts/manifest.json").read_text())
    assert (about["rows"], about["duplicates"]) == (23_000, 3_000)
    assert about["train"]["documents"] + about["validation"]["documents"] == 20_000


def rows_saved(folder):
    try:
        return json.loads(Path(folder, "progress.json").read_text())["state"]["rows"]
    except FileNotFoundError:
        return 0


def test_two_at_a_time_are_refused(muonlab):
    import fcntl

    Path("d").mkdir()
    with open("d/.lock", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        code, _, err = muonlab("data", "prepare", QUESTIONS, "--columns", "question,answer", "--out", "d")
    assert code == 2
    assert "another process is preparing here" in err


def test_what_it_goes_on_with_must_be_the_same(muonlab):
    Path("rows.jsonl").write_text(json.dumps({"text": "a"}) + "\n")
    assert muonlab("data", "prepare", "rows.jsonl", "--out", "d", "--held-out", "0")[0] == 0
    code, _, err = muonlab("data", "prepare", "rows.jsonl", "--out", "d", "--held-out", "0.5")
    assert code == 2
    assert "holds another preparation (held_out: 0.0 there, 0.5 now)" in err
    Path("rows.jsonl").write_text(json.dumps({"text": "another"}) + "\n")
    assert "holds another preparation (sources:" in muonlab("data", "prepare", "rows.jsonl", "--out", "d", "--held-out", "0")[2]


GOOD = {"question": "1 + 1?", "answer": "2"}


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


BAD = {
    "missing column": (lines(GOOD), ["--columns", "question,output"], "expected a column 'output'; there are: question, answer"),
    "no columns named": (lines(GOOD), [], "line 1: expected a column 'text'; there are: question, answer"),
    "mixed types": (lines(GOOD, {**GOOD, "answer": 2}), [], "line 2: expected text in column 'answer', got int (2); mend it, or"),
    "null": (lines(GOOD, {**GOOD, "question": None}), [], "line 2: expected text in column 'question', got none"),
    "empty answer": (lines(GOOD, {**GOOD, "answer": ""}), [], "line 2: 'answer' is empty; mend it, or leave"),
    "empty prompt": (lines({**GOOD, "question": ""}), [], "line 1: the prompt (question) is empty"),
    "half a surrogate": (b'{"question": "\\ud83c", "answer": "x"}\n', [], "line 1: expected whole Unicode characters, got U+D83C"),
    "invalid UTF-8": (lines(GOOD) + b'{"question": "\xff", "answer": "2"}\n', [], "line 2: expected UTF-8, got the byte 0xff"),
    "not JSON": (lines(GOOD) + b"{nope\n", [], "line 2: not JSON"),
    "no object": (b"[1]\n", [], "line 1: expected an object"),
    "no rows": (b"\n\r\n", [], "no document comes of it (no rows)"),
    "all left out": (lines({**GOOD, "answer": ""}), ["--skip-bad"], "no document comes of it (1 left out: empty answer)"),
    "a column twice": (lines(GOOD), ["--columns", "question,question"], "--columns: expected names of columns, each once"),
    "no column": (lines(GOOD), ["--columns", ","], "--columns: expected names of columns"),
    "template syntax": (lines(GOOD), ["--template", "{{ question"], "--template: not a Jinja template"),
    "template variable": (lines(GOOD), ["--template", "{{ qestion }}"], "unknown variable 'qestion'; did you mean 'question'?"),
    "template answer": (lines(GOOD), ["--template", "{{ question }} {{ answer }}"], "'answer' is the answer, which follows"),
    "template constant": (lines(GOOD), ["--template", "Solve: {}"], "uses no column"),
    "template escape": (lines(GOOD), ["--template", "{{ question.__class__.__mro__ }}"], "access to attribute '__class__'"),
    "template fails": (lines(GOOD), ["--template", "{{ question / 2 }}"], "--template: unsupported operand"),
    "mask of a text": (lines(GOOD), ["--columns", "question", "--mask", "prompt"], "one column (question) has no prompt"),
    "template of a text": (lines(GOOD), ["--columns", "question", "--template", "{{ q }}"], "one column (question) has none"),
    "held out": (lines(GOOD), ["--held-out", "1"], "--held-out: expected a share of at least 0 and below 1, got 1"),
    "limit": (lines(GOOD), ["--limit", "0"], "--limit: expected a number of at least 1, got 0"),
    "split of a file": (lines(GOOD), ["--split", "test"], "--split: rows.jsonl is a file or a folder of files, and has none"),
    "tokenizer": (lines(GOOD), ["--tokenizer", "gone.json"], "tokenizer: cannot read gone.json"),
    "format": (lines(GOOD), ["--format", "csv"], "rows.jsonl, row 1: expected 2 fields as in the header, got 3"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_clear_message_and_leaves_nothing(muonlab, case):
    content, arguments, message = BAD[case]
    Path("rows.jsonl").write_bytes(content + (b"1,2,3\n" if case == "format" else b""))
    if "--columns" not in arguments and case != "no columns named":
        arguments = [*arguments, "--columns", "question,answer"]
    code, out, err = muonlab("data", "prepare", "rows.jsonl", *arguments, "--out", "new/d")
    assert code == 2, err
    assert message in err
    assert "Traceback" not in err
    assert err.count("\n") == 1
    assert out == ""
    assert [path.name for path in Path().iterdir()] == ["rows.jsonl"]


def cut(data):
    return data[: len(data) // 2]


FILES = {
    "cut.jsonl.gz": (cut(gzip.compress(lines(*[GOOD] * 99))), "cut.jsonl.gz: cut short"),
    "no.jsonl.gz": (lines(GOOD), "no.jsonl.gz: not a whole .gz file"),
    "no.jsonl.bz2": (lines(GOOD), "no.jsonl.bz2: not a whole .bz2 file"),
    "no.jsonl.xz": (lines(GOOD), "no.jsonl.xz: not a whole .xz file"),
    "no.jsonl.zst": (lines(GOOD), "no.jsonl.zst: not a whole .zst file"),
    "no.parquet": (lines(GOOD), "no.parquet: not a whole Parquet file"),
    "cut.json": (b'[{"question": "a", "answer": "b"}, {"question"', "cut.json, row 2: not JSON"),
    "open.json": (b'[{"question": "a", "answer": "b"}', "open.json, row 2: not JSON (the file ends before its array does)"),
    "bad.json": (b'[{"question": "a" "answer": "b"}' + b" " * 10**6, "bad.json, row 1: not JSON (Expecting ',' delimiter"),
    "latin.csv": (b"question,answer\nna\xefve,x\n", "latin.csv: expected UTF-8, got the byte 0xef"),
    "quote.csv": (b'question,answer\n"open,x\n', "quote.csv, row 1: not CSV"),
    "twice.csv": (b"question,question\na,b\n", "twice.csv: expected a header of names, each once"),
    "short.bin": (b"1234", "short.bin: expected a token shard"),
    "data.pdf": (b"%PDF", "data.pdf: unknown format; expected a name that ends with .jsonl"),
    "folder/readme": (b"nothing", "folder: holds no data; expected files that end with .jsonl"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_files_get_one_clear_message_and_leave_nothing(muonlab, name):
    content, message = FILES[name]
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_bytes(content)
    columns = [] if name.endswith(".bin") else ["--columns", "question,answer"]
    code, _, err = muonlab("data", "prepare", Path(name).parts[0], *columns, "--out", "d")
    assert code == 2, err
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in Path().iterdir()] == [Path(name).parts[0]]


def test_what_is_not_there_is_named(muonlab):
    for source, message in (("gone.jsonl", "no file matches 'gone.jsonl'"), ("*.jsonl", "no file matches '*.jsonl'")):
        assert message in muonlab("data", "prepare", source, "--out", "d")[2]
    code, _, err = muonlab("data", "prepare", "--out", "d")
    assert code == 2
    assert "expected files, a folder or a data set's name, got none" in err


def test_a_hub_name_without_the_extra_says_what_to_install(muonlab, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    code, _, err = muonlab("data", "prepare", "openai/gsm8k", "--out", "d")
    assert code == 2
    assert 'needs the package datasets, which is not installed: pip install "muonlab[hf]"' in err
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    code, _, err = muonlab("data", "tokenizer", QUESTIONS, "--columns", "question", "--vocab-size", "300", "--out", "t.json")
    assert code == 2
    assert 'needs the package tokenizers, which is not installed: pip install "muonlab[hf]"' in err


@pytest.mark.parametrize("there", ["d", "d/notes.txt"])
def test_an_out_that_holds_something_else_is_left_alone(muonlab, there):
    Path(there).parent.mkdir(exist_ok=True)
    Path(there).write_text("mine")
    code, _, err = muonlab("data", "prepare", QUESTIONS, "--columns", "question,answer", "--out", "d")
    assert code == 2
    assert "got a file" in err or "holds something else (notes.txt, ...)" in err
    assert Path(there).read_text() == "mine"
    assert len(list(Path().rglob("*"))) == len(Path(there).parts)


def test_rows_left_out_are_counted_by_reason(muonlab):
    Path("rows.jsonl").write_bytes(lines(GOOD, {**GOOD, "answer": ""}, {"question": "x"}, {**GOOD, "answer": 7}, GOOD))
    code, out, _ = muonlab("data", "prepare", "rows.jsonl", "--columns", "question,answer", "--skip-bad", "--out", "d")
    assert code == 0
    assert "5 rows, 1 left out (empty answer), 1 left out (no such column), 1 left out (not a text)" in out


def test_an_unusual_row_is_a_row(muonlab):
    """A megabyte in one row, controls, all line ends, a byte order mark in the middle."""
    odd = ["x" * 10**6, "a\r\nb\rc\n\u2028d\x00\x1f", "\ufeffinside", "🎈" * 1000, " "]
    Path("rows.jsonl").write_bytes(
        b"\xef\xbb\xbf" + b"\r\n\r\n".join(json.dumps({"text": t}, ensure_ascii=False).encode() for t in odd)
    )
    assert muonlab("data", "prepare", "rows.jsonl", "--held-out", "0", "--out", "d")[0] == 0
    from muonlab.data.prepared import open_prepared

    made = open_prepared("d")
    assert [made.tokenizer.decode(made.train.tokens(i)) for i in range(5)] == odd


def test_an_interrupt_is_gone_on_from(muonlab, monkeypatch):
    from muonlab.data import prepare

    monkeypatch.setattr(prepare, "_BATCH_ROWS", 5)
    command = ("data", "prepare", QUESTIONS, "--columns", "question,answer", "--out")
    monkeypatch.setattr(prepare, "_SAVE_EVERY", 0)
    assert muonlab(*command, "whole")[0] == 0
    real, calls = prepare._Work._take, []

    def take(self, examples):
        calls.append(1)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGINT)
        real(self, examples)

    monkeypatch.setattr(prepare._Work, "_take", take)
    assert muonlab(*command, "parts")[0] == 130
    code, _, err = muonlab(*command, "parts")
    assert code == 0
    assert "goes on after row 15" in err
    assert sums("parts") == sums("whole")


def test_a_line_trains_on_rows_and_writes_the_recipe_that_does_the_same(muonlab, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = [{"instruction": f"{i} + 1?", "output": str(i + 1)} for i in range(200)]
    Path("sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe, small = ROOT / "recipes/toy.toml", ("--scale-steps", "0.01", "--threads", "1")
    for setting in ("model.context=64", "train.eval_tokens=128", "train.batch=2"):
        small += ("--set", setting)
    line = ("train", recipe, "--dataset", "sums.jsonl", "--columns", "instruction,output", *small)
    code, _, err = muonlab(*line, "--out", "a")
    assert code == 0, err
    assert "preparing sums.jsonl" in err
    code, _, err = muonlab("train", "a/recipe.toml", "--threads", "1", "--out", "b")
    assert code == 0, err
    assert "preparing" not in err
    first, second = (json.loads(Path(name, "result.json").read_text()) for name in "ab")
    assert first["weights_sha256"] == second["weights_sha256"]
    assert json.loads(Path("a/run.json").read_text())["data"]["manifests"][0]["columns"] == ["instruction", "output"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dataset", "nowhere.jsonl"), "no file matches 'nowhere.jsonl'"),
        (("--dataset", QUESTIONS, "--columns", "question,answre"), "expected a column 'answre'; there are: question, answer"),
        (("--dataset", QUESTIONS, "--split", "train"), "is a file or a folder of files, and has none"),
        (("--columns", "a,b"), "columns: of source 'rows' alone, got source 'stdlib'"),
        (("--dataset", QUESTIONS, "--set", "data.source=text"), "--set data.source: it is given by a flag, too"),
    ],
)
def test_rows_that_cannot_be_had_are_said_and_no_run_begins(muonlab, monkeypatch, tmp_path, flags, message):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    code, _, err = muonlab("train", ROOT / "recipes/toy.toml", *flags, "--out", "run")
    assert code == 2
    assert message in " ".join(err.split())
    assert not Path("run").exists()
    assert not Path("cache").exists()
