"""`muonlab report` of several sweeps: one page, whose figures are those of each sweep's own report."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

import pytest

import muonlab as library
from muonlab.lab.judge.results import compute
from muonlab.lab.runs.store import load_sweep
from muonlab.lab.show.charts.several import every_final
from muonlab.train.run_folder import RunFolder, read_json, write_json
from tests.unit.browser import Browser, find_chromium
from tests.unit.made_sweeps import around, cell, grid, sweep

ODD = {("b", 1): "diverged", ("b", 2): "unfinished", ("c", 1): None, ("c", 2): None, ("c", 3): None}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """runs/whole (three arms, complete), runs/part (12 of 15 runs have ended, far higher losses)."""
    monkeypatch.chdir(tmp_path)
    cells = [cell("adamw", lr=0.004), cell("muon", lr=0.02), cell("normuon", lr=0.02, beta2=0.95)]
    sweep(Path("runs/whole"), cells, lambda c, s: around(2.3 if c == "muon" else 2.4, 0.02, c, s), question="Is <muon> better?")
    cells = [cell(name, lr=0.01 * (1 + i)) for i, name in enumerate("abcde")]
    sweep(Path("runs/part"), cells, lambda c, s: ODD.get((c, s), around(6.5 if c == "d" else 7, 0.1, c, s)))
    return tmp_path


def figures_of(out):
    return {one["name"]: one for one in json.loads(Path(out, "results.json").read_text())["sweeps"]}


def text_of(page):
    return html.unescape(re.sub(r"<[^>]*>", " ", page.read_text().split("<script>")[0]))


@pytest.mark.slow
def test_the_figures_are_those_of_each_report(here, muonlab):
    code, out, err = muonlab("report", "runs/whole", "runs/part", "--out", "runs/all")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "Page: runs/all/index.html"
    assert sorted(path.name for path in Path("runs/all").iterdir()) == ["index.html", "results.json"]
    page, figures = text_of(Path("runs/all/index.html")), figures_of("runs/all")
    for name, best in (("whole", "muon"), ("part", "d")):
        assert muonlab("report", f"runs/{name}", "--out", f"own/{name}")[0] == 0
        own = json.loads(Path(f"own/{name}/results.json").read_text())
        found = figures[name]
        assert found["best"] == next(arm for arm in own["arms"] if arm["name"] == best)
        assert {one["arm"]: one["summary"] for one in found["arms"]} == {arm["name"]: arm["summary"] for arm in own["arms"]}
        assert found["answer"] == own["answer"]
        assert found["audit"] == own["audit"]
        losses = [(run["cell"], run["seed"], run["val_loss"]) for run in own["runs"] if run["status"] == "finished"]
        assert sorted((run["arm"], run["seed"], run["value"]) for run in found["finals"]) == sorted(losses)
        comparison = found["best"]["comparison"]
        told = [f"{comparison['difference']:+.4f}", f"{comparison['low']:+.4f} to {comparison['high']:+.4f}"]
        for sentence in [*told, *found["answer"], *found["audit"]]:
            assert sentence in page
        assert all(one in out for one in told)
    assert "Is <muon> better?" in page
    assert figures["whole"]["standing"] == figures["whole"]["best"]["verdict"]["word"] == "better"


@pytest.mark.slow
def test_runs_are_counted_and_reports_linked(here, muonlab):
    code, out, _ = muonlab("report", "runs/whole", "runs/part", "--out", "all")
    assert code == 0
    whole, part = figures_of("all").values()
    assert (whole["expected"], whole["found"], whole["finished"], whole["complete"]) == (9, 9, 9, True)
    kinds = ("expected", "found", "finished", "diverged", "unfinished", "missing", "complete")
    assert [part[kind] for kind in kinds] == [15, 12, 10, 1, 1, 3, False]
    for text in (out, text_of(Path("all/index.html"))):
        assert "9 of 9" in text
        assert "11 of 15 (1 diverged)" in text
        assert "d (so far)" in text
        assert "Not complete: part." in text
    assert "2 sweeps, 1 of them complete" in text_of(Path("all/index.html"))
    for one in (whole, part):
        assert one["report"] == f"../runs/{one['name']}/report/report.html"
        assert f'href="{one["report"]}"' in Path("all/index.html").read_text()
        assert Path("all", one["report"]).is_file(), "written where there was none"
        assert one["notes"] == []


@pytest.mark.slow
def test_a_report_that_is_there_is_left_and_told_if_it_is_old(here, muonlab):
    muonlab("report", "runs/whole")
    muonlab("report", "runs/part")
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("report/*")}
    assert muonlab("report", "runs/whole", "runs/part", "--out", "all")[0] == 0
    assert [one["notes"] for one in figures_of("all").values()] == [[], []]
    run = RunFolder(next(Path("runs/whole/runs").glob("run1-seed1")))
    run.result_file.unlink()
    code, out, _ = muonlab("report", "runs/whole", "runs/part", "--out", "all")
    assert code == 0
    note = "The report of whole is older than its runs, or was made with other options: `muonlab report runs/whole` writes it anew."
    assert note in out
    assert figures_of("all")["whole"]["notes"] == [note]
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("report/*")} == before


@pytest.mark.slow
def test_grids_collections_and_sweeps_without_a_run(here, muonlab):
    sweep(Path("runs/lr"), grid("muon", lr=[0.01, 0.02, 0.04]), lambda c, s: around(2.4, 0.02, c, s), baseline=None)
    sweep(Path("runs/none"), [cell("x"), cell("y")], lambda c, s: None)
    for arm, level in (("plain", 2.5), ("mine", 2.4)):
        for seed in range(3):
            with library.run(arm, seed=seed) as run:
                run.log(step=1, val_loss=level + 0.01 * seed)
    code, out, err = muonlab("report", "runs/lr", "runs/none", "runs/log", "--out", "all", "--json")
    assert (code, err) == (0, "")
    printed = json.loads(out)
    assert printed.pop("page") == "all/index.html"
    assert printed == json.loads(Path("all/results.json").read_text())
    lr, none, log = figures_of("all").values()
    assert (lr["standing"], lr["baseline"], lr["best"]["swept"].keys()) == ("not compared", None, {"optimizer.lr"})
    assert (none["best"], none["expected"], none["found"]) == (None, 6, 0)
    assert (log["baseline"], log["best"]["name"], log["standing"]) == ("plain", "mine", "better")
    assert "A sweep without a baseline has no verdicts." in text_of(Path("all/index.html"))


def test_one_axis_only_where_all_can_be_read_on_it(here):
    sweep(Path("runs/near"), [cell("x"), cell("y")], lambda c, s: around(2.35, 0.02, c, s))
    sweep(Path("runs/times"), [cell("x"), cell("y")], lambda c, s: 2.0, metric="seconds")
    whole, near, part, times = (compute(load_sweep(f"runs/{name}")) for name in ("whole", "near", "part", "times"))
    for several, said in (
        ([whole, near], "One axis for all sweeps."),
        ([whole, part], "Each sweep has its own axis: one for all would squeeze some into a spot."),
        ([whole, times], "Each sweep has its own axis: they are judged by different metrics."),
    ):
        chart = every_final(several)
        assert said in chart.caption
        ends = {json.dumps(x["scale"]["domain"]) for x in axes(chart.spec()) if "domain" in x.get("scale", {})}
        assert len(ends) == ("One axis" in said)


def axes(spec):
    return [layer["encoding"]["x"] for panel in spec["vconcat"] for layer in panel["layer"]]


@pytest.mark.slow
def test_the_page_replaces_itself(here, muonlab):
    assert muonlab("report", "runs/whole", "runs/part", "--out", "all")[0] == 0
    assert muonlab("report", "runs/part", "runs/whole", "--out", "all")[0] == 0
    assert list(figures_of("all")) == ["part", "whole"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("runs/whole", "runs", "--out", "all"), "runs: expected the folder of a sweep"),
        (("runs/whole", "gone", "--out", "all"), "gone: expected the folder of a sweep"),
        (("runs/whole", "file", "--out", "all"), "file: expected a folder, got a file"),
        (("runs/whole", "runs/../runs/whole", "--out", "all"), "runs/whole: named twice: each sweep once"),
        (("runs/whole", "twin", "--out", "all"), "twin: is called 'whole', as runs/whole is: expected sweeps with different names"),
        (("runs/whole", "runs/part"), "--out: missing; a page over 2 sweeps needs a folder of its own"),
        (("runs/whole", "runs/part", "--out", "file"), "file: expected a folder, got a file; choose another with --out"),
        (("runs/whole", "runs/part", "--out", "file/all"), "choose another"),
        (("runs/whole", "runs/part", "--out", "."), ".: holds something else than a page over several sweeps"),
        (("runs/whole", "runs/part", "--out", "page"), "page: holds something else than a page over several sweeps"),
        (("runs/whole", "runs/part", "--out", "runs/part"), "runs/part: lies in the folder of a sweep (runs/part)"),
        (("runs/whole", "runs/part", "--out", "runs/part/report"), "lies in the folder of a sweep (runs/part)"),
        (("runs/whole", "runs/part", "--out", "all", "--svg"), "--svg: of one sweep's own report, got 2 sweeps"),
        (("runs/whole", "runs/part", "--out", "all", "--margin", "0.1", "--curves"), "--margin, --curves: of one sweep"),
    ],
)  # fmt: skip
def test_mistakes_get_one_clear_message_and_leave_nothing(here, muonlab, arguments, message):
    Path("file").write_text("mine")
    Path("page").mkdir()
    Path("page/index.html").write_text("mine")
    plan = read_json(Path("runs/whole/experiment.json"), "")
    Path("twin").mkdir()
    write_json(Path("twin/experiment.json"), plan)
    before = sorted(here.rglob("*"))
    code, out, err = muonlab("report", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(here.rglob("*")) == before
    assert Path("page/index.html").read_text() == "mine"


def test_all_mistakes_are_named_at_once(here, muonlab):
    err = muonlab("report", "gone", "runs/whole", "runs/whole", "away", "--out", "all")[2]
    assert [line.split(": ")[1] for line in err.splitlines()] == ["gone", "runs/whole", "away"]


@pytest.mark.skipif(find_chromium() is None, reason="needs a Chromium: apt-get install chromium")
def test_the_page_in_a_browser(here, muonlab, tmp_path_factory):
    sweep(Path("runs/none"), [cell("x"), cell("y")], lambda c, s: None)
    assert muonlab("report", "runs/whole", "runs/part", "runs/none", "--out", "all")[0] == 0
    with Browser(str(find_chromium()), tmp_path_factory.mktemp("profile")) as browser:
        for width, dark in ((1200, False), (1200, True), (390, False)):
            browser.messages.clear()
            browser.look(width, dark=dark)
            browser.open(Path("all/index.html"))
            assert browser.errors() == []
            assert browser.value("document.documentElement.scrollWidth") <= width
            assert browser.value("document.querySelector('.chart svg').getBoundingClientRect().width") <= width
            dots = browser.value("document.querySelectorAll('.chart .mark-symbol.role-mark path').length")
            assert dots == 9 + 10, "a dot for each finished run"
            assert len([url for url in browser.requests() if not url.startswith(("data:", "blob:"))]) == 1
