"""Records: published figures come out to the digit, failures count, and nothing in a record can be altered unseen."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest

import muonlab
from muonlab.errors import InputError
from muonlab.lab.importers import import_logs
from muonlab.lab.records import certify, verify
from muonlab.lab.records.content import sums
from muonlab.lab.records.rules import half_up, judge, pairwise
from muonlab.train.run_folder import RunFolder, format_row, write_json

ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
SPEEDRUN = DATA / "speedrun" / "smoothed"
FINALS = DATA / "optimization_benchmark_finals.csv"
PUBLISHED = list(csv.DictReader(open(DATA / "optimization_benchmark_published.csv")))  # noqa: SIM115
SHARED = Path(os.environ.get("MUONLAB_SHARED_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def record():
    """The record of seven imported runs; it meets the speedrun rule."""
    import_logs([SPEEDRUN], "runs")
    certify("runs", rule="speedrun", target=3.28, out="record")
    return Path("record")


def logged(losses, arm="a", steps=10, project="log"):
    for seed, loss in enumerate(losses):
        with muonlab.run(arm, seed=seed, project=project, config={"lr": 0.1}) as run:
            run.log(step=1, val_loss=9.0 + seed, seconds=1.0)
            run.log(step=steps, val_loss=loss, seconds=10.0)
    return Path("runs") / project


def test_the_figures_of_a_published_speedrun(record):
    """Golden figure: these seven losses against 3.28."""
    found = json.loads((record / "record.json").read_text())["figures"]
    assert found["met"] is True
    assert (found["n"], found["failures"], found["p"]) == (7, 0, 0.004098)
    loss = found["val_loss"]
    assert (loss["mean"], loss["std"], loss["median"], loss["min"], loss["max"]) == (3.2775, 0.001706, 3.277, 3.2757, 3.2802)
    assert found["seconds"]["mean"] == 138.900714
    assert found["seconds"]["std"] == 0.052172
    assert verify(record).differences == []
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=record, check=True)


@pytest.mark.skipif(not (SHARED / "update_smoothing_160.csv").exists(), reason="needs ../shared/data (160 published runs)")
def test_the_figures_of_160_published_runs():
    import_logs([SHARED / "update_smoothing_160.csv"], "runs")
    found = certify("runs", rule="speedrun", target=2.92, out="record").content["figures"]
    loss, seconds = found["val_loss"], found["seconds"]
    assert (found["n"], loss["mean"], loss["std"], loss["median"]) == (160, 2.91975, 0.000768, 2.9197075)
    assert (loss["min"], loss["max"], loss["low"], loss["high"]) == (2.917344, 2.921742, 2.919592, 2.919909)
    assert f"{found['p']:.6f}" == "0.000032"
    assert [f"{seconds[key] / 60:.4f}" for key in ("mean", "std", "low", "high")] == ["23.5160", "0.1855", "23.4778", "23.5542"]


def check_published(out, published):
    done = certify(
        "runs", arm=published["result"], rule="optimization-benchmark", target=3.28, steps=int(published["steps"]), out=out
    )
    found = done.content["figures"]
    assert found["n"] == int(published["n"])
    assert float(found["val_loss"]["mean_4"]) == float(published["mean_val_loss"])
    assert found["steps"] == int(published["steps"])
    assert found["met"] is True
    assert verify(out).differences == []


def test_the_ten_published_results_come_out_to_four_decimals():
    """Each mean is that of the evaluations at the published number of steps; for 20, 29 and 30 training went on after it."""
    imported = import_logs([FINALS], "runs", columns={"arm": "result"})
    assert len(imported) == sum(int(row["n"]) for row in PUBLISHED) == 134
    assert len(PUBLISHED) == 10
    for published in PUBLISHED:
        check_published(f"records/{published['result']}", published)


@pytest.mark.skipif(not (SHARED / "optimization_benchmark_runs.csv").exists(), reason="needs ../shared/data (all evaluations)")
def test_the_ten_published_results_come_out_of_all_their_evaluations():
    imported = import_logs([SHARED / "optimization_benchmark_runs.csv"], "runs", columns={"arm": "result"})
    assert len(imported) == 134
    assert {run.arm for run in imported if run.status == "unfinished"} == {"42"}, "its logs end at 2860 of 2900"
    for published in PUBLISHED:
        check_published(f"records/{published['result']}", published)


def test_rounding_is_that_of_paper():
    assert [str(half_up(value, 4)) for value in (3.27865, 2.00005, 3.27847, 0.00015)] == ["3.2787", "2.0001", "3.2785", "0.0002"]
    assert str(half_up(Fraction(1, 3), 4)) == "0.3333"


def test_the_z_rule_is_exact_on_its_edge():
    """Four runs with a mean of exactly 3.278 against 3.28: 0.002 · 2 = 0.004, which meets the rule; floats say no."""
    values = [3.277, 3.279, 3.277, 3.279]
    assert (3.28 - math.fsum(values) / 4) * 2 < 0.004, "what floats say"
    edge = judge("optimization-benchmark", values, 3.28)
    assert edge.met
    assert edge.more_runs == 0
    fewer = judge("optimization-benchmark", values[:2], 3.28)
    assert (fewer.met, fewer.more_runs) == (False, 2)
    assert fewer.statistic == pytest.approx(0.002 * math.sqrt(2))
    assert judge("optimization-benchmark", [3.281] * 3, 3.28).more_runs is None


def test_how_many_more_runs_the_t_test_needs():
    from scipy import stats

    values = [3.2795, 3.2805, 3.2785, 3.2800, 3.2790]
    judged = judge("speedrun", values, 3.28)
    assert not judged.met
    assert judged.statistic == stats.ttest_1samp(values, 3.28, alternative="less").pvalue
    n, std, gap = 5 + judged.more_runs, stats.tstd(values), 3.28 - sum(values) / 5
    assert stats.t.sf(gap / std * math.sqrt(n), n - 1) < 0.01 <= stats.t.sf(gap / std * math.sqrt(n - 1), n - 2)


def test_the_pairwise_rule():
    """By hand: (0.0002 + 30/100 · 0.0045) / sqrt(1/10 + 1/15) = 0.00155 / 0.40825 = 0.003797."""
    mean, before = Fraction("3.2785"), Fraction("3.2787")
    judged = pairwise(mean, 3000, 10, before, 3030, 15)
    assert judged.statistic == pytest.approx(0.003797, abs=1e-6)
    assert not judged.met
    assert pairwise(mean, 3000, 10 + judged.more_runs, before, 3030, 15).met
    assert not pairwise(mean, 3000, 9 + judged.more_runs, before, 3030, 15).met
    assert pairwise(mean, 2990, 10, before, 3030, 15).met
    assert not pairwise(before, 3030, 100, mean, 3000, 100).met


@pytest.mark.parametrize(
    ("losses", "missing"),
    [
        ([3.27, 3.271, float("nan"), 3.272], "1 of the runs failed (a-seed2-"),
        ([3.27], "at least two runs with a value are needed, there are 1"),
        ([3.27, 3.27, 3.27], "all losses are equal"),
        ([3.29, 3.291, 3.292], "the mean 3.291 is not below 3.28: more runs like these will not help"),
        ([3.279, 3.2805, 3.28], "more runs would meet it (declare the number beforehand)"),
    ],
)
def test_what_is_missing_is_said_and_the_record_is_written(losses, missing):
    done = certify(logged(losses), rule="speedrun", target=3.28, out="record")
    assert not done.met
    assert missing in " ".join(done.missing)
    page = Path("record/README.md").read_text()
    assert "**The rule is not met**" in page
    assert verify("record").differences == []


def test_a_diverged_run_is_a_failure_row_that_no_rule_survives():
    directory = logged([3.27, 3.271, 3.272, float("nan")])
    done = certify(directory, rule="optimization-benchmark", target=3.28, out="record", steps=10)
    assert (done.content["figures"]["runs"], done.content["figures"]["n"], done.met) == (4, 3, False)
    assert "| diverged | – | – | – | failure: diverged |" in Path("record/README.md").read_text()
    shutil.rmtree(next(directory.glob("a-seed3-*")))
    assert certify(directory, rule="optimization-benchmark", target=3.28, out="other").met, "the same without it"


def test_an_unfinished_run_counts_only_where_it_got_to_the_declared_step():
    directory = logged([3.27, 3.271])
    with pytest.raises(ZeroDivisionError), muonlab.run("a", seed=9) as run:  # noqa: PT012
        run.log(step=10, val_loss=3.272)
        _ = 1 / 0
    assert "unfinished" in certify(directory, rule="speedrun", target=3.28, out="one").missing[0]
    assert certify(directory, rule="speedrun", target=3.28, out="two", steps=10).met
    done = certify(directory, rule="speedrun", target=3.28, out="three", steps=7)
    assert "no evaluation at step 7" in done.missing[0]
    assert "unfinished before step 7" in done.missing[0]


def test_copies_of_one_run_are_no_evidence():
    for seed in range(3):
        with muonlab.run("a", seed=seed) as run:
            for step in range(1, 5):
                run.log(step=step, val_loss=3.0 + 0.1 / step + (0.01 if seed == 2 else 0.0))
    done = certify("runs/log", rule="speedrun", target=3.28, out="record")
    assert not done.met
    assert re.search("copies of one run have: a-seed0-.*, a-seed1-[^,]*$", done.missing[0])


def test_against_an_earlier_record():
    certify(logged([3.278, 3.2785, 3.279], steps=3030, project="old"), rule="speedrun", target=3.28, out="old")
    directory = logged([3.278, 3.2784, 3.279], steps=2900, project="new")
    done = certify(directory, rule="speedrun", target=3.28, out="new", against="old")
    earlier = done.content["figures"]["against"]
    assert earlier["met"] is True
    by_hand = ((3.2785 - 9.8354 / 3) + 130 / 100 * 0.0045) / math.sqrt(2 / 3)
    assert earlier["statistic"] == pytest.approx(by_hand, abs=1e-6)
    assert verify("new", against="old").differences == []
    same = certify(
        logged([3.278, 3.2784, 3.279], steps=3030, project="same"), rule="speedrun", target=3.28, out="same", against="old"
    )
    assert not same.met
    assert "old is not beaten" in " ".join(same.missing)
    assert "is not the record" in " ".join(verify("new", against="same").differences)
    Path("old/README.md").write_text("x")
    assert "README.md" in " ".join(verify("new", against="old").differences)
    with pytest.raises(InputError, match="--against old: this record does not verify"):
        certify(directory, rule="speedrun", target=3.28, out="newer", against="old")


def files_of(record):
    return sorted(path for path in record.rglob("*") if path.is_file())


def test_every_file_altered_or_missing_is_noticed(record):
    assert len(files_of(record)) == 5 + 2 + 7 * 5, "two are for git"
    for path in files_of(record):
        original = path.read_bytes()
        changes = [original + b" ", original[:-1], original.replace(b"e", b"i", 1), b"", None]
        for changed in changes:
            if changed is None:
                path.unlink()
            else:
                assert changed != original
                path.write_bytes(changed)
            try:
                noticed = bool(verify(record).differences)
            except InputError:
                noticed = path.name == "record.json"  # nothing to verify without it
            assert noticed, (path, changed and changed[:50])
            path.write_bytes(original)
    assert verify(record).differences == []


def test_what_does_not_belong_is_noticed(record):
    (record / "runs" / "extra.txt").write_text("x")
    assert any("extra.txt" in difference for difference in verify(record).differences)
    (record / "runs" / "extra.txt").unlink()
    (record / "link").symlink_to("README.md")
    assert any("link" in difference for difference in verify(record).differences)


def forge(record, pattern, change):
    """Alters a file and writes SHA256SUMS again, as one would who wants it unseen."""
    path = next(record.glob(pattern))
    text = path.read_text()
    changed = change(text)
    assert changed != text
    path.write_text(changed)
    (record / "SHA256SUMS").write_text(sums(record))


def _row(text):
    """The last row, with another loss and a checksum that fits."""
    lines = text.splitlines()
    row = json.loads(lines[-1])
    row.pop("crc")
    return "\n".join([*lines[:-1], format_row(row | {"val_loss": 3.2601}).rstrip()]) + "\n"


def _result(text):
    result = json.loads(text)
    result.pop("crc")
    return format_row(result | {"seconds": 1.0})


@pytest.mark.parametrize(
    ("pattern", "change", "named"),
    [
        ("README.md", lambda text: text.replace("3.277500", "3.276500"), "README.md: line"),
        ("README.md", lambda text: text.replace("0.004098", "0.000098"), "README.md: line"),
        ("record.json", lambda text: text.replace('"mean": 3.2775', '"mean": 3.2765'), "record.json: line"),
        ("record.json", lambda text: text.replace('"target": 3.28', '"target": 3.29'), "record.json: line"),
        ("provenance.json", lambda text: text.replace("H100", "A100"), "provenance.json: line"),
        ("recipe.json", lambda text: text.replace('"recipe": {}', '"recipe": {"lr": 1}'), "recipe.json: line"),
        ("runs/*seed0*/metrics.jsonl", _row, "altered after the import"),
        ("runs/*seed0*/metrics.jsonl", lambda text: text.splitlines(keepends=True)[-1], "damaged"),
        ("runs/*seed0*/result.json", _result, "result.json: seconds is 1.0, the rows say 138.986"),
        ("runs/*seed0*/source.py", lambda text: text + "# more\n", "source.py: is not the program of this run"),
        ("originals/*run1.txt", lambda text: text.replace("3.2766", "3.2700"), "missing, or not the log"),
    ],
)
def test_forged_hashes_do_not_help(record, pattern, change, named):
    forge(record, pattern, change)
    differences = verify(record).differences
    assert any(named in difference for difference in differences), differences


def test_a_row_altered_together_with_everything_that_follows_from_it_is_noticed(record):
    """Rows, result and all figures agree with one another, but not with the log, whose hash is the run's id."""
    folder = RunFolder(next(Path("runs").glob("*seed0*")))
    rows = folder.rows()
    rows[-1]["val_loss"] = 3.2700
    folder.metrics_file.write_text("".join(map(format_row, rows)))
    result = folder.result()
    write_json(folder.result_file, result | {"val_loss": 3.2700, "best_val_loss": 3.2700})
    with pytest.raises(InputError, match=r"no record that verifies:\n.*altered after the import"):
        certify("runs", rule="speedrun", target=3.28, out="forged")
    assert not Path("forged").exists()
    shutil.copytree(folder.path, record / "runs" / folder.path.name, dirs_exist_ok=True)
    (record / "SHA256SUMS").write_text(sums(record))
    assert any("altered after the import" in difference for difference in verify(record).differences)


