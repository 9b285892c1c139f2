"""How any training runs: the loop, steps, rates, resuming, processes, validation."""
