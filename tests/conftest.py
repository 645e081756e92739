"""What all suites share."""

from __future__ import annotations

from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Have every failure be one that a worker can send: names of any bytes come back as lone surrogates, and the
    whole run ended on a report that had one."""
    report = yield
    text = str(report.longrepr) if report.failed else ""
    if not text.isprintable() and text.encode("utf-8", "backslashreplace").decode() != text:
        report.longrepr = text.encode("utf-8", "backslashreplace").decode()
    return report
