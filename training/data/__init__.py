"""Photos and their labels: the sets this project knows, how they are augmented, how they are mixed."""

from training.data.ccp import CCP
from training.data.horses import Horses
from training.data.labelled import Labelled
from training.data.nyu import NYU
from training.data.nyud import NYUD
from training.data.pascal import Pascal

__all__ = ["DATASETS"]

DATASETS = {"nyu": NYU, "ccp": CCP, "horses": Horses, "nyud": NYUD, "pascal": Pascal, "labelled": Labelled}
