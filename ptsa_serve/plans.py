"""Plans: graphs that were compiled for one GPU, and what must be known of one before it runs.

A plan lies in `plans/`, named by a hash of all that it was made from; the manifest lists it with the role `plan`.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["PlanRecord", "plan_path"]

Shape = tuple[int, int, int]


class PlanRecord(BaseModel):
    """Where a plan came from.

    runtime, runtime_version: what built it, and alone can run it. gpu, compute_capability ("9.0"): the kind of GPU that
    it was built on and for; None: any that the runtime takes. graph: the file that it was built from, cut to the tasks
    of the plan. shapes: (N, H, W) of its optimization profiles, in their order; each takes from one photo more than the
    next smaller one of its size to N, and is best at N. options: of the builder.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    runtime: str
    runtime_version: str
    gpu: str | None = None
    compute_capability: str | None = None
    graph: str
    graph_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    weights_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    shapes: tuple[Shape, ...] = Field(min_length=1)
    options: dict[str, Any] = {}

    def target(self) -> str:
        """The GPU, for messages."""
        return f"{self.gpu} ({self.compute_capability})" if self.gpu else "any GPU that it takes"


def plan_path(record: PlanRecord, tasks: Sequence[str]) -> str:
    """The file inside the artifact of a plan for `tasks`. The same name means the same plan."""
    facts = json.dumps({**record.model_dump(mode="json"), "tasks": list(tasks)}, sort_keys=True)
    return f"plans/{hashlib.sha256(facts.encode()).hexdigest()[:32]}.plan"
