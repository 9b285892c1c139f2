"""What a task is, as the data sets say it: each has records of its own, and sets that are mixed must mean the same."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from ptsa_serve.tasks import Task

__all__ = ["EDGES", "agree", "disagreements", "shared_tasks", "task_records"]

# Where something ends and another thing begins.
EDGES = Task("edges", "boundary", channels=1)

Records = Mapping[str, Task]


def agree(one: Task, other: Task) -> bool:
    """Whether maps of both mean the same: kind, channels, unit and classes; colours are for looking at."""
    return replace(one, colors=()) == replace(other, colors=())


def task_records(tasks: Sequence[str], sets: Iterable[Records]) -> dict[str, Task]:
    """The record of each of `tasks`: of the first set that has it. Raises KeyError for a task that none has."""
    found = {task: record for records in reversed(list(sets)) for task, record in records.items()}
    return {task: found[task] for task in tasks}


def disagreements(tasks: Sequence[str], sets: Mapping[str, Records]) -> list[str]:
    """A sentence for each of `tasks` that two of `sets` (records by the set's name) define differently."""
    faults = []
    for task in tasks:
        found = [(name, records[task]) for name, records in sets.items() if task in records]
        faults += [
            f"{task} is {_what(record)} in {name}, {_what(other)} in {other_name}, and a model has one answer; "
            f"train on one of the two, or leave {task} out of --tree"
            for (name, record), (other_name, other) in pairwise(found)
            if not agree(record, other)
        ]
    return faults


def shared_tasks(data: Records, model: Records) -> list[str]:
    """The tasks that both have and mean alike, in the data's order."""
    return [task for task, record in data.items() if task in model and agree(record, model[task])]


def _what(task: Task) -> str:
    return f"{task.channels} classes ({', '.join(task.classes[:2])}, ...)" if task.kind == "classes" else task.kind
