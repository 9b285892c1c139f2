"""Which tasks share an adapter at which stage: a partition of the tasks for each stage, each refining the last.

Source: PTSA, arXiv 2509.19602 (task groups whose number never falls from stage to stage).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from ptsa_serve.errors import TreeError

__all__ = ["Group", "TaskTree"]

Group = tuple[str, ...]


@dataclass(frozen=True)
class TaskTree:
    """One partition of `tasks` a stage, in canonical order; equal trees are equal objects.

    Tasks in a group follow the order of `tasks`; groups of a stage sort by their first task.
    Raises TreeError, naming stage and tasks, if a stage misses or repeats a task or does not refine the stage before.
    """

    tasks: tuple[str, ...]
    stages: tuple[tuple[Group, ...], ...]

    def __post_init__(self) -> None:
        if not self.tasks or len(set(self.tasks)) != len(self.tasks):
            raise TreeError(f"a tree needs distinct tasks, got {list(self.tasks)}")
        order = {task: i for i, task in enumerate(self.tasks)}
        canonical = []
        for number, stage in enumerate(self.stages, 1):
            named = [task for group in stage for task in group]
            if sorted(named) != sorted(self.tasks) or not all(stage):
                raise TreeError(f"stage {number} must name each of {list(self.tasks)} once, got {list(stage)}")
            groups = [tuple(sorted(group, key=order.__getitem__)) for group in stage]
            canonical.append(tuple(sorted(groups, key=lambda group: order[group[0]])))
        object.__setattr__(self, "stages", tuple(canonical))
        for number in range(1, len(self.stages)):
            for group in self.stages[number]:
                if not any(set(group) <= set(wider) for wider in self.stages[number - 1]):
                    raise TreeError(
                        f"stage {number + 1} joins {list(group)}, which stage {number} keeps apart; "
                        "a group may only split from stage to stage"
                    )

    @classmethod
    def shared(cls, tasks: Sequence[str], stages: int = 4) -> "TaskTree":
        """One group everywhere: a plain multi-task network."""
        return cls(tuple(tasks), ((tuple(tasks),),) * stages)

    @classmethod
    def independent(cls, tasks: Sequence[str], stages: int = 4) -> "TaskTree":
        """A group for each task everywhere: as many networks as tasks."""
        return cls(tuple(tasks), (tuple((task,) for task in tasks),) * stages)

    @classmethod
    def of_counts(cls, tasks: Sequence[str], counts: Sequence[int]) -> "TaskTree":
        """As many groups a stage as `counts` say, of neighbours: the largest group is halved until there are enough.

        Raises TreeError for counts that fall, or that are not from 1 to the number of tasks.
        """
        if not counts or list(counts) != sorted(counts) or not 1 <= counts[0] <= counts[-1] <= len(tasks):
            raise TreeError(
                f"{list(counts)} groups a stage; allowed are numbers from 1 to {len(tasks)} that never fall"
            )
        groups, stages = [tuple(tasks)], []
        for count in counts:
            while len(groups) < count:
                largest = max(range(len(groups)), key=lambda i: len(groups[i]))
                group = groups[largest]
                groups[largest : largest + 1] = [group[: -(-len(group) // 2)], group[-(-len(group) // 2) :]]
            stages.append(tuple(groups))
        return cls(tuple(tasks), tuple(stages))

    @classmethod
    def parse(cls, text: str) -> "TaskTree":
        """Read stages separated by `/`, groups by `|`, tasks by `,`: "a,b,c / a,b,c / a,b | c / a | b | c"."""
        stages = tuple(
            tuple(tuple(task.strip() for task in group.split(",")) for group in stage.split("|"))
            for stage in text.split("/")
        )
        return cls(tuple(task for group in stages[0] for task in group), stages)

    def __str__(self) -> str:
        """The text that `parse` reads."""
        return " / ".join(" | ".join(",".join(group) for group in stage) for stage in self.stages)

    def groups(self, stage: int) -> tuple[Group, ...]:
        """Groups of a stage, counted from 0."""
        return self.stages[stage]

    def group_of(self, stage: int, task: str) -> int:
        """Index of the group of `task` at `stage`. Raises ValueError for a task that the tree does not know."""
        for index, group in enumerate(self.stages[stage]):
            if task in group:
                return index
        raise ValueError(f"task {task!r} is not in this tree; it has {', '.join(self.tasks)}")

    def parent(self, stage: int, group: int) -> int:
        """Index, at `stage - 1`, of the group that `group` of `stage` came from."""
        return self.group_of(stage - 1, self.stages[stage][group][0])

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of groups a stage, e.g. (1, 1, 2, 4)."""
        return tuple(len(stage) for stage in self.stages)

    def to_json(self) -> dict:
        return {"version": 1, "tasks": list(self.tasks), "stages": json.loads(json.dumps(self.stages))}

    @classmethod
    def from_json(cls, data: dict) -> "TaskTree":
        """Inverse of `to_json`. Raises TreeError for another version."""
        if data.get("version") != 1:
            raise TreeError(f"task tree of version {data.get('version')!r}; this program reads version 1")
        return cls(tuple(data["tasks"]), tuple(tuple(tuple(g) for g in stage) for stage in data["stages"]))
