"""The contract that coordinator and hospital both keep; knows neither side."""

import os

# Flower reports usage to its makers unless told otherwise before its first import. Nothing that runs
# in a hospital may phone home, so this side effect of an import is wanted.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
# PyTorch then asks the driver whether there is a GPU without starting CUDA, after which no process may fork.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
