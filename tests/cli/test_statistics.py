"""`muonlab stats`: published figures to the digit, verdicts on arms, and one clear message for each wrong input."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from scipy import stats as scipy_stats

from muonlab.train.run_folder import RunFolder, write_json

DATA = Path(__file__).parents[1] / "data"
RECORD = DATA / "update_smoothing_160.csv"
LOSSES = [3.2766, 3.2794, 3.2770, 3.2776, 3.2760, 3.2802, 3.2757]
SECONDS = {
    "new": [138.986, 138.838, 138.877, 138.905, 138.916, 138.846, 138.937],
    "old": [142.379, 142.156, 141.391, 142.374, 142.316],
}


@pytest.fixture
def write(tmp_path):
    """write(name, text) -> path"""

    def to(name, text):
        path = tmp_path / name
        path.write_text(text)
        return path

    return to


def rows(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def test_published_figures_to_the_digit(muonlab):
    code, out, err = muonlab("stats", RECORD, "--column", "val_loss", "--target", 2.92)
    assert (code, err) == (0, "")
    assert out == (
        "update_smoothing_160: val_loss, n = 160\n"
        "  mean    2.919750   99 % CI 2.919592 to 2.919909\n"
        "  std     0.000768\n"
        "  median  2.9197075   min 2.917344   max 2.921742\n"
        "  target 2.92: reached (t-test p = 0.000032, alpha 0.01)\n"
        "    if you looked after every run, use instead: anytime-valid p = 0.003022\n"
        "    check: bootstrap 99 % CI 2.919596 to 2.919906\n"
        "    windows of 40 runs (121, overlapping: a description, not evidence): "
        "p mean 0.028338, std 0.034810, fraction p < 0.01: 0.4050\n"
        "    windows of 80 runs (81, overlapping: a description, not evidence): "
        "p mean 0.003372, std 0.003911, fraction p < 0.01: 0.9012\n"
        "  train time (minutes, from train_ms): mean=23.5160, std=0.1855   99 % CI 23.4778 to 23.5542\n"
    )


def test_without_a_target_there_is_no_test(muonlab):
    _, out, _ = muonlab("stats", RECORD)
    assert "target" not in out
    assert "windows" not in out
    _, out, _ = muonlab("stats", RECORD, "--target", 2.92, "--windows", "100")
    assert "windows of 100 runs (61," in out
    assert "windows of 40" not in out


@pytest.mark.parametrize(
    "text",
    [
        "val_loss\n" + "\n".join(map(str, LOSSES)) + "\n",
        "run;val_loss\n" + "".join(f"{i};{x}\n" for i, x in enumerate(LOSSES)),
        rows({"val_loss": x} for x in LOSSES),
        json.dumps([{"val_loss": x} for x in LOSSES], indent=2),
        "\ufeffval_loss\r\n" + "\r\n".join(map(str, LOSSES)) + "\r\n\r\n",
    ],
    ids=["csv", "semicolons", "jsonl", "json list", "spreadsheet"],
)
def test_every_format_gives_the_published_seven_losses(muonlab, write, text):
    code, out, _ = muonlab("stats", write("losses.data", text), "--target", 3.28, "--json")
    arm = json.loads(out)["arms"][0]
    assert code == 0
    assert f"{arm['test']['p_less']:.4f}" == "0.0041"
    assert (f"{arm['summary']['mean']:.6f}", f"{arm['summary']['std']:.6f}") == ("3.277500", "0.001706")
    assert arm["reached"] == "yes"


def test_two_files_are_two_arms(muonlab, write):
    """The published step times: 3.22 s less."""
    files = [write(f"{name}.csv", "seconds\n" + "\n".join(map(str, values))) for name, values in SECONDS.items()]
    code, out, _ = muonlab("stats", *files, "--column", "seconds", "--baseline", "old", "--json")
    claim = json.loads(out)["claims"][0]
    assert code == 0
    assert f"{claim['comparison']['difference']:.2f}" == "-3.22"
    assert (claim["arm"], claim["verdict"]["word"]) == ("new", "better")
    assert "minutes" not in muonlab("stats", *files, "--column", "seconds")[1], "the value itself is not shown a second time"


def test_a_verdict_from_nothing(muonlab, write):
    records = [
        {"arm": arm, "seed": seed, "val_loss": base + 0.01 * seed} for arm, base in (("a", 3.0), ("b", 2.0)) for seed in range(5)
    ]
    code, out, _ = muonlab("stats", write("losses.jsonl", rows(records)), "--column", "val_loss", "--by", "arm")
    assert code == 0
    assert "b against a: better (difference -1.0000" in out
    assert "Dunnett p < 0.000001" in out


def test_several_arms_are_adjusted_and_paired(muonlab):
    code, out, _ = muonlab("stats", DATA / "quickstart.jsonl", "--margin", 0.005, "--detect", 0.01, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["baseline"] == "adamw"
    assert [(claim["arm"], claim["verdict"]["word"]) for claim in found["claims"]] == [("muon", "better"), ("normuon", "better")]
    assert all("adjusted for 2 claims" in claim["verdict"]["reason"] for claim in found["claims"])
    assert found["claims"][0]["pairing"]["n"] == 3
    assert not found["claims"][0]["pairing"]["helps"]
    assert found["need"].startswith("you need 73 runs in each arm to see 0.01 at 90 %")
    _, out, _ = muonlab("stats", DATA / "quickstart.jsonl", "--baseline", "muon", "--pair", "seed")
    assert "pairs help, the verdict uses them" in out
    _, out, _ = muonlab("stats", DATA / "quickstart.jsonl", "--baseline", "muon")
    assert "the verdict uses them" not in out, "only pairs that were asked for decide"


def test_equivalence_needs_a_margin(muonlab, write):
    records = [{"arm": arm, "val_loss": 3 + 0.001 * i} for arm in "ab" for i in range(8)]
    path = write("same.jsonl", rows(records))
    assert "b against a: undecided" in muonlab("stats", path)[1]
    assert "b against a: equivalent" in muonlab("stats", path, "--margin", 0.02)[1]


def test_a_diverged_run_is_counted_never_dropped(muonlab, write):
    values = ["3.1", "nan", "3.2", "1e200", "", "3.15"]
    path = write("runs.csv", "arm,val_loss\n" + "".join(f"{'a' if i < 3 else 'b'},{x}\n" for i, x in enumerate(values)))
    _, out, _ = muonlab("stats", path)
    assert "a: val_loss, n = 2, 1 diverged" in out
    assert "b: val_loss, n = 1, 2 diverged" in out
    assert "b against a: undecided (2 of the 3 runs of b diverged)" in out
    one = write("one.csv", "val_loss\n" + "\n".join(map(str, LOSSES)) + "\nnan\n")
    _, out, _ = muonlab("stats", one, "--target", 3.28)
    assert "target 3.28: not shown to be reached (1 of the 8 runs diverged; of the others t-test p = 0.004098" in out


def test_steps_to_the_target_of_published_runs(muonlab):
    code, out, _ = muonlab("stats", DATA / "benchmark_tails.csv", "--steps", "step", "--target", 3.28, "--json")
    found = json.loads(out)
    assert code == 0
    first, second = (arm["times"] for arm in found["arms"])
    assert (first["n"], first["reached"], first["median"]) == (10, 10, 3325)
    assert (second["n"], second["reached"], second["median"], second["high"]) == (10, 8, 3225, None)
    ratio = found["claims"][0]["ratio"]
    assert ratio["ratio"] == pytest.approx(3225 / 3325, abs=1e-4)
    assert ratio["low"] < ratio["ratio"]
    assert found["claims"][0]["times_p"] == pytest.approx(0.001009, abs=1e-6)
    assert [f"{arm['summary']['mean']:.4f}" for arm in found["arms"]] == ["3.2782", "3.2787"], "final values, not all rows"


def curve(run, steps, end, *, late=0):
    """A loss that falls by 0.01 a step to `end`; before step `late` it is far higher."""
    return [
        {"run": run, "step": step, "val_loss": end + 0.01 * (steps - step) + (9 if step < late else 0)}
        for step in range(10, steps + 1, 10)
    ]


def test_misses_are_censored_where_their_run_ended(muonlab, write):
    records = [*curve("a", 100, 1.0, late=50), *curve("b", 110, 1.0, late=60), *curve("c", 120, 1.0, late=999)]
    records.append({"run": "a", "step": 55, "train_loss": 1.0})  # no evaluation
    code, out, err = muonlab("stats", write("curves.jsonl", rows(records)), "--steps", "step", "--target", 2.5)
    assert code == 0, err
    assert "step to 2.5: 2 of 3 runs got there; Kaplan-Meier median 60" in out
    assert "mean up to 120: 76.6667" in out, "(50 + 60 + 120) / 3"


def test_a_run_that_diverged_never_gets_there(muonlab, write):
    lost = [*curve("b", 50, 3.0)[:-1], {"run": "b", "step": 50, "val_loss": math.nan}]
    records = [*curve("a", 100, 1.0, late=50), *lost, *curve("c", 200, 1.0, late=120)]
    out = muonlab("stats", write("curves.jsonl", rows(records)), "--steps", "step", "--target", 2.5)[1]
    assert "n = 2, 1 diverged" in out
    assert "2 of 3 runs got there; Kaplan-Meier median 120" in out, "b counts as later than c, though it ended before"


def test_the_exchange_rate_of_whole_runs(muonlab, write):
    ends = {"x": (100, 3.95), "y": (100, 3.951), "z": (200, 3.9), "w": (200, 3.901)}
    records = [row for run, (steps, end) in ends.items() for row in curve(run, steps, end)]
    code, out, err = muonlab("stats", write("curves.jsonl", rows(records)), "--steps", "step")
    assert code == 0, err
    assert "loss falls by 0.050000 with 100 more step" in out


def make_run(path, seed, value, *, arm=None, status="finished", steps=(10, 20)):
    path.mkdir(parents=True)
    folder = RunFolder(path)
    write_json(folder.run_file, {"id": f"id{seed}", "seed": seed, **({} if arm is None else {"arm": arm})})
    for step in steps:
        folder.append_row({"step": step, "seconds": 1.0 * step, "val_loss": value + 0.1 * (20 - step)})
    if status:
        result = {"id": f"id{seed}", "status": status, "val_loss": value if status == "finished" else None, "seconds": 60.0}
        write_json(folder.result_file, result)


def test_a_folder_of_runs(muonlab, tmp_path):
    for seed, value in enumerate([3.1, 3.2, 3.3]):
        make_run(tmp_path / f"runs/x/{seed}", seed, value, arm="x")
        make_run(tmp_path / f"runs/y/{seed}", seed, value - 1, arm="y", status="diverged" if seed == 2 else "finished")
    make_run(tmp_path / "runs/y/3", 3, 2.0, arm="y", status=None)
    code, out, err = muonlab("stats", tmp_path / "runs")
    assert code == 0
    assert "1 of 7 runs have not ended and are left out: y/3" in err
    assert "x: val_loss, n = 3\n" in out
    assert "y: val_loss, n = 2, 1 diverged" in out
    assert "train time (minutes, from seconds): mean=1.0000" in out
    code, out, err = muonlab("stats", tmp_path / "runs", "--steps", "step", "--target", 3.15, "--json")
    assert code == 0, err
    x, y = json.loads(out)["arms"]
    assert (x["times"]["n"], x["times"]["reached"], y["times"]["reached"], y["diverged"]) == (3, 1, 3, 1)
    assert x["summary"]["mean"] == pytest.approx(3.2)


def test_runs_that_the_plan_does_not_name_are_left_out(muonlab, tmp_path):
    for seed in range(4):
        make_run(tmp_path / f"runs/x-{seed}", seed, 3.0 + seed)
    planned = [{"cell": "x", "seed": seed, "id": f"id{seed}", "folder": f"x-{seed}"} for seed in range(3)]
    write_json(tmp_path / "experiment.json", {"runs": planned})
    code, out, err = muonlab("stats", tmp_path)
    assert code == 0
    assert "x: val_loss, n = 3" in out
    assert "1 of 4 runs are not in the plan and are left out: runs/x-3" in err


def test_windows_without_spread(muonlab, write):
    path = write("same.csv", "val_loss\n3.1\n3.1\n3.2\n")
    assert "no spread" in muonlab("stats", path, "--target", 3, "--windows", 2)[2]
    assert muonlab("stats", path, "--target", 3)[0] == 0


def test_json_has_no_nan(muonlab, write):
    code, out, _ = muonlab("stats", write("same.csv", "arm,val_loss\na,1\na,1\nb,2\nb,2\n"), "--target", 3, "--json")
    assert code == 0

    def refuse(word):
        raise AssertionError(word)

    found = json.loads(out, parse_constant=refuse)
    assert found["claims"][0]["comparison"]["p"] is None
    assert found["claims"][0]["verdict"]["word"] == "undecided"


GOOD = "arm,seed,val_loss\na,1,3.1\na,2,3.2\nb,1,3.0\nb,2,3.3\n"


@pytest.mark.parametrize(
    ("text", "flags", "message"),
    [
        ("", [], "expected rows, got an empty file"),
        ("val_loss\n", [], "expected rows, got an empty file"),
        ("3.1\n3.2\n", [], "line 1: expected the names of the columns, got '3.1'"),
        (GOOD, ["--column", "val_los"], "no column 'val_los'; did you mean 'val_loss'? (columns: arm, seed, val_loss)"),
        (GOOD, ["--by", "optimizer"], "no column 'optimizer'"),
        (GOOD, ["--column", "arm", "--by", "seed"], "line 2: expected a number in 'arm', got 'a'"),
        (GOOD, ["--baseline", "c"], "--baseline: no arm 'c'; known: a, b"),
        (GOOD, ["--alpha", "95"], "--alpha: expected a level between 0 and 0.5, such as 0.05, got 95"),
        (GOOD, ["--alpha", "5"], "did you mean 0.05?"),
        (GOOD, ["--alpha", "nan"], "--alpha: expected a level"),
        (GOOD, ["--margin", "-1"], "--margin: expected a number above 0, got -1"),
        (GOOD, ["--target", "inf"], "--target: expected a finite number"),
        (GOOD, ["--detect", "1e-9"], "--detect: more than 10,000,000 runs"),
        (GOOD, ["--by", "seed", "--pair", "arm", "--column", "val_loss", "--steps", "step"], "no column 'step'"),
        ("arm,seed,val_loss\na,1,3.1\na,1,3.2\nb,1,3.0\nb,2,3.1\n", ["--pair", "seed"], "--pair: a has several runs with '1'"),
        ("val_loss\n3.1\n", [], "expected at least two runs, got one"),
        ("val_loss\nnan\ninf\n", [], "all 2 runs diverged"),
        ("val_loss\n3.1\n3.2\n", ["--baseline", "a"], "--baseline: needs several arms, got one"),
        ("val_loss\n3.1\n3.2\n", ["--target", "3", "--windows", "40"], "--windows: expected a window of 2 to 2 runs, got 40"),
        ("val_loss\n3.1\n3.2\n", ["--windows", "many"], "--windows: expected sizes such as 40,80, got 'many'"),
        ("a,val_loss\n1,2\n1,2,3\n", [], "line 3: expected 2 cells as in the first line, got 3"),
        ("a,a\n1,2\n", [], "two columns have the name 'a'"),
        ('{"val_loss": 1}\n{"val_loss": \n', [], "line 2: expected one JSON object on the line"),
        ("[1, 2]", [], "item 1: expected an object"),
        ('[{"val_loss": 1},', [], "broken JSON"),
        ("run,step,val_loss\nx,1,3\nx,2,2\n", [], "line 3: a second row of run x: if rows are steps"),
        ("step,val_loss\n1,5\n2,4\n3,3\n4,2\n", [], "its rows look like steps, not like runs"),
        ("run,step,val_loss\nx,1,3\nx,1,2\ny,1,2\n", ["--steps", "step"], "run 'x' has two values at step 1"),
        ("run,step,val_loss\nx,,3\n", ["--steps", "step"], "line 2: run 'x' has a value without a number in 'step'"),
    ],
)
def test_wrong_input_gets_one_clear_message(muonlab, write, text, flags, message):
    code, out, err = muonlab("stats", write("file", text), *flags)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


def test_wrong_files(muonlab, tmp_path):
    assert "no such file or folder" in muonlab("stats", tmp_path / "none.csv")[2]
    (tmp_path / "runs").mkdir()
    assert "found no run.json" in muonlab("stats", tmp_path / "runs")[2]
    make_run(tmp_path / "runs/0", 0, 3.0, status=None)
    assert "none of its 1 runs has ended" in muonlab("stats", tmp_path / "runs")[2]
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00\x01")
    assert "expected text" in muonlab("stats", tmp_path / "binary")[2]
    assert "a file is given twice" in muonlab("stats", RECORD, RECORD)[2]
    assert "holds several arms" in muonlab("stats", DATA / "quickstart.jsonl", RECORD)[2]


def test_all_bad_cells_are_told_at_once(muonlab, write):
    path = write("bad.csv", "val_loss\n" + "oops\n" * 7)
    err = muonlab("stats", path)[2]
    assert err.count("expected a number") == 5
    assert "… and 2 more" in err


def test_the_figures_are_scipys(muonlab):
    values = [float(line.split(",")[1]) for line in RECORD.read_text().splitlines()[1:]]
    found = json.loads(muonlab("stats", RECORD, "--target", 2.92, "--alpha", 0.05, "--json")[1])["arms"][0]
    low, high = scipy_stats.t.interval(0.95, 159, loc=sum(values) / 160, scale=scipy_stats.sem(values))
    assert (found["summary"]["low"], found["summary"]["high"]) == pytest.approx((low, high))
    assert math.isclose(found["test"]["p_less"], scipy_stats.ttest_1samp(values, 2.92, alternative="less").pvalue)


def test_a_seed_that_an_arm_ran_twice_is_told(muonlab, write):
    path = write("twice.jsonl", rows([{"arm": "x", "seed": s, "val_loss": 3 + 0.1 * i} for i, s in enumerate([0, 0, 1])]))
    code, out, err = muonlab("stats", path)
    assert (code, err.count("several runs with seed 0")) == (0, 1)
    assert "n = 3" in out


def test_decimal_commas_are_recognized(muonlab, write):
    code, _, err = muonlab("stats", write("comma.csv", "seed;val_loss\n0;3,1\n1;3,2\n"))
    assert code == 2
    assert "got '3,1'; decimals need a point" in err


def test_the_folder_of_a_race_refers_to_its_own_verdicts(muonlab, tmp_path):
    for arm in ("x", "y"):
        for seed in range(3):
            make_run(tmp_path / f"runs/{arm}{seed}", seed, 3.1 + seed / 10, arm=arm)
    planned = [{"cell": arm, "folder": f"{arm}{seed}"} for arm in ("x", "y") for seed in range(3)]
    write_json(tmp_path / "experiment.json", {"race": True, "runs": planned})
    code, out, err = muonlab("stats", tmp_path)
    assert code == 0, err
    assert "a race, which ended where its own test was sure" in err
    assert "y against x" in out


def test_a_wrong_alpha_is_not_blamed_on_the_power(muonlab):
    code, _, err = muonlab("stats", RECORD, "--alpha", "5")
    assert code == 2
    assert "--alpha" in err
    assert "--power" not in err
