"""Stock BentoML: a service with one API, its own parsing and its own threads."""

from pathlib import Path

import bentoml

from benchmarks.rivals.plain import Plain


@bentoml.service(threads=8, traffic={"timeout": 120})
class Rival:
    def __init__(self) -> None:
        self.plain = Plain()

    @bentoml.api
    def predict(self, image: Path) -> bytes:
        return self.plain.answer(image.read_bytes())
