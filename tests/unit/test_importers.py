"""Other people's logs as run folders: what stands in them comes out, what is wrong is one clear message, and nothing half-done."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from muonlab.errors import InputError
from muonlab.lab.importers import folders, import_logs
from muonlab.lab.importers.columns import parse_map
from muonlab.lab.importers.files import read_file
from muonlab.lab.judge.results import compute
from muonlab.lab.runs.collection import collect
from muonlab.train.run_folder import RunFolder

DATA = Path(__file__).parents[1] / "data"
SPEEDRUN = DATA / "speedrun" / "smoothed"
RULER = "=" * 100


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def write(name, text):
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)
    return name


def curves(out):
    """(arm, seed) -> [(step, val_loss, seconds)] of all runs in a folder."""
    return {
        (run.cell, run.seed): [(row["step"], row.get("val_loss"), row.get("seconds")) for row in run.rows]
        for run in collect(out).runs
    }


def left(*names):
    """What there is in the working directory beside the files of the test."""
    return sorted(path.name for path in Path().iterdir() if path.name not in names)


def test_a_speedrun_log_becomes_a_run_with_its_program():
    (imported, *_) = import_logs([SPEEDRUN], "out")
    assert (imported.arm, imported.seed, imported.name, imported.status) == ("smoothed", 0, "run1.txt", "finished")
    folder = RunFolder(f"out/{imported.folder}")
    assert [(row["step"], row["val_loss"]) for row in folder.rows()] == [(0, 10.8258), (100, 4.1065), (200, 3.2766)]
    assert [row["seconds"] for row in folder.rows()] == [0.0, 69.496, 138.986], "milliseconds are seconds"
    result = folder.result()
    assert (result["status"], result["val_loss"], result["steps"], result["seconds"]) == ("finished", 3.2766, 200, 138.986)
    text = (SPEEDRUN / "run1.txt").read_text()
    source = (folder.path / "source.py").read_text()
    assert source == text[: text.index(RULER)]
    described = folder.run()
    assert described["recipe"] == {}, "settings are not guessed"
    provenance = described["provenance"]
    assert provenance["source_sha256"] == hashlib.sha256(source.encode()).hexdigest()
    assert provenance["versions"] == {"python": "3.12.7", "torch": "2.9.0+cu128", "cuda": "12.8"}
    assert provenance["gpu"] == "2 × NVIDIA H100 80GB HBM3"
    assert provenance["started"] == "2030-01-01T00:00:00"
    original = Path("out") / provenance["import"]["kept_as"]
    assert original.read_bytes() == (SPEEDRUN / "run1.txt").read_bytes()
    assert len(collect("out").runs) == 7


@pytest.mark.parametrize(
    ("line", "seconds"),
    [
        ("step:9/9 val_loss:3.5 train_time:1500ms step_avg:nanms", 1.5),
        ("step:9/9 val_loss:3.5 train_time:198.159s step_avg:1585.27ms", 198.159),
        ("step:9/9 val_loss:3.5 train_time:2m step_avg:1ms", 120.0),
        ("step:9/9 val_loss:3.5", None),
    ],
)
def test_units_of_time(line, seconds):
    import_logs([write("a/x.txt", f"{RULER}\n{line}\n")], "out")
    assert curves("out") == {("a", 0): [(9, 3.5, seconds)]}


def test_lines_of_other_kinds_and_line_ends_of_windows():
    text = f"import torch\r\n{RULER}\r\nUsing seed=41\r\nRunning on device_name=NVIDIA H200 with world_size=8\r\n"
    text += "step:0/10 val_loss:9.0 train_time:0ms step_avg:nanms\r\nstep:5/10 train_loss:4.25 train_time:50ms\r\n"
    text += "step:9/10 train_time:90ms step_avg:10ms\r\nstep:10/10 train_loss:4.0 train_time:99ms\r\n"
    text += "step:10/10 val_loss:3.5 train_time:100ms step_avg:10ms\r\npeak memory: step:11/10\r\n"
    Path("a").mkdir()
    Path("a/x.log").write_bytes(text.encode())
    import_logs(["a/x.log"], "out")
    (run,) = collect("out").runs
    assert [(row["step"], row.get("train_loss"), row.get("val_loss")) for row in run.rows] == [
        (0, None, 9.0), (5, 4.25, None), (10, 4.0, 3.5),
    ]  # fmt: skip
    assert run.seed == 41
    assert run.run["provenance"]["import"]["seed_stated"] is True
    assert run.run["provenance"]["gpu"] == "8 × NVIDIA H200"


PROGRAM = "import os\nimport torch\nmodel = GPT()  # step:1/9\n"
FACTS = "Running pytorch 2.6.0.dev20241010+cu124 compiled for CUDA 12.4\nnvidia-smi:\nTue Oct 22 10:20:30 2024       \n"
STEPS = (
    "step:0/5690 val_loss:10.8258 train_time:0ms step_avg:nanms\nstep:1/5690 train_time:91ms step_avg:91.00ms\n"
    "step:5690/5690 val_loss:3.2791 train_time:1391391ms step_avg:247.97ms\n"
    "peak memory allocated: 31249 MiB reserved: 40258 MiB\n"
)


def test_logs_of_2024_have_a_line_above_the_program_too():
    (imported,) = import_logs([write("a/x.txt", f"{RULER}\n{PROGRAM}{RULER}\n{FACTS}{RULER}\n{STEPS}")], "out")
    folder = RunFolder(f"out/{imported.folder}")
    assert (folder.path / "source.py").read_text() == PROGRAM
    assert [(row["step"], row["val_loss"], row["seconds"]) for row in folder.rows()] == [
        (0, 10.8258, 0.0),
        (5690, 3.2791, 1391.391),
    ]
    assert (folder.run() or {})["provenance"]["versions"]["cuda"] == "12.4"
    (plain,) = import_logs([write("b/x.txt", f"{RULER}\n{FACTS}{RULER}\n{STEPS}")], "plain")
    assert not Path(f"plain/{plain.folder}/source.py").exists(), "facts of the machine are no program"
    assert (RunFolder(f"plain/{plain.folder}").run() or {})["provenance"]["started"] == "2024-10-22T10:20:30"


def test_a_log_cut_anywhere_says_nothing_that_the_whole_one_does_not():
    whole = f"{PROGRAM}{RULER}\n{FACTS}{RULER}\n{STEPS}"
    known = [(0, 10.8258, 0.0), (5690, 3.2791, 1391.391)]
    for end in range(whole.index("step:0/"), len(whole)):
        path = Path(write("a/x.txt", whole[:end]))
        try:
            (run,) = read_file(path, {})
        except InputError:
            continue
        rows = [(row["step"], row.get("val_loss"), row.get("seconds")) for row in run.rows]
        assert all(row in known or (row[:2] == known[1][:2] and row[2] is None) for row in rows), (end, rows)
        assert run.cut_at is None or run.cut_at == 0


def test_packed_logs_and_what_torchrun_prints_first():
    text = f"[rank0]: a warning\n{PROGRAM}{RULER}\n{FACTS}Foo Bar 99 99:99:99 2024\n{RULER}\n{STEPS}"
    Path("a").mkdir()
    Path("a/x.txt.gz").write_bytes(gzip.compress(text.encode()))
    Path("a/t.csv.gz").write_bytes(gzip.compress(b"step,val_loss\n10,3.5\n"))
    import_logs(["a"], "out")
    assert curves("out") == {("t", 0): [(10, 3.5, None)], ("a", 0): [(0, 10.8258, 0.0), (5690, 3.2791, 1391.391)]}
    with pytest.raises(InputError, match="duplicate"):
        import_logs([write("b/y.txt", text)], "out")
    Path("a/x.txt.gz").write_bytes(gzip.compress(text.encode())[:-9])
    with pytest.raises(InputError, match=r"x\.txt\.gz: cannot be unpacked.*is the file cut"):
        import_logs(["a/x.txt.gz"], "cut")


def test_steps_and_times_below_zero_are_refused():
    for text, named in (("step,val_loss\n-1,3.5\n", "step -1"), ("step,val_loss,seconds\n1,3.5,-2\n", "seconds -2.0")):
        with pytest.raises(InputError, match=f"{named}: expected a number of 0 or more"):
            import_logs([write("a.csv", text)], "out")
    assert left("a.csv") == []


def test_a_given_arm_is_that_of_tables_too():
    write("table.csv", "arm,seed,step,val_loss\na,0,10,3.5\nb,1,10,3.4\n")
    write("wandb.csv", "Step,muon-1 - val_loss,muon-2 - val_loss\n10,3.3,3.2\n")
    import_logs(["table.csv"], "out", arm="c")
    import_logs(["wandb.csv"], "out", arm="c")
    assert [*curves("out")] == [("c", 0), ("c", 1), ("c", 2), ("c", 3)]


def test_a_long_file_name_is_imported():
    import_logs([write("a/" + "x" * 240 + ".txt", STEPS)], "out")
    assert len(collect("out").runs) == 1


def test_powershell_writes_utf16():
    Path("a").mkdir()
    Path("a/x.txt").write_bytes("step:1/1 val_loss:3.5 train_time:5ms\n".encode("utf-16"))
    import_logs(["a/x.txt"], "out")
    assert curves("out") == {("a", 0): [(1, 3.5, 0.005)]}


def test_cut_logs_are_unfinished_and_diverged_ones_are_rows():
    write("a/cut.txt", "step:0/10 val_loss:9.0\nstep:5/10 val_loss:4.0\nstep:8/1")
    write("a/nan.txt", "step:0/10 val_loss:9.0\nstep:5/10 val_loss:nan\n")
    found = {run.name: run for run in import_logs(["a"], "out")}
    assert (found["cut.txt"].status, found["cut.txt"].note) == ("unfinished", "the log ends at step 5 of 10")
    assert found["nan.txt"].status == "diverged"
    assert sorted(run.status for run in collect("out").runs) == ["diverged", "unfinished"]


def test_seeds_are_numbered_by_file_name_and_go_on():
    for i in (10, 9, 1):
        write(f"a/run{i}.txt", f"step:1/1 val_loss:{i}.5\n")
    assert [(run.name, run.seed) for run in import_logs(["a"], "out")] == [("run1.txt", 0), ("run9.txt", 1), ("run10.txt", 2)]
    write("b/run0.txt", "step:1/1 val_loss:0.5\n")
    assert [(run.name, run.seed) for run in import_logs(["b/*.txt"], "out", arm="a")] == [("run0.txt", 3)]
    assert len(curves("out")) == 4


def test_the_same_log_twice_is_refused_whatever_it_is_called():
    write("a/x.txt", "step:1/1 val_loss:3.5\n")
    write("b/y.txt", "step:1/1 val_loss:3.5\n")
    with pytest.raises(InputError, match=r"b/y.txt: duplicate: the same run comes from .*a/x.txt"):
        import_logs(["a", "b"], "out")
    assert left("a", "b") == []
    import_logs(["a"], "out")
    before = sorted(path.name for path in Path("out").iterdir())
    write("b/z.txt", "step:1/1 val_loss:3.25\n")
    with pytest.raises(InputError, match=r"b/y.txt: duplicate: the same run is in out already \(arm 'a', seed 0\)"):
        import_logs(["b"], "out")
    assert sorted(path.name for path in Path("out").iterdir() if path.name != ".lock") == before
    assert len(import_logs(["a/x.txt", "./a/x.txt"], "other")) == 1, "one file named twice is one file"


def test_a_table_of_many_runs():
    text = "arm,run,step,val_loss,train_ms\n"
    text += "muon,x,0,9.0,0\nmuon,x,10,3.0,1500\nmuon,y,0,9.0,0\nmuon,y,10,3.1,1600\nadamw,x,0,9.0,0\nadamw,x,10,4.0,1000\n"
    import_logs([write("t.csv", text)], "out")
    assert curves("out") == {
        ("muon", 0): [(0, 9.0, 0.0), (10, 3.0, 1.5)],
        ("muon", 1): [(0, 9.0, 0.0), (10, 3.1, 1.6)],
        ("adamw", 0): [(0, 9.0, 0.0), (10, 4.0, 1.0)],
    }


def test_other_names_and_separators_and_stated_seeds():
    text = "Variant;seed;iteration;Loss;total_steps\nA;7;5;2.5;5\nA;3;5;2.25;5\nB;7;4;2.0;5\n"
    found = import_logs([write("t.csv", text)], "out", columns=parse_map(["val_loss=Loss"]))
    assert {(run.arm, run.seed, run.status) for run in found} == {
        ("A", 7, "finished"),
        ("A", 3, "finished"),
        ("B", 7, "unfinished"),
    }


def test_json_lines_and_wandb_history():
    rows = [{"_step": 0, "_runtime": 1.5, "val/loss": 5.0}, {"_step": 5, "_runtime": 2.5, "train/loss": 4.5}]
    rows += [{"_step": 10, "_runtime": 3.5, "val/loss": 4.0, "other": "text"}]
    import_logs([write("history.jsonl", "\n".join(map(json.dumps, rows)) + "\n")], "a")
    import_logs([write("history.json", json.dumps(rows))], "b")
    assert curves("a") == curves("b") == {("history", 0): [(0, 5.0, 1.5), (5, None, 2.5), (10, 4.0, 3.5)]}


def test_a_list_of_final_losses_alone():
    import_logs([write("finals.csv", "run,val_loss,train_ms\n0,2.9,1000\n1,2.8,2000\n")], "out")
    assert curves("out") == {("finals", 0): [(1, 2.9, 1.0)], ("finals", 1): [(1, 2.8, 2.0)]}


def test_wandb_chart_exports_have_a_column_for_each_run():
    names = ["muon-seed1", "muon-seed2", "adamw-seed1"]
    header = ["Step"] + [
        f"{name} - {what}"
        for name in names
        for what in ("_step", "_step__MIN", "_step__MAX", "val_loss", "val_loss__MIN", "val_loss__MAX")
    ]
    with open("chart.csv", "w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL)
        writer.writerow(header)
        for step, losses in ((0, (9.0, 9.1, 9.2)), (10, (3.0, 3.1, None))):
            cells = [[step] * 3 + ["" if loss is None else loss] * 3 for loss in losses]
            writer.writerow([step, *(cell for three in cells for cell in three)])
    import_logs(["chart.csv"], "out")
    assert curves("out") == {
        ("muon", 1): [(0, 9.0, None), (10, 3.0, None)],
        ("muon", 2): [(0, 9.1, None), (10, 3.1, None)],
        ("adamw", 1): [(0, 9.2, None)],
    }
    text = "Step,group - val_loss,group - val_loss__MIN,group - val_loss__MAX\n1,3.0,2.9,3.1\n"
    with pytest.raises(InputError, match="its points are averages"):
        import_logs([write("grouped.csv", text)], "other")
    with pytest.raises(InputError, match="expected the column Step"):
        import_logs([write("wall.csv", "Wall Time,a - val_loss\n1,3.0\n")], "other")


def test_tensorboard_downloads():
    text = "Wall time,Step,Value\n1600000000.5,0,9.0\n1600000010.5,10,3.0\n"
    import_logs([write("run-muon-tag-val_loss.csv", text)], "out")
    assert curves("out") == {("muon", 0): [(0, 9.0, None), (10, 3.0, None)]}
    with pytest.raises(InputError, match="if it is the val_loss, --map val_loss=Value"):
        import_logs([write("curve.csv", text)], "other")
    import_logs(["curve.csv"], "other", arm="muon", columns={"val_loss": "Value"})
    assert curves("other") == curves("out")


def test_event_files_need_their_package_and_say_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_accumulator", None)
    with pytest.raises(InputError, match=r"event files need the tensorboard package: pip install 'muonlab\[trackers\]'"):
        import_logs([write("events.out.tfevents.1", "x")], "out")
    assert left("events.out.tfevents.1") == []


def test_event_files():
    pytest.importorskip("tensorboard")
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = EventFileWriter("tb/muon")
    for step, loss in ((0, 9.0), (10, 3.25)):
        values = [Summary.Value(tag="val/loss", simple_value=loss), Summary.Value(tag="train/loss", simple_value=loss + 0.5)]
        writer.add_event(Event(wall_time=1.6e9 + step, step=step, summary=Summary(value=values)))
    writer.close()
    import_logs(["tb"], "out")
    assert curves("out") == {("muon", 0): [(0, 9.0, None), (10, 3.25, None)]}
    with pytest.raises(InputError, match="there is no column 'vall'"):
        import_logs(["tb"], "other", columns={"val_loss": "vall"})


def test_an_import_gives_a_verdict():
    for arm, level in (("a", 3.0), ("b", 2.0)):
        for i in range(3):
            write(f"{arm}/{i}.txt", f"step:10/10 val_loss:{level + 0.01 * i} train_time:10ms\n")
    import_logs(["a", "b"], "out")
    assert compute(collect("out")).arms[1].verdict.word == "better"


def first_of(*paths):
    import_logs(paths, "out")
    results = compute(collect("out"))
    return results.plan["baseline"], {arm.name: round(arm.comparison.difference, 6) for arm in results.arms if arm.comparison}


def test_the_arm_whose_logs_were_named_first_is_the_baseline():
    for arm, level in (("a", 3.0), ("b", 2.0), ("c", 4.0)):
        write(f"{arm}/0.txt", f"step:10/10 val_loss:{level} train_time:10ms\n")
    assert first_of("b/*.txt", "a") == ("b", {"a": 1.0})
    assert first_of("c") == ("b", {"a": 1.0, "c": 2.0}), "a later import comes later"


def test_of_one_folder_the_arm_that_began_first_is_the_baseline():
    for arm, began in (("a", "Oct 22 10:20:31"), ("b", "Oct 22 10:20:30"), ("c", None)):
        about = f"Tue {began} 2024\n" if began else ""
        write(f"logs/{arm}/0.txt", f"{RULER}\n{PROGRAM}{RULER}\n{about}{RULER}\nstep:10/10 val_loss:{ord(arm)} train_time:10ms\n")
    assert first_of("logs") == ("b", {"a": -1.0, "c": 1.0})


def test_of_one_table_the_arm_that_stands_first_is_the_baseline():
    write("x.csv", "arm,seed,step,val_loss\nb,0,1,2.0\nb,1,1,2.0\na,0,1,2.5\na,1,1,2.5\n")
    assert first_of("x.csv") == ("b", {"a": 0.5})


@pytest.mark.parametrize(
    ("files", "paths", "message"),
    [
        ({}, ["gone.txt"], "gone.txt: no such file or folder"),
        ({}, ["*.txt"], r"\*.txt: no file matches this pattern"),
        ({"d/x.py": "x"}, ["d"], "d: this folder holds no logs"),
        ({"x.txt": ""}, ["x.txt"], "x.txt: the file is empty"),
        ({"x.txt": "hello\n"}, ["x.txt"], "x.txt: not a log that is known here"),
        ({"x.txt": f"import torch\n{RULER}\nRunning Python 3\n"}, ["x.txt"], r"x.txt: holds no evaluation \(no val_loss\)"),
        ({"x.txt": "step:1/9 train_time:5ms\n"}, ["x.txt"], "x.txt: holds no evaluation"),
        (
            {"x.txt": "step:9/9 val_loss:3\nstep:0/9 val_loss:9\n"},
            ["x.txt"],
            "step 0 comes after step 9: more than one run in one file",
        ),
        ({"x.txt": "step:9/9 val_loss:3\nstep:9/9 val_loss:4\n"}, ["x.txt"], "step 9 has two values of val_loss"),
        ({"x.csv": "step,loss\n1,2\n"}, ["x.csv"], "expected a column val_loss, got step, loss; --map val_loss=COLUMN"),
        ({"x.csv": "step,val_loss\n1,abc\n2,\n"}, ["x.csv"], "x.csv: line 2: val_loss: expected a number, got 'abc'"),
        ({"x.csv": "step,val_loss\n1.5,2\n"}, ["x.csv"], "line 2: step: expected a whole number, got '1.5'"),
        ({"x.csv": "step,val_loss\n1,2\n2\n"}, ["x.csv"], "line 3: expected 2 values, got 1: is the file cut"),
        ({"x.csv": "step,step\n1,2\n"}, ["x.csv"], "expected a header with different names"),
        (
            {"x.csv": "step,val_loss,eval_loss\n1,2,3\n"},
            ["x.csv"],
            "val_loss: could be any of val_loss, eval_loss: choose one with --map",
        ),
        ({"x.csv": "run,val_loss\na,2\na,3\n"}, ["x.csv"], "expected a column step, got run, val_loss"),
        ({"x.csv": "step,val_loss\n"}, ["x.csv"], "x.csv: holds no evaluation: a header and no rows"),
        ({"x.csv": "step,val_loss\n0,2\n9,1\n0,3\n"}, ["x.csv"], r"step 0 comes after step 9.*--map run=COLUMN"),
        (
            {"x.csv": "run,step,total_steps,val_loss\na,1,5,2\na,2,6,2\n"},
            ["x.csv"],
            "total_steps: expected one value a run, got 5, 6",
        ),
        ({"x.jsonl": '{"step": 1, "val_loss": 2}\n{"step": 2, "va'}, ["x.jsonl"], "x.jsonl: line 2: not JSON .*is the file cut"),
        ({"x.jsonl": "[1, 2]"}, ["x.jsonl"], "row 1: expected an object"),
        ({"x.jsonl": '{"step": 1, "val_loss": true}'}, ["x.jsonl"], "val_loss: expected a number, got True"),
        ({"x.jsonl": '{"step": 1, "loss": 2}'}, ["x.jsonl"], "expected a column val_loss, got step, loss"),
    ],
)
def test_what_is_no_log_is_one_clear_message_and_leaves_nothing(files, paths, message):
    for name, text in files.items():
        write(name, text)
    with pytest.raises(InputError, match=message):
        import_logs(paths, "sub/out")
    assert left("d", *files) == []


def test_one_bad_log_among_good_ones_stops_all_of_them():
    write("a/1.txt", "step:1/1 val_loss:3.5\n")
    write("a/2.txt", "nothing here\n")
    write("a/3.txt", "")
    with pytest.raises(InputError) as error:
        import_logs(["a"], "out")
    assert len(error.value.problems) == 2
    assert left("a") == []


def test_other_encodings_and_binaries_are_named():
    Path("latin.txt").write_bytes("Größe\nstep:1/1 val_loss:3.5\n".encode("latin-1"))
    Path("binary.txt").write_bytes(b"\x00\x01step:1/1 val_loss:3.5\n")
    os.mkfifo("pipe.txt")
    with pytest.raises(InputError, match="expected text in UTF-8, got other bytes") as error:
        import_logs(["latin.txt", "binary.txt"], "out")
    assert "binary.txt: expected text, got a binary file" in str(error.value)
    with pytest.raises(InputError, match=r"pipe.txt: not an ordinary file"):
        import_logs(["pipe.txt"], "out")


def test_wrong_maps_and_arms_and_targets_are_refused():
    write("x.txt", "step:1/1 val_loss:3.5\n")
    for assignments, message in (
        (["val_loss"], "expected KEY=COLUMN"),
        (["vall_loss=x"], "vall_loss: unknown key; did you mean 'val_loss'"),
        (["step=a", "step=b"], "step: given twice"),
    ):
        with pytest.raises(InputError, match=message):
            parse_map(assignments)
    with pytest.raises(InputError, match="there is no column 'result'"):
        import_logs([write("x.csv", "step,val_loss\n1,2\n")], "out", columns={"arm": "result"})
    with pytest.raises(InputError, match="--arm: expected a name"):
        import_logs(["x.txt"], "out", arm="a" * 61)
    with pytest.raises(InputError, match=r"x.txt: expected a folder, got a file"):
        import_logs(["x.txt"], "x.txt")
    write("sweep/experiment.json", "{}")
    with pytest.raises(InputError, match="holds a sweep"):
        import_logs(["x.txt"], "sweep")


def test_a_full_disk_imports_nothing():
    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    command = [sys.executable, "-m", "muonlab", "import", str(SPEEDRUN), "--out", "out"]
    done = subprocess.run(command, preexec_fn=full, capture_output=True, text=True)
    assert done.returncode == 1
    assert "out: cannot be written: File too large; nothing was imported" in done.stderr
    assert "Traceback" not in done.stderr
    assert left() == []


def test_an_interrupted_import_takes_back_what_it_had_moved(monkeypatch):
    import_logs([SPEEDRUN / "run1.txt"], "out")
    before = sorted(str(path) for path in Path("out").rglob("*"))
    real, moved = Path.rename, []

    def interrupted(self, target):
        if len(moved) == 8:  # originals and two runs
            raise KeyboardInterrupt
        moved.append(target)
        return real(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_logs(sorted(SPEEDRUN.glob("run[2-7].txt")), "out")
    assert len(moved) == 8
    assert sorted(str(path) for path in Path("out").rglob("*") if path.name != ".lock") == before
    monkeypatch.undo()


def test_ctrl_c_while_an_import_writes_leaves_nothing(tmp_path):
    rows = ["run,step,val_loss"] + [f"{run},{step},{1 + run + step}" for run in range(3000) for step in range(3)]
    write("many.csv", "\n".join(rows) + "\n")
    command = [sys.executable, "-m", "muonlab", "import", "many.csv", "--out", "out"]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # which a background job's children have ignored
    )
    while not list(tmp_path.glob(".import-*/*")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert left("many.csv") == []


def test_a_target_that_cannot_be_written_is_named(monkeypatch):
    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(folders.Path, "mkdir", refused)
    with pytest.raises(InputError, match="out: cannot be written: Permission denied; nothing was imported; choose another"):
        import_logs([SPEEDRUN], "out")


def test_imports_into_logged_runs_and_after_deleting_one():
    import muonlab

    with muonlab.run("mine", seed=5, dir=".", project="out") as run:
        run.log(step=1, val_loss=2.0)
    import_logs([SPEEDRUN], "out")
    assert {record.cell for record in collect("out").runs} == {"mine", "smoothed"}
    gone = next(Path("out").glob("smoothed-seed3-*"))
    shutil.rmtree(gone)
    import_logs([SPEEDRUN / "run4.txt"], "out")
    assert len(collect("out").runs) == 8
