"""The coordinator's rounds as a ServerApp, timed from within."""

import json
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rounds import WAYS, Rounds

from common import config as configuration
from common.files import write_text

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the first round, then `rounds` rounds in each way of waiting; write the seconds of each."""
    torch.set_num_threads(1)
    settings = context.run_config
    rounds = Rounds(grid, configuration.load(Path(str(settings["config"]))))
    told = {"first": [rounds.timed(WAYS["prompt"])]}
    for name, way in WAYS.items():
        told[name] = [rounds.timed(way) for _ in range(int(settings["rounds"]))]
    write_text(Path(str(settings["found"])), json.dumps({"seconds": told, "phi": rounds.digest()}))
