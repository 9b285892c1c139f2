"""The network: slots of a backbone, streams through them, what is computed once, and what a checkpoint holds."""
