"""Options that the commands of `zamenis-hospital` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Directory = Annotated[Path, typer.Option("--dir", "-C", help="The node's folder; default: where you are.")]
HERE = Path()