def test_logged_runs_and_sweeps_have_records_too():
    done = certify(logged([3.27, 3.271, 3.272]), rule="speedrun", target=3.28, out="record")
    assert done.met
    assert json.loads(Path("record/recipe.json").read_text())["recipe"] == {"lr": 0.1}
    assert verify("record").differences == []
    forge(Path("record"), "runs/*seed0*/metrics.jsonl", _row)
    assert any("result.json: val_loss is 3.27, the rows say 3.2601" in line for line in verify("record").differences)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "speedrum"}, "unknown rule 'speedrum'; did you mean 'speedrun'"),
        ({"target": float("nan")}, "--target: expected a finite loss"),
        ({"steps": 0}, "--steps: expected a number of at least 1"),
        ({"out": "there"}, "there: is there already"),
        ({"arm": "c"}, "there is no arm 'c'"),
        ({"arm": None}, r"holds 2 arms: choose one with --arm \(a, b\)"),
        ({"directory": "nothing"}, "expected a folder of runs"),
        ({"against": "runs"}, "expected the folder of a record"),
    ],
)
def test_bad_input_leaves_nothing(options, message):
    directory = logged([3.27, 3.271])
    logged([3.27, 3.271], arm="b")
    Path("there").mkdir()
    before = sorted(str(path) for path in Path().rglob("*"))
    with pytest.raises(InputError, match=message):
        certify(**{"directory": directory, "rule": "speedrun", "target": 3.28, "out": "record", "arm": "a"} | options)
    assert sorted(str(path) for path in Path().rglob("*")) == before


