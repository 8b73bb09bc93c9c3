"""Packed logs and data: recognised by their content, read piece by piece, and bounded in what they may unpack to."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from muonlab.cli.progress import ImportDisplay
from muonlab.data import formats, unpacking
from muonlab.data.formats import DataFile
from muonlab.errors import InputError
from muonlab.lab.importers import import_logs
from muonlab.lab.importers.files import read_file
from muonlab.lab.records import certify, verify
from muonlab.lab.runs.collection import collect

TABLE = b"step,val_loss\n0,9.0\n10,3.5\n"
STEPS = b"import torch\n" + b"=" * 100 + b"\nstep:0/10 val_loss:9.0\nstep:10/10 val_loss:3.5\n"
LINES = b'{"step": 0, "val_loss": 9.0}\n{"step": 10, "val_loss": 3.5}\n'
CURVE = [{"step": 0, "val_loss": 9.0}, {"step": 10, "val_loss": 3.5}]


def zst(content):
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as file:
        file.write(content)
    return sink.getvalue().to_pybytes()


PACK = {
    "gz": lambda c: gzip.compress(c, 1),
    "bz2": lambda c: bz2.compress(c, 1),
    "xz": lambda c: lzma.compress(c, preset=0),
    "zst": zst,
}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name, content):
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_bytes(content)
    return Path(name)


def peak(work):
    """Most bytes that Python held meanwhile."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", [*PACK, "misnamed"])
@pytest.mark.parametrize("content", [TABLE, STEPS, LINES, json.dumps(CURVE).encode()], ids=["csv", "text", "jsonl", "json"])
def test_logs_of_every_packing_are_read(name, content):
    log = write(f"a/x.log.{name}", PACK.get(name, zst)(content))
    (run,) = read_file(log, {})
    assert run.rows == CURVE
    if name != "misnamed":
        assert run.name == "x.log"
        assert len(import_logs(["a"], "out")) == 1, "folders are searched for them"


