"""How many threads a run takes where nobody says: OpenMP's own word, or the cores that are idle."""

from __future__ import annotations

import os

import pytest

from muonlab.train import threads


@pytest.fixture(autouse=True)
def nobody_says(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads.time, "sleep", lambda _: None)
    threads._idle_cores.cache_clear()
    yield
    threads._idle_cores.cache_clear()


def looks(monkeypatch, *ticks):
    """What the kernel says at the first look and at the second: core -> (idle, all)."""
    found = iter(ticks)
    monkeypatch.setattr(threads, "own_cores", lambda: set(ticks[0]) if ticks[0] else {0, 1})
    monkeypatch.setattr(threads, "_ticks", lambda _: next(found))


@pytest.mark.parametrize(
    ("idle", "expected"),
    [
        ((20, 20, 20, 20), 4),
        ((0, 20, 20, 20), 3),
        ((0, 0, 0, 0), 1),
        ((10, 10, 20, 20), 3),
        ((18, 19, 20, 19), 4),
        ((-9, 20, 20, 20), 3),
    ],
)
def test_only_idle_cores_are_taken(monkeypatch, idle, expected):
    before = {core: (1000 + core, 5000) for core in range(4)}
    looks(monkeypatch, before, {core: (before[core][0] + idle[core], 5020) for core in range(4)})
    assert threads.default_threads() == expected


def test_all_cores_are_taken_where_the_system_does_not_tell(monkeypatch):
    looks(monkeypatch, {}, {})
    assert threads.default_threads() == 2


@pytest.mark.parametrize(("said", "expected"), [("3", 3), ("1", 1), ("4,2", 4), (" 2 ", 2), ("9" * 30, 1024)])
def test_openmps_own_word_is_kept(monkeypatch, said, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert threads.told_threads() == threads.default_threads() == expected


@pytest.mark.parametrize("said", ["", "0", "-1", "many", "²", "1.5"])
def test_what_is_no_number_is_no_word(monkeypatch, said):
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert threads.told_threads() is None


def test_the_kernels_ticks_are_read():
    if not os.path.exists("/proc/stat"):
        pytest.skip("Linux only")
    cores = threads.own_cores()
    assert threads._ticks(cores).keys() == cores
    assert all(0 <= idle <= total for idle, total in threads._ticks(cores).values())


def test_threads_wait_passively_unless_the_environment_says_otherwise(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    threads.wait_passively()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    monkeypatch.delenv("OMP_WAIT_POLICY")
    threads.wait_passively()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
