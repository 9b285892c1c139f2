"""LitServe: one worker process for the model, as it starts by default."""

import sys
from typing import Any

import litserve
from fastapi import Request, Response

from benchmarks.rivals.plain import Plain


class Rival(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.plain = Plain()

    def decode_request(self, request: Request, **_: Any) -> bytes:
        return request["image"].file.read()  # type: ignore[index]

    def predict(self, x: bytes, **_: Any) -> bytes:
        return self.plain.answer(x)

    def encode_response(self, output: bytes, **_: Any) -> Response:
        return Response(output, media_type="application/octet-stream")


if __name__ == "__main__":
    server = litserve.LitServer(Rival(), accelerator="cpu", timeout=120)
    server.run(port=int(sys.argv[1]), host="127.0.0.1", generate_client_file=False, num_api_servers=1)