@pytest.mark.parametrize("name", PACK)
def test_a_cut_log_is_named(name):
    packed = PACK[name](os.urandom(1 << 16).hex().encode())
    with pytest.raises(InputError, match=rf"x.csv.{name}: cannot be unpacked: .*is the file cut"):
        read_file(write(f"x.csv.{name}", packed[: len(packed) // 2]), {})


@pytest.mark.parametrize("name", PACK)
def test_a_log_that_unpacks_to_more_than_the_limit_is_refused(muonlab, name):
    write(f"x.csv.{name}", PACK[name](TABLE + (b" " * 9999 + b"\n") * 320))
    for arguments, code in (([], 0), (["--unpack-limit", "2MiB"], 2), (["--unpack-limit", "4MiB"], 0)):
        out = f"out{len(arguments)}{code}"
        found, _, err = muonlab("import", f"x.csv.{name}", "--out", out, *arguments)
        assert found == code, err
        assert Path(out).exists() == (code == 0)
        if code:
            assert f"x.csv.{name}: unpacks to more than 2 MiB, the limit on one log" in err
            assert "raise it with --unpack-limit" in err
            assert err.count("\n") == 1
    assert not list(Path().glob(".import-*"))
    code, _, err = muonlab("import", f"x.csv.{name}", "--out", "no", "--unpack-limit", "much")
    assert code == 2
    assert "--unpack-limit: expected a size such as 4GB or 900MiB, got 'much'" in err


def test_a_plain_log_has_no_limit():
    assert read_file(write("x.csv", TABLE + b"\n" * 9999), {}, unpack_limit=100)[0].rows == CURVE


def test_a_bomb_is_refused_in_little_memory():
    """Some hundred MB, of which no more is unpacked than the limit."""
    with gzip.open("x.csv.gz", "wb", compresslevel=1) as file:
        file.write(b"step,val_loss\n")
        for _ in range(300):
            file.write(b"1,2.5\n" * 174763)
    assert Path("x.csv.gz").stat().st_size < 4e6

    def read():
        with pytest.raises(InputError, match="unpacks to more than 100 MiB"):
            read_file(Path("x.csv.gz"), {}, unpack_limit=100 << 20)

    assert peak(read) < 16e6


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "text"])
def test_what_is_no_evaluation_is_not_held(kind):
    """64 MB beside the evaluations."""
    note = "x" * 100_000
    with gzip.open("x.log.gz", "wt", compresslevel=1) as file:
        file.write({"csv": "step,note,val_loss\n", "json": "[", "text": "=" * 100 + "\n"}.get(kind, ""))
        for step in range(640):
            loss = 2.5 if step % 320 == 0 else None
            row = json.dumps({"step": step, "note": note, "val_loss": loss})
            file.write({
                "csv": f"{step},{note},{loss or ''}\n",
                "jsonl": row + "\n",
                "json": row + ("]" if step == 639 else ","),
                "text": f"{note}\n" + (f"step:{step}/639 val_loss:{loss}\n" if loss else ""),
            }[kind])  # fmt: skip
    runs = []
    limit = 24e6 if kind == "text" else 8e6  # a text may yet turn out to begin with a program: 16 MiB of it are kept
    assert peak(lambda: runs.extend(read_file(Path("x.log.gz"), {}))) < limit
    assert [(row["step"], row["val_loss"]) for row in runs[0].rows] == [(0, 2.5), (320, 2.5)]


@pytest.mark.parametrize("named", [False, True])
def test_rows_that_say_the_same_again_are_held_once(named):
    head, row = (b"run,step,val_loss\n", b"a,1,2.5\n") if named else (b"step,val_loss\n", b"1,2.5\n")
    runs = []
    write("x.csv.gz", gzip.compress(head + row * 30_000))
    assert peak(lambda: runs.extend(read_file(Path("x.csv.gz"), {}))) < 3e6
    assert runs[0].rows == [{"step": 1, "val_loss": 2.5}]


def parquet(name, columns, **options):
    pq.write_table(pa.table(columns), name, **options)
    return Path(name)


def test_parquet_logs(muonlab):
    columns = {"arm": ["a", "a", "b"], "_step": [0, 10, 10], "val/loss": [9.0, 3.5, 3.25], "note": ["x", None, "y"]}
    parquet("x.parquet", columns, row_group_size=2)
    code, _, err = muonlab("import", "x.parquet", "--out", "out")
    assert code == 0, err
    assert {run.cell: [(row["step"], row["val_loss"]) for row in run.rows] for run in collect("out").runs} == {
        "a": [(0, 9.0), (10, 3.5)],
        "b": [(10, 3.25)],
    }
    code, _, err = muonlab("import", parquet("y.parquet", {"step": [1], "loss": [2.0]}), "--out", "no")
    assert (code, "y.parquet: holds no evaluation: expected a column val_loss, got step, loss" in err) == (2, True)
    whole = Path("x.parquet").read_bytes()
    code, _, err = muonlab("import", write("cut.parquet", whole[:-20]), "--out", "no")
    assert (code, "cut.parquet: not a whole Parquet file" in err) == (2, True)
    code, _, err = muonlab("import", write("x.parquet.gz", gzip.compress(whole)), "--out", "no")
    assert (code, "x.parquet.gz: a Parquet file is compressed within: decompress it first" in err) == (2, True)
    assert not Path("no").exists()


def test_a_parquet_of_one_value_unpacks_to_no_more_than_the_limit():
    rows = 4000
    name = parquet("x.parquet", {"step": [1] * rows, "val_loss": [2.5] * rows, "arm": ["a" * 10_000] * rows})
    assert name.stat().st_size < 100_000
    with pytest.raises(InputError, match=r"x.parquet: unpacks to more than 8 MiB.*--unpack-limit"):
        read_file(name, {}, unpack_limit=8 << 20)
    assert read_file(name, {}, arm="a", unpack_limit=64 << 20)[0].rows == [{"step": 1, "val_loss": 2.5}]


def test_a_batch_of_a_parquet_with_large_values_has_fewer_rows(monkeypatch):
    monkeypatch.setattr(formats, "ROW_LIMIT", 1 << 20)
    name = parquet("x.parquet", {"text": ["x" * 50_000] * 300, "n": [*range(300)]})
    metadata = pq.ParquetFile(name).metadata
    assert formats.rows_at_a_time(metadata, ["text"]) == 20
    assert formats.rows_at_a_time(metadata, ["n"]) == 256
    assert sum(len(row["text"]) for _, row in DataFile(name, "parquet").rows(0, ("text",))) == 15_000_000


def test_a_record_of_a_large_log_says_how_to_verify_it(muonlab):
    write("a/x.csv.gz", gzip.compress(b"run,step,val_loss\na,10,3.0\nb,10,3.1\n" + b"\n" * 4096))
    import_logs(["a"], "runs", unpack_limit=1 << 20)
    certify("runs", rule="speedrun", target=3.28, out="record")
    assert not verify("record").differences
    code, _, err = muonlab("verify", "record", "--unpack-limit", "4096")
    assert code == 1
    assert "unpacks to more than 4 KiB, the limit on one log: if it is a log of that size, raise it with --unpack-limit" in err
    assert muonlab("verify", "record", "--unpack-limit", "5KiB")[0] == 0
    arguments = ["--rule", "speedrun", "--target", "3.28", "--out", "next", "--against", "record", "--unpack-limit", "4096"]
    code, _, err = muonlab("certify", "runs", *arguments)
    assert (code, "raise it with --unpack-limit" in err) == (2, True)


def test_the_share_of_the_logs_that_is_read_is_told():
    for i, content in enumerate((TABLE, STEPS.replace(b"3.5", b"3.25"), LINES.replace(b"3.5", b"3.75"))):
        write(f"a/{i}.log.gz", gzip.compress(content + (b" " * 9999 + b"\n") * 200))
    told = []
    import_logs(["a"], "out", on_progress=lambda share, name: told.append((share, name)))
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert 0 <= shares[0] < 0.5
    assert shares[-1] == pytest.approx(1)
    assert [*dict.fromkeys(name for _, name in told)] == ["0.log.gz", "1.log.gz", "2.log.gz"]


def test_the_bar_comes_after_a_second_and_lines_after_some_where_there_is_no_terminal(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    shown = {}
    for terminal in (False, True):
        display = ImportDisplay()
        display.console.file = shown[terminal] = io.StringIO()
        with display:
            for seconds in (0.0, 0.9, 1.5, 20.0):
                now[0] = 100.0 + seconds
                display.update(0.25, "x.csv.gz")
        now[0] = 100.0
    assert shown[False].getvalue() == "reading x.csv.gz: 25 % of the logs  1:00 left\n"
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr("muonlab.cli.progress.Log", lambda: console)
    with ImportDisplay() as display:
        display.update(0.1, "x.csv.gz")
        assert console.file.getvalue() == ""
        now[0] += 2
        display.update(0.5, "x.csv.gz")
        display.bar.refresh()
        assert "50 %  x.csv.gz  0:02 left" in console.file.getvalue()


def test_ctrl_c_while_a_log_is_read_leaves_nothing():
    with gzip.open("x.csv.gz", "wb", compresslevel=1) as file:
        file.write(b"step,val_loss\n")
        for _ in range(200):
            file.write(b"1,2.5\n" * 174763)
    code = "import sys; from muonlab.lab.importers import log; from muonlab.cli.console import run\n"
    code += (
        "done = log.Log.done\nlog.Log.done = lambda self, share: (print(share, file=sys.stderr, flush=True), done(self, share))\n"
    )
    code += "sys.exit(run(['import', 'x.csv.gz', '--out', 'out']))"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stderr is not None
    first = process.stderr.readline()  # it reads
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130, (first, err[-300:])
    assert "interrupted" in err
    assert "Traceback" not in err
    assert os.listdir() == ["x.csv.gz"]


def test_a_field_beyond_the_csv_modules_own_limit_and_other_csv_that_is_none():
    assert read_file(write("x.csv", b"step,note,val_loss\n1," + b"x" * 200_000 + b",2.5\n"), {})[0].rows[0]["val_loss"] == 2.5
    with pytest.raises(InputError, match=r"x.csv: line 1: not CSV"):
        read_file(write("x.csv", b"step,val_loss\r1,2\r"), {})


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        ("x.jsonl", b'{"text": "a"}\n{"text": "' + b"b" * 3000 + b'"}\n', "x.jsonl, line 2"),
        ("x.csv", b"text\na\n" + b"b" * 3000 + b"\n", "x.csv, line 3"),
        ("x.csv", b'text\na\n"' + b"b\n" * 1500 + b'"\n', "x.csv, line "),
        ("x.json", b'[{"text": "a"}, {"text": "' + b"b" * 200_000 + b'"}]', "x.json, row 2"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_row_that_is_too_long_to_hold_is_named(muonlab, monkeypatch, name, content, where, suffix):
    """As a compressed file of one line may be: rows are read whole."""
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zst}[suffix]
    write(name + suffix, pack(content))
    where = where.replace(name, name + suffix)
    for module in (unpacking, formats):
        monkeypatch.setattr(module, "ROW_LIMIT", 2048)
    code, _, err = muonlab("data", "prepare", name + suffix, "--out", "d")
    assert code == 2, err
    assert where in err
    assert "a row of more than 2 KiB" in err
    assert os.listdir() == [name + suffix]
    for module in (unpacking, formats):
        monkeypatch.setattr(module, "ROW_LIMIT", 300_000)
    assert muonlab("data", "prepare", name + suffix, "--out", "d", "--held-out", "0")[0] == 0


def test_a_long_line_is_not_held_whole(monkeypatch):
    monkeypatch.setattr(unpacking, "ROW_LIMIT", 1 << 20)
    with gzip.open("x.jsonl.gz", "wb", compresslevel=1) as file:
        for _ in range(64):
            file.write(b" " * (1 << 20))

    def read():
        with pytest.raises(InputError, match=r"x.jsonl.gz, line 1: a row of more than 1 MiB"):
            next(DataFile(Path("x.jsonl.gz"), "jsonl").rows(0, ()))

    assert peak(read) < 8e6
