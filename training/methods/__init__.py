"""The methods by name. A new one is a file here and a line below.

A method's file says what is added at which slots, what is trained of the backbone, and which streams there are.
"""

from dataclasses import asdict
from typing import Any

from ptsa_serve.task_tree import TaskTree
from training.backbones.base import Backbone, Tap
from training.errors import ConfigError
from training.methods.base import Method, MethodSpec
from training.methods.bitfit import BITFIT
from training.methods.decoders import DECODERS_ALONE
from training.methods.lora import LORA, LORA_PER_TASK
from training.methods.mtlora import MTLORA
from training.methods.multi_task import MULTI_TASK
from training.methods.ptsa import PTSA
from training.methods.rcm import RCM
from training.methods.single_task import SINGLE_TASK
from training.methods.taps import TAPS
from training.methods.tinting import TINTING

__all__ = ["METHODS", "Method", "MethodSpec", "build_method", "method_options", "method_tree"]

METHODS: dict[str, MethodSpec] = {
    "single_task": SINGLE_TASK,
    "multi_task": MULTI_TASK,
    "decoders": DECODERS_ALONE,
    "bitfit": BITFIT,
    "lora": LORA,
    "lora_per_task": LORA_PER_TASK,
    "mtlora": MTLORA,
    "ptsa": PTSA,
    "taps": TAPS,
    "rcm": RCM,
    "tinting": TINTING,
}


def build_method(name: str, backbone: Backbone, tree: TaskTree, options: dict[str, Any], tap: Tap) -> Method:
    """A method at its start: the network is the backbone's. Raises ConfigError for options that do not fit it."""
    spec = _spec(name)
    if len(tree.stages) != len(backbone.widths):
        raise ConfigError(f"the tree has {len(tree.stages)} stages, the backbone {len(backbone.widths)}")
    return spec.build(backbone, method_tree(name, tree), _options(name, options), tap)


def method_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """All options of a method as JSON, defaults filled in. Raises ConfigError for those that it does not have."""
    return asdict(_options(name, options))


def method_tree(name: str, tree: TaskTree) -> TaskTree:
    """The tree of a method for these tasks: `tree` itself where it may have any."""
    match _spec(name).tree:
        case "any":
            return tree
        case "shared":
            return TaskTree.shared(tree.tasks, len(tree.stages))
        case "independent":
            return TaskTree.independent(tree.tasks, len(tree.stages))


def _spec(name: str) -> MethodSpec:
    if name not in METHODS:
        raise ConfigError(f"method {name!r} is unknown; known are {', '.join(METHODS)}")
    return METHODS[name]


def _options(name: str, options: dict[str, Any]) -> Any:
    spec = _spec(name)
    known = list(spec.options.__dataclass_fields__)
    if unknown := [option for option in options if option not in known]:
        raise ConfigError(f"method {name} has no option {unknown[0]!r}; it has {', '.join(known) if known else 'none'}")
    return spec.options(**options)
