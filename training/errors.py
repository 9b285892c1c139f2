"""What training raises for a user's mistake, beside OSError; anything else is a fault of ours and shows its traceback.

TrainingError
├── ConfigError      options that do not fit together, or that nothing can be trained with
├── DataError        photos or labels that cannot be used
├── CheckpointError  a file of weights that cannot be read, or does not fit
├── ResumeError      the output folder holds another run, or its resume file is damaged
└── DivergedError    loss or gradients are not finite: training has failed
"""

__all__ = ["CheckpointError", "ConfigError", "DataError", "DivergedError", "ResumeError", "TrainingError"]


class TrainingError(ValueError):
    """Root of training's own errors; the message says what was found, what is allowed and what to do."""


class ConfigError(TrainingError):
    """Options that are out of range, contradict each other, or do not fit the data."""


class DataError(TrainingError):
    """A photo or a label that cannot be used; the message names it."""


class CheckpointError(TrainingError):
    """Weights that are damaged, of another version, or of another network."""


class ResumeError(TrainingError):
    """A run cannot be continued: it had other settings, or what it left is damaged."""


class DivergedError(TrainingError):
    """A loss or a gradient became infinite or NaN."""
