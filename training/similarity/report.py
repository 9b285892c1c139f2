"""What a measurement of similarity leads to: the tree, files in the run's folder, and a text for whoever waits."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from ptsa_serve.task_tree import TaskTree
from training.allocation.budget import Budget, Choice, from_budget
from training.allocation.counts import from_counts
from training.allocation.doubt import doubt
from training.allocation.partitions import tree_cost
from training.network.checkpoint import write_whole
from training.similarity.config import SimilarityConfig
from training.similarity.picture import heat_maps
from training.similarity.record import Measure, Scope, Similarity, write_similarity
from training.trees.picture import tree_picture
from training.trees.text import tree_text

__all__ = ["choose_tree", "save_report"]

# More than this share of the training that it serves, and measuring is not cheap any more.
DEAR = 0.05


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


def save_report(
    out: Path,
    similarity: Similarity,
    choice: Choice,
    *,
    measure: Measure = "unit",
    scope: Scope = "stage",
    seconds: float,
    training_seconds: float,
) -> str:
    """Write similarity.json and .png, tree.json, .png and .txt to `out`; returns the text.

    seconds: what warm-up and measuring took; training_seconds: what the training that follows takes. Raises OSError.
    """
    tree = choice.tree
    lines = [tree_text(tree), "", f"tree: {tree}", f"cost J: {choice.objective:.4f} ({measure}, {scope})"]
    lines += [f"{name}: {cost:,.10g}" for name, cost in choice.costs.items()]
    share = seconds / training_seconds
    lines.append(f"found in {seconds:.0f} s, {share:.1%} of the {training_seconds:.0f} s of training that follow")
    if share > DEAR:
        lines.append(f"warning: more than {DEAR:.0%}; fewer --observations or --warm_up steps cost less")
    if warning := doubt(similarity, tree, measure=measure, scope=scope):
        lines.append(f"warning: {warning}")
    text = "\n".join(lines)
    write_similarity(out / "similarity.json", similarity)
    write_whole(out / "similarity.png", heat_maps(similarity, measure))
    write_whole(out / "tree.json", (json.dumps(tree.to_json()) + "\n").encode())
    write_whole(out / "tree.png", tree_picture(tree))
    write_whole(out / "tree.txt", (text + "\n").encode())
    return text