def test_runs_of_different_lengths_need_a_declared_step():
    logged([3.27, 3.271])
    with muonlab.run("a", seed=7) as run:
        run.log(step=10, val_loss=3.272)
        run.log(step=12, val_loss=3.26)
    with pytest.raises(InputError, match="the runs end at steps 10, 12: declare the one that counts with --steps"):
        certify("runs/log", rule="optimization-benchmark", target=3.28, out="record")
    done = certify("runs/log", rule="optimization-benchmark", target=3.28, out="record", steps=10)
    assert done.content["figures"]["val_loss"]["mean"] == 3.271


def test_damaged_runs_are_refused_not_left_out():
    directory = logged([3.27, 3.271, 3.272])
    path = next(directory.glob("a-seed1-*/metrics.jsonl"))
    path.write_text(path.read_text().replace("3.271", "3.171"))
    with pytest.raises(InputError, match=r"a-seed1-.* is damaged: delete and redo it first"):
        certify(directory, rule="speedrun", target=3.28, out="record")


def test_what_is_no_record_is_said():
    Path("x").mkdir()
    with pytest.raises(InputError, match="x: expected the folder of a record"):
        verify("x")
    with pytest.raises(InputError, match="expected the folder of a record"):
        verify("nothing")
    for text, message in (("{", "damaged"), ("[]", "damaged"), ('{"format": 1}', "damaged")):
        Path("x/record.json").write_text(text)
        with pytest.raises(InputError, match=message):
            verify("x")


