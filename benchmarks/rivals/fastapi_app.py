"""FastAPI: a function that its thread pool runs."""

from typing import Annotated

from fastapi import FastAPI, File, Response

from benchmarks.rivals.plain import Plain

app = FastAPI()
plain = Plain()


@app.post("/predict")
def predict(image: Annotated[bytes, File()]) -> Response:
    return Response(plain.answer(image), media_type="application/octet-stream")
