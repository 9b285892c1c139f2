"""Which tasks share at which stage: the tree, and how it is drawn."""
