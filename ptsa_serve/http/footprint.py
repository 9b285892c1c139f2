"""What one photo takes of the memory, from its decoding until its answer is sent.

Bytes a pixel, at the worst: of the photo while it is decoded (16 bits a channel and what becomes of them), while its
maps are scaled and encoded (an npz holds all four, the others one map after another with copies in between), and while
it is kept for an overlay; of the model's grid while it waits in the queue and comes back as maps. Held against the
process by `tests/http/test_memory.py`.
"""

__all__ = ["footprint"]

_DECODE = 24
_MAPS = 24
_KEPT = 3
_MODEL = 24


def footprint(photo: int, model: int, *, whole: bool, kept: bool) -> int:
    """Bytes for a photo of `photo` pixels and a grid of `model` pixels.

    whole: the maps get the photo's size. kept: the photo itself is kept beside them. One figure for the whole way, to
    be taken before the first step: who holds some and waits for more would wait for others who do the same.
    """
    grid = photo if whole else model
    return max(photo * _DECODE, grid * _MAPS + photo * _KEPT * kept) + model * _MODEL
