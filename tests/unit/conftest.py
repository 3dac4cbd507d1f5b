"""What the unit tests tell at the end of their output."""

import cesql_summary
import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in cesql_summary.lines():
        terminalreporter.write_line(line)
