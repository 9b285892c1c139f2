"""From the similarities of tasks to a tree of task groups: the best of given counts, or the best within a budget."""
