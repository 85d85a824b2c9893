"""Servers for the tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from client_and_server import Served, run_server


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    options = ["--max-sessions", "3", "--drain", "1", "--idle-limit", "60"]
    with run_server(tmp_path_factory.mktemp("server"), *options) as server:
        yield server


@pytest.fixture(scope="session")
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """A server with the given options, as a context manager."""
    return lambda *options: run_server(tmp_path_factory.mktemp("server"), *options)
