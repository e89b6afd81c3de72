"""The contract that coordinator and hospital both keep; knows neither side."""
