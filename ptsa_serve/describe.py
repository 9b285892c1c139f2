"""What `ptsa info` and `ptsa tune` print, for people."""

from collections.abc import Mapping
from typing import Any

from ptsa_serve.selection import Timing

__all__ = ["model_lines", "timing_line"]


def timing_line(timing: Timing) -> str:
    """An engine with its milliseconds, or why it was left out."""
    if timing.refused:
        return f"{timing}: left out: {timing.refused}"
    figures = f"{timing.alone_ms:.1f} ms a photo alone, {timing.crowd_ms:.1f} ms side by side"
    return f"{timing}: {figures}, off the sample by {timing.error:.2g}"


def model_lines(description: Mapping[str, Any], errors: Mapping[str, float]) -> list[str]:
    """The model as `Predictor.info` describes it, and how well it runs here (`Predictor.verify`)."""
    counts, engine = description["counts"], description["engine"]
    sizes = [f"{width}x{height}" for height, width in description["input"]["sizes"]]
    if rule := description["input"].get("any_size"):
        sizes.append(f"multiples of {rule['multiple']} up to {rule['pixels']:,} pixels")
    lines = [f"{description['name']}@{description['version']}, on {description['backbone']['name']}", "tasks"]
    for task in description["tasks"]:
        classes = f", {len(task['classes'])} classes" if task.get("classes") else ""
        lines.append(f"  {task['name']:<14}{task['kind']}{' in ' + task['unit'] if task.get('unit') else ''}{classes}")
    lines.append("tree (tasks that share an adapter, stage by stage)")
    for number, stage in enumerate(description["tree"]["stages"], 1):
        lines.append(f"  stage {number}       {' | '.join(', '.join(group) for group in stage)}")
    parts = ", ".join(f"{counts[key] / 1e6:.2f} M {key}" for key in ("frozen", "trainable", "deployed"))
    lines += [f"parameters      {parts}", f"grids           {', '.join(sizes)}"]
    lines += [f"multiply-adds   {number / 1e9:.2f} G at {size}" for size, number in counts["multiply_adds"].items()]
    for metric in description["metrics"]:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in metric.get("figures", {}).items())
        lines.append(f"figures         {metric.get('data')} {metric.get('split')}: {figures}")
    worst = max(errors.values())
    forms = ", ".join(f"{form['precision']} {form['branches']}" for form in description["forms"])
    runs = f"{engine['name']} {engine['version']}, {engine['precision']} {engine['branches']}"
    lines += [f"forms           {forms}", f"engine          {runs}, reproduces the sample (worst {worst:.2g})"]
    return lines
