"""Bundles of toy students, exported once for all tests."""

from __future__ import annotations

import pytest
from exported import Exported, export_complete, export_student


@pytest.fixture(scope="session")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_complete(tmp_path_factory.mktemp("complete") / "bundle")


@pytest.fixture(scope="session", params=[(6, 0), (9, 3)], ids=["window6-sink0", "window9-sink3"])
def student_only(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export_student(tmp_path_factory.mktemp("student") / "bundle", *request.param)
