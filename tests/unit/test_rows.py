"""Rows named in a recipe: prepared into the cache once, again when they change, and trained on as a prepared folder is."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from muonlab.data import corpus
from muonlab.data.config import DataConfig
from muonlab.data.folders import cache, folders
from muonlab.data.prepare import Plan, prepare
from muonlab.errors import InputError


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(n, name="rows.jsonl"):
    Path(name).write_text("".join(json.dumps({"q": f"{i} + 1?", "a": str(i + 1)}) + "\n" for i in range(n)))


def rows(**keys):
    return DataConfig(source="rows", files=("rows.jsonl",), **{"columns": ("q", "a"), "validation_fraction": 0.2, **keys})


def test_rows_are_what_the_command_prepares():
    write(60)
    found, prepared = corpus.load(rows()), prepare(Plan(["rows.jsonl"], columns=("q", "a"), held_out=0.2), "made")
    assert found.provenance["manifests"][0]["sha256"] == prepared.sha256
    assert found.provenance["source"] == "rows"
    assert found.provenance["split"] == "by prompt hash"
    assert [found.train.tokens(i).tolist() for i in range(len(found.train))] == [
        prepared.train.tokens(i).tolist() for i in range(len(prepared.train))
    ]
    assert found.tokenizer == prepared.tokenizer_json()
    assert corpus.vocab_size(rows()) == 257


def test_they_are_prepared_once_and_again_when_they_change():
    write(60)
    said: list[str] = []
    first = folders(rows(), say=said.append)[0][0]
    assert len(said) == 1
    assert "preparing rows.jsonl" in said[0]
    assert folders(rows(), say=said.append)[0][0].sha256 == first.sha256
    assert len(said) == 1
    assert folders(rows(limit=30), say=said.append)[0][0].manifest["rows"] == 30
    write(61)
    assert folders(rows(), say=said.append)[0][0].manifest["rows"] == 61
    assert len(said) == 3
    assert len(list(cache().iterdir())) == 3


def test_files_of_another_working_directory_are_others(monkeypatch):
    """The same names, sizes and times, as of two unpacked archives."""
    found = []
    for folder, n in (("one", 33), ("two", 44)):
        os.mkdir(folder)
        monkeypatch.chdir(folder)
        write(20)
        Path("rows.jsonl").write_text(Path("rows.jsonl").read_text().replace('"11"', f'"{n}"'))
        os.utime("rows.jsonl", (1, 1))
        found.append(folders(rows())[0][0].manifest["rows_sha256"])
        monkeypatch.chdir("..")
    assert found[0] != found[1]


def test_a_tokenizer_file_that_changes_prepares_anew():
    from muonlab.data.tokenizers import train_bpe

    write(60)
    train_bpe(["1 + 1? 2"] * 9, 260).save(Path("tok.json"))
    first = folders(rows(tokenizer="tok.json"))[0][0]
    train_bpe(["3 + 3? 6"] * 9, 262).save(Path("tok.json"))
    assert folders(rows(tokenizer="tok.json"))[0][0].manifest["tokenizer"] != first.manifest["tokenizer"]


def test_what_is_prepared_of_the_hub_needs_no_connection(monkeypatch):
    """The data set's rows come from a file here; its name could only be one on the hub."""
    from muonlab.data import folders as module
    from muonlab.data.sources import find_sources

    write(40)
    asked = []

    def stand_in(names, **options):
        asked.append(list(names))
        return find_sources(["rows.jsonl" for _ in names])

    monkeypatch.setattr("muonlab.data.prepare.find_sources", stand_in)
    config = rows().model_copy(update={"files": ("owner/sums",), "split": "train"})
    made = module.folders(config)[0][0]
    monkeypatch.setattr("muonlab.data.prepare.find_sources", lambda *_, **__: pytest.fail("asked again"))
    assert module.folders(config)[0][0].sha256 == made.sha256
    assert asked == [["owner/sums"]]


