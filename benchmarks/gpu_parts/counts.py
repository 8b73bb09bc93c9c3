"""A pytest plugin: one line of JSON for each test that is over, in the file $MUONLAB_GPU_COUNTS, so that a run that is killed has
told what it found. With pytest-xdist the controller writes them."""

from __future__ import annotations

import json
import os

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ or not (report.when == "call" or report.outcome != "passed"):
        return
    if isinstance(report.longrepr, tuple):  # skipped: file, line, reason
        why = report.longrepr[2]
    else:
        crash = getattr(report.longrepr, "reprcrash", None)
        why = crash.message if crash is not None else report.longreprtext
    first = (str(why).strip().splitlines() or [""])[0][:300]
    with open(os.environ["MUONLAB_GPU_COUNTS"], "a") as file:
        file.write(json.dumps({"test": report.nodeid, "outcome": report.outcome, "why": first}) + "\n")
