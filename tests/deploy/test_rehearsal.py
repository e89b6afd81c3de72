"""The rehearsal command: the whole deployment, and nothing of it left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from tests.deploy.stage import small, until


def processes(stage: Path) -> list[str]:
    """Return the command lines of processes that work in a folder."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            if str(stage) in line and "zamenis-simulate" not in line:
                found.append(line)
    return found


def test_ctrl_c_leaves_no_process_and_no_key(hospitals: list[Path], tmp_path: Path) -> None:
    """Interrupted in the middle of a run: everything is stopped and the stage is gone; the logs are kept."""
    config, out = tmp_path / "run.toml", tmp_path / "out"
    config.write_text(small("training.rounds=200", f'data.hospitals="{hospitals[0].parent}"').to_toml())
    program = Path(sys.executable).parent / "zamenis-simulate"
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever started the tests may have it ignored
    rehearsal = subprocess.Popen(
        [
            str(program),
            "rehearse",
            str(config),
            "--out",
            str(out),
            "--set",
            'secure-aggregation.where="network"',
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    stage = out / "stage"
    until(lambda: list(stage.glob("coordinator/runs/*/training/*/*/checkpoint.safetensors")), within=200)
    assert len(processes(stage)) >= 5
    for _ in range(4):
        rehearsal.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            rehearsal.wait(timeout=30)
            break
    _, told = rehearsal.communicate()
    assert rehearsal.returncode == 130
    assert "Traceback" not in told
    assert not stage.exists()
    until(lambda: not processes(stage))
    assert (out / "logs" / "coordinator" / "superlink.log").is_file()
