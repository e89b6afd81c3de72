"""The coordinator's commands where they wait."""

from __future__ import annotations

from pathlib import Path

import pytest

from common import service
from common.errors import ServiceError
from server.cli import SERVICE, _wait_until_ready
from simulation.rehearse import free_port
from tests.enrolling import coordinator


def test_a_service_that_does_not_answer_is_not_waited_for_forever(tmp_path: Path) -> None:
    """It runs and listens nowhere; the error names its process, its log and what ends it."""
    federation = coordinator(tmp_path / "demo", port=free_port()).federation
    with (
        service.hold(federation.directory, SERVICE),
        pytest.raises(
            ServiceError, match=r"does not answer after 0 seconds; .*superlink\.log .* stop ends it"
        ),
    ):
        _wait_until_ready(federation, patience=0.3)


def test_a_service_that_ended_is_told(tmp_path: Path) -> None:
    """With its log."""
    federation = coordinator(tmp_path / "demo", port=free_port()).federation
    with pytest.raises(ServiceError, match=r"ended as it started; .*superlink\.log says why"):
        _wait_until_ready(federation, patience=0.3)
