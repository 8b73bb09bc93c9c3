"""A pytest plugin: one line of JSON for each test that is over, in the file $MUONLAB_GPU_COUNTS, so that a run that is killed has
told what it found. With pytest-xdist the controller writes them."""

from __future__ import annotations

import json
import os

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ or not (report.when == "call" or report.outcome != "passed"):
        return
    why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext if report.failed else ""
    last = (str(why).strip().splitlines() or [""])[-1][:300]
    with open(os.environ["MUONLAB_GPU_COUNTS"], "a") as file:
        file.write(json.dumps({"test": report.nodeid, "outcome": report.outcome, "why": last}) + "\n")