def test_held_out_files_are_held_out_whole():
    write(60)
    write(7, "held.jsonl")
    found = corpus.load(rows(validation_files=("held.jsonl",), validation_fraction=0.05))
    assert (len(found.train), len(found.validation)) == (60, 7)


@pytest.mark.parametrize(
    ("files", "held"),
    [("*.jsonl", "held.jsonl"), (".", "./h*.jsonl"), ("rows.jsonl,held.jsonl", "link.jsonl"), ("in,rows.jsonl", "held.jsonl")],
)
def test_a_held_out_file_is_not_trained_on_whatever_names_it(files, held):
    write(9)
    write(4, "held.jsonl")
    if held == "link.jsonl":
        os.symlink("held.jsonl", "link.jsonl")
    if files.startswith("in"):
        os.mkdir("in")
        os.link("held.jsonl", "in/same_content.jsonl")  # another file: what is held out is the file that is named
        os.symlink("../held.jsonl", "in/link.jsonl")
    named = DataConfig(source="rows", files=tuple(files.split(",")), validation_files=(held,), columns=("q", "a"))
    made, validation = folders(named)
    sources = [source["name"] for source in made[0].manifest["sources"]]
    assert sources == (["same_content.jsonl", "rows.jsonl"] if files.startswith("in") else ["rows.jsonl"])
    assert validation[0].manifest["rows"] == 4
    assert len(validation[0].train) == 4


def test_what_is_held_out_whole_leaves_nothing_to_train_on():
    write(9)
    with pytest.raises(InputError, match=r"validation_files: holds out all that files names \(rows.jsonl\): name more files"):
        folders(rows(validation_files=("*.jsonl",), validation_fraction=0.05))


@pytest.mark.parametrize("name", ["arithmetic-words", "owner/sums", "saved"])
def test_a_data_set_is_not_both_trained_on_and_held_out(name):
    """Known by its name alone: neither a connection nor the library is asked."""
    if name == "saved":
        os.mkdir(name)
        Path("saved/dataset_info.json").write_text("{}")
    config = DataConfig(
        source="rows", files=(name,), validation_files=("./saved/" if name == "saved" else name,), columns=("q", "a")
    )
    with pytest.raises(InputError, match=f"validation_files: {name} is trained on as well"):
        folders(config)
    assert not cache().exists()


@pytest.mark.parametrize("held", ["made", "../here/made", "copy"])
def test_a_prepared_folder_is_not_both_trained_on_and_held_out(held, monkeypatch):
    import shutil

    os.mkdir("here")
    monkeypatch.chdir("here")
    write(30)
    prepare(Plan(["rows.jsonl"], columns=("q", "a")), "made")
    shutil.copytree("made", "copy")
    with pytest.raises(InputError, match=r"validation_files: \S+ is trained on as well \(files: made\)"):
        corpus.load(DataConfig(source="prepared", files=("made",), validation_files=(held,)))


def test_a_missing_column_is_named_and_nothing_is_left(tmp_path):
    write(60)
    with pytest.raises(InputError, match="expected a column 'question'; there are: q, a"):
        corpus.load(rows(columns=("question", "a")))
    assert not cache().exists() or not os.listdir(cache())


def test_keys_of_rows_are_refused_elsewhere_and_leave_no_trace_when_off():
    with pytest.raises(ValidationError, match="columns, split: of source 'rows' alone, got source 'text'"):
        DataConfig(source="text", files=("a.txt",), columns=("q",), split="train")
    assert set(DataConfig().model_dump(mode="json")) == {
        "source", "files", "validation_files", "validation_fraction", "text_key",
    }  # fmt: skip


def test_word_problems_come_by_their_name_without_files_or_a_connection():
    config = DataConfig(source="rows", files=("arithmetic-words",), subset="1-2", columns=("question", "solution"), limit=50)
    made = folders(config)[0][0]
    text = made.tokenizer.decode(made.train.tokens(0))
    assert made.manifest["rows"] == 50
    assert "?\n" in text
    assert "####" in text
    assert "<<" not in text