def test_a_record_of_another_format_is_refused(record):
    path = record / "record.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(InputError, match="a record of format 2, this muonlab reads 1"):
        verify(record)


@pytest.mark.slow
def test_a_full_disk_leaves_no_record():
    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    import_logs([SPEEDRUN], "runs")
    command = [sys.executable, "-m", "muonlab", "certify", "runs", "--rule", "speedrun", "--target", "3.28", "--out", "record"]
    done = subprocess.run(command, preexec_fn=full, capture_output=True, text=True)
    assert done.returncode == 1
    assert "record: cannot be written: File too large; nothing was left there" in done.stderr
    assert sorted(path.name for path in Path().iterdir()) == ["runs"]


def test_an_interrupt_leaves_no_record(monkeypatch):
    import_logs([SPEEDRUN], "runs")
    real, copied = shutil.copyfile, []

    def interrupted(source, target):
        copied.append(source)
        if len(copied) == 5:
            raise KeyboardInterrupt
        return real(source, target)

    monkeypatch.setattr(shutil, "copyfile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        certify("runs", rule="speedrun", target=3.28, out="record")
    assert sorted(path.name for path in Path().iterdir()) == ["runs"]


def test_a_folder_that_cannot_be_written_is_named(monkeypatch):
    import_logs([SPEEDRUN], "runs")

    def refused(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "copyfile", refused)
    with pytest.raises(InputError, match="record: cannot be written: Permission denied; nothing was left there; choose another"):
        certify("runs", rule="speedrun", target=3.28, out="record")


def test_a_git_checkout_verifies(record):
    """With line ends of Windows, and in a repository that ignores what a record holds."""
    Path(".gitignore").write_text("runs/\n*.txt\n*.jsonl\noriginals/\n")
    git = ["git", "-c", "core.autocrlf=true", "-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "core.safecrlf=false"]
    subprocess.run([*git, "init", "-q", "."], check=True)
    subprocess.run([*git, "add", "record"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "record"], check=True)
    shutil.rmtree(record)
    subprocess.run([*git, "checkout", "-q", "--", "record"], check=True)
    assert verify(record).differences == []


def test_a_run_left_out_although_its_log_holds_it_is_noticed():
    """The unlucky one is deleted from the folder before it is certified: the log that was kept still knows it."""
    rows = "".join(f"a,r{seed},{seed},10,{loss}\n" for seed, loss in enumerate((3.27, 3.271, 3.272, 3.4)))
    Path("table.csv").write_text("arm,run,seed,step,val_loss\n" + rows + "b,r9,0,10,3.5\n")
    options = {"rule": "speedrun", "target": 3.28, "arm": "a"}
    import_logs(["table.csv"], "runs")
    assert verify(certify("runs", out="whole", **options).path).differences == []
    (unlucky,) = Path("runs").glob("a-seed3-*")
    shutil.rmtree(unlucky)
    with pytest.raises(InputError, match=r"no record that verifies.*\n.*holds runs of a that were left out: r3/3"):
        certify("runs", out="lucky", **options)
    assert not Path("lucky").exists()
    (kept,) = Path("whole/runs").glob("a-seed3-*")
    shutil.rmtree(kept)
    Path("whole/SHA256SUMS").write_text(sums(Path("whole")))
    assert any("left out: r3/3" in line for line in verify("whole").differences)
    import_logs(["table.csv"], "given", arm="c")
    (other,) = Path("given").glob("c-seed4-*")
    shutil.rmtree(other)
    with pytest.raises(InputError, match="holds runs of c that were left out: r9/0"):
        certify("given", out="lucky", rule="speedrun", target=3.28)


@pytest.mark.parametrize(
    "change",
    [
        lambda run: run | {"provenance": "x"},
        lambda run: run | {"provenance": {"import": "x"}},
        lambda run: run | {"seed": "x"},
        lambda run: run | {"seed": None, "provenance": None},
    ],
)
def test_a_run_of_another_shape_is_a_difference(record, change):
    folder = RunFolder(min((record / "runs").iterdir()))
    write_json(folder.run_file, change(folder.run()))
    assert any(line.startswith(f"runs/{folder.path.name}") for line in verify(record).differences)


def test_an_earlier_record_without_hashes_is_a_difference(record):
    shutil.copytree(record, "earlier")
    Path("earlier/SHA256SUMS").unlink()
    assert any(
        "is not the record that this one was compared with" in line for line in verify(record, against="earlier").differences
    )
