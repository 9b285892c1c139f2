"""config.pbtxt: what Triton must know of a model, in the text form of its ModelConfig message.

Source of the fields: `model_config.proto` and the model configuration page of Triton Inference Server.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from ptsa_serve.sizes import Size
from ptsa_serve.tasks import KINDS, Task

__all__ = ["Model", "config_text"]

_TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32"}


@dataclass(frozen=True)
class Model:
    """One model of a repository. size: (H, W), None: any. profiles: numbers of the plan's profiles for that size.
    preferred: batches that a plan is best at. plans: compute capability -> file.
    """

    name: str
    backend: str
    input_name: str
    size: Size | None
    tasks: tuple[Task, ...]
    max_batch: int
    delay_us: int = 0
    profiles: tuple[int, ...] = ()
    preferred: tuple[int, ...] = ()
    plans: Mapping[str, str] = field(default_factory=dict)

    def labels(self, task: Task) -> str:
        """The file of a task's class names, one a line, in the order of their numbers."""
        return f"{task.name}_labels.txt"


def config_text(model: Model) -> str:
    """The text of config.pbtxt. The batch axis, which Triton adds itself, is in no `dims`."""
    return "\n".join(_lines(model)) + "\n"


def _lines(model: Model) -> Iterator[str]:
    size = model.size or (-1, -1)
    yield f"name: {_quoted(model.name)}"
    yield f"backend: {_quoted(model.backend)}"
    yield f"max_batch_size: {model.max_batch}"
    yield from _tensor("input", model.input_name, "TYPE_UINT8", (*size, 3))
    for task in model.tasks:
        dtype, axes = KINDS[task.kind]
        labels = model.labels(task) if task.classes else ""
        yield from _tensor("output", task.name, _TYPES[str(dtype)], (*size, *axes), labels)
    # Photos that wait already go together; by default nobody waits for more of them.
    yield "dynamic_batching {"
    if model.preferred:
        yield f"  preferred_batch_size: [{_numbers(model.preferred)}]"
    if model.delay_us:
        yield f"  max_queue_delay_microseconds: {model.delay_us}"
    yield "}"
    if model.profiles:
        names = ", ".join(_quoted(str(number)) for number in model.profiles)
        yield from ("instance_group {", "  count: 1", "  kind: KIND_GPU", f"  profile: [{names}]", "}")
    for capability, file in model.plans.items():
        yield from ("cc_model_filenames {", f"  key: {_quoted(capability)}", f"  value: {_quoted(file)}", "}")


def _tensor(field_name: str, name: str, dtype: str, dims: tuple[int, ...], labels: str = "") -> Iterator[str]:
    yield f"{field_name} {{"
    yield f"  name: {_quoted(name)}"
    yield f"  data_type: {dtype}"
    yield f"  dims: [{_numbers(dims)}]"
    if labels:
        yield f"  label_filename: {_quoted(labels)}"
    yield "}"


def _numbers(values: tuple[int, ...]) -> str:
    return ", ".join(map(str, values))


def _quoted(text: str) -> str:
    # JSON's escapes are among those of the text form.
    return json.dumps(text)