@pytest.mark.slow
def test_their_splits_share_no_question_and_a_file_of_that_name_goes_first():
    from muonlab.data.sources import find_sources
    from muonlab.evaluate.gsm8k import read_problems

    (train,) = find_sources(["arithmetic-words"], subset="1-3", split="train")
    asked = {row["question"] for _, row in zip(range(3000), (row for _, row in train.rows(0, ())))}
    tested = read_problems(["arithmetic-words"], subset="1-3", split="test")
    assert len(tested) == 1000
    assert not asked & {problem.question for problem in tested}
    assert {problem.level for problem in tested} == {1, 2, 3}
    assert next(iter(train.rows(7, ()))) == list(train.rows(0, ()))[7]
    for keys, message in (({"subset": "4"}, "expected 1, 2, 3 or a range"), ({"split": "dev"}, "expected the split train or test")):
        with pytest.raises(InputError, match=message):
            find_sources(["arithmetic-words"], **keys)
    Path("arithmetic-words").mkdir()
    Path("arithmetic-words/a.jsonl").write_text('{"text": "a"}\n')
    assert find_sources(["arithmetic-words"])[0].name != "arithmetic-words"


def test_runs_that_begin_together_prepare_once():
    """The second waits for the first, and finds what it made."""
    import threading

    write(3000)
    said: list[list[str]] = [[], [], []]
    made: list[str] = []
    threads = [threading.Thread(target=lambda s=s: made.append(folders(rows(), say=s.append)[0][0].sha256)) for s in said]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 3
    assert len(set(made)) == 1
    assert len(list(cache().iterdir())) == 1


@pytest.mark.parametrize("failing", [1, 2, 4])
def test_runs_that_wait_for_one_that_fails_prepare_for_themselves(monkeypatch, failing):
    """The first fails when the others wait; of them as many as are to fail do. Each says what was wrong, or has what it needs."""
    import threading

    from muonlab.data import prepare as module

    write(50)
    waiting, began, real = threading.Semaphore(0), [], module._Work.run
    ended: list[object] = []

    def run(work):
        began.append(work)
        if len(began) == 1:
            for _ in range(3):
                assert waiting.acquire(timeout=60)
        if len(began) <= failing:
            raise InputError("no good row")
        real(work)

    def one():
        try:
            ended.append(folders(rows(), say=lambda text: waiting.release() if "waiting for" in text else None)[0][0].sha256)
        except InputError as error:
            ended.append(str(error))
        except Exception as error:
            ended.append(error)

    monkeypatch.setattr(module._Work, "run", run)
    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    good = [end for end in ended if end != "no good row"]
    assert len(ended) - len(good) == failing
    assert len(began) == min(4, failing + 1), "one of those that waited prepares for the others"
    left = {path.name for path in cache().rglob("*") if path.parent != cache()}
    assert ("manifest.json" in left) == (failing < 4)
    assert not {".lock", "progress.json"} & left
    assert len(list(cache().glob("*"))) == (failing < 4), "not even an empty folder"
    if failing < 4:
        assert set(good) == {folders(rows())[0][0].sha256}


def test_a_folder_that_is_removed_while_it_is_looked_for_is_made_again(monkeypatch, tmp_path):
    """mkdir finds it there, and then finds no folder: that is told as FileExistsError, and is none."""
    from muonlab.data.lock import locked

    real, calls = Path.mkdir, []

    def mkdir(self, *args, **options):
        calls.append(self)
        if len(calls) == 1:
            raise FileExistsError(17, "File exists", str(self))
        real(self, *args, **options)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with locked(tmp_path / "new", wait=True, say=lambda _: None) as made:
        assert made == [tmp_path / "new"]
    Path("file").write_text("")
    with pytest.raises(InputError, match="cannot be written: File exists"), locked(Path("file"), True, lambda _: None):
        pass
