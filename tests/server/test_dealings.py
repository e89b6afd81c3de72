"""What the coordinator keeps of a run's keys and dealings, and which of them it takes from whom."""
