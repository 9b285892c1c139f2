"""How an answer goes out: in slices, whatever pieces it is made of."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from ptsa_serve.http.answers import SLICE, PiecesResponse

LENGTHS = st.lists(
    st.one_of(st.integers(0, 99), st.integers(SLICE - 1, SLICE + 1), st.integers(0, 3 * SLICE)), max_size=6
)


@given(LENGTHS)
def test_pieces_go_out_whole_in_full_slices(lengths: list[int]) -> None:
    pieces = [bytes([index]) * length for index, length in enumerate(lengths)]
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        raise AssertionError("an answer asks for nothing")

    response = PiecesResponse([memoryview(piece) for piece in pieces], media_type="a/b", headers={})
    asyncio.run(response({"type": "http"}, receive, send))
    start, *bodies = sent
    parts = [body["body"] for body in bodies if body["body"]]
    assert b"".join(parts) == b"".join(pieces)
    assert (b"content-length", str(sum(lengths)).encode()) in start["headers"]
    assert all(len(part) == SLICE for part in parts[:-1])
    assert all(len(part) <= SLICE for part in parts)
    assert [body.get("more_body", False) for body in bodies] == [True] * (len(bodies) - 1) + [False]
