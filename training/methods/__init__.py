"""The methods by name. A new one is a file here and a line below.

A method's file says what is added at which slots, what is trained of the backbone, and which streams there are.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ptsa_serve.task_tree import TaskTree
from training.backbones.base import Backbone, Tap
from training.errors import ConfigError
from training.methods.adapt_finetune import ADAPT_FINETUNE, LV_ADAPTER
from training.methods.base import Method, MethodSpec
from training.methods.bitfit import BITFIT
from training.methods.ct_moa import CT_MOA
from training.methods.decoders import DECODERS_ALONE
from training.methods.ditask import DITASK
from training.methods.dora import DORA
from training.methods.lora import LORA, LORA_PER_TASK
from training.methods.mtl_lora import MTL_LORA
from training.methods.mtlora import MTLORA
from training.methods.multi_task import MULTI_TASK
from training.methods.palora import PALORA
from training.methods.pareto import PARETO
from training.methods.polyhistor import POLYHISTOR, POLYHISTOR_LITE
from training.methods.ptsa import PTSA
from training.methods.rcm import RCM
from training.methods.sinewich import SINEWICH
from training.methods.single_task import SINGLE_TASK
from training.methods.tadformer import TADFORMER
from training.methods.taps import TAPS
from training.methods.tinting import TINTING
from training.methods.tora import TORA
from training.methods.vmt import VMT, VMT_LITE

__all__ = ["METHODS", "Method", "MethodSpec", "build_method", "method_options", "method_tree", "set_anew"]

METHODS: dict[str, MethodSpec] = {
    "single_task": SINGLE_TASK,
    "multi_task": MULTI_TASK,
    "decoders": DECODERS_ALONE,
    "bitfit": BITFIT,
    "lora": LORA,
    "lora_per_task": LORA_PER_TASK,
    "mtlora": MTLORA,
    "mtl_lora": MTL_LORA,
    "tora": TORA,
    "dora": DORA,
    "ditask": DITASK,
    "sinewich": SINEWICH,
    "ptsa": PTSA,
    "taps": TAPS,
    "palora": PALORA,
    "pareto": PARETO,
    "polyhistor": POLYHISTOR,
    "polyhistor_lite": POLYHISTOR_LITE,
    "vmt": VMT,
    "vmt_lite": VMT_LITE,
    "adapt_finetune": ADAPT_FINETUNE,
    "lv_adapter": LV_ADAPTER,
    "ct_moa": CT_MOA,
    "tadformer": TADFORMER,
    "rcm": RCM,
    "tinting": TINTING,
}


def build_method(name: str, backbone: Backbone, tree: TaskTree, options: dict[str, Any], tap: Tap) -> Method:
    """A method at its start: the network is the backbone's. Raises ConfigError for options that do not fit it."""
    spec = _spec(name)
    if len(tree.stages) != len(backbone.widths):
        raise ConfigError(f"the tree has {len(tree.stages)} stages, the backbone {len(backbone.widths)}")
    if spec.windows and all(slot.kind != "prompts" for slot in backbone.slots):
        raise ConfigError(
            f"method {name} puts tokens into windows, {backbone.name} has none; take a Swin: swin_nano, ..."
        )
    return spec.build(backbone, method_tree(name, tree), _options(name, options), tap)


def method_options(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """All options of a method as JSON, defaults filled in. Raises ConfigError for those that it does not have."""
    return asdict(_options(name, options))


def set_anew(name: str, options: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A trained method's options with some that no tensor depends on. Raises ConfigError for any other."""
    known = _spec(name).settings
    if fixed := [setting for setting in settings if setting not in known]:
        raise ConfigError(
            f"{fixed[0]!r} of a trained {name} cannot be set; what can is {', '.join(known) if known else 'nothing'}"
        )
    return method_options(name, {**options, **settings})


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
