"""What a measurement of similarity leads to: the tree, files in the run's folder, and a text for whoever waits."""

import json
from collections.abc import Callable, Mapping

from ptsa_serve.task_tree import TaskTree
from training.allocation.budget import Budget, Choice, from_budget
from training.allocation.counts import from_counts
from training.allocation.doubt import doubt
from training.allocation.partitions import tree_cost
from training.network.checkpoint import write_whole
from training.similarity.config import DEAR, SimilarityConfig
from training.similarity.picture import heat_maps
from training.similarity.record import Similarity
from training.trees.picture import tree_picture
from training.trees.text import tree_text

__all__ = ["choose_tree", "save_report"]


def choose_tree(
    similarity: Similarity, config: SimilarityConfig, costs: Mapping[str, Callable[[TaskTree], float]]
) -> Choice:
    """The best tree of --counts, or within the limits; `costs` by the names of `SimilarityConfig.limits`.

    Raises ConfigError for counts that do not fit the tasks, or if nothing is within the limits.
    """
    matrices = similarity.stages(config.measure, config.scope)
    if config.limits:
        budgets = [Budget(name, limit, costs[name]) for name, limit in config.limits.items()]
        return from_budget(similarity.tasks, matrices, budgets)
    tree = from_counts(similarity.tasks, matrices, config.counts)
    return Choice(tree, tree_cost(matrices, tree), {})


def save_report(similarity: Similarity, choice: Choice, config: SimilarityConfig, seconds_a_step: float) -> str:
    """Write similarity.png and tree.json, .png and .txt to the search's folder; returns the text.

    seconds_a_step: of the training that follows. Raises OSError.
    """
    out, tree, measure, scope = config.out, choice.tree, config.measure, config.scope
    lines = [tree_text(tree), "", f"tree: {tree}", f"cost J: {choice.objective:.4f} ({measure}, {scope})"]
    lines += [f"{name}: {cost:,.10g}" for name, cost in choice.costs.items()]
    lines += _cost(similarity, config, seconds_a_step)
    if warning := doubt(similarity, tree, measure=measure, scope=scope):
        lines.append(f"warning: {warning}")
    text = "\n".join(lines)
    write_whole(out / "similarity.png", heat_maps(similarity, measure))
    write_whole(out / "tree.json", (json.dumps(tree.to_json()) + "\n").encode())
    write_whole(out / "tree.png", tree_picture(tree))
    write_whole(out / "tree.txt", (text + "\n").encode())
    return text


def _cost(similarity: Similarity, config: SimilarityConfig, seconds_a_step: float) -> list[str]:
    """What was spent, and on how much; what the training takes; and whether that is a small part of it."""
    spent, training = similarity.warm_up_seconds + similarity.seconds, seconds_a_step * config.training_steps
    lines = [
        f"found in {spent:.0f} s: {config.warm_up} steps of warm-up in {similarity.warm_up_seconds:.0f} s, "
        f"{similarity.batches} batches compared in {similarity.seconds:.0f} s",
        f"that is {spent / training:.1%} of the {training:.0f} s of training that follow: "
        f"{config.training_steps} steps of {seconds_a_step:.2g} s",
    ]
    if spent > DEAR * training:
        lines.append(f"warning: more than {DEAR:.0%}; fewer --observations or --warm_up steps cost less")
    return lines
