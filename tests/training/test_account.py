"""What a model costs equals closed forms that were written apart from its tensors, piece by piece."""

import json
import re
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ptsa_serve.errors import TreeError
from ptsa_serve.task_tree import TaskTree
from training.__main__ import main
from training.accounting.account import Account, account
from training.accounting.count import CountConfig, count, parse_tasks
from training.accounting.method_list import MethodsConfig, list_methods, methods_table
from training.backbones.swin import SWINS
from training.errors import ConfigError
from training.methods import METHODS
from training.network.model import ModelConfig
from training.rules import RULES

FOUR = ("segmentation", "depth", "normals", "saliency")
PASCAL = "segmentation:21,human_parts:7,saliency,normals"
ADAPTED = (
    "ptsa", "lora", "lora_per_task", "mtlora", "mtl_lora", "tora", "dora", "sinewich", "palora", "tadformer",
)  # fmt: skip
TEETH = ("dora", "ditask", "sinewich")  # with weights of their own


@dataclass(frozen=True)
class Case:
    """A Swin by its numbers, and what adapts it. `rank` is one a stage."""

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    method: str
    rank: tuple[int, ...]
    counts: tuple[int, ...]
    channels: tuple[int, ...]
    side: int
    decoder: str
    options: dict[str, Any] = field(default_factory=dict)

    def groups(self, stage: int) -> int:
        tree = METHODS[self.method].tree
        return {"shared": 1, "independent": len(self.channels), "any": self.counts[stage]}[tree]

    def tokens(self, stage: int) -> int:
        return (self.side // 4) ** 2 // 4**stage

    def channel(self, stage: int) -> int:
        return self.width * 2**stage

    def pieces(self, stage: int) -> dict[str, int]:
        """Parameters of a stage of the backbone by what they are."""
        c, d, h, last = self.channel(stage), self.depths[stage], self.heads[stage], len(self.depths) - 1
        pieces = {"weights": 12 * d * c * c, "biases": 9 * d * c, "norms": 4 * d * c, "tables": 169 * d * h}
        pieces |= {"reduction": 8 * c * c, "merge_norm": 8 * c} if stage < last else {}
        return pieces | ({"patch": 49 * c, "patch_norm": 2 * c} if stage == 0 else {})

    def policy(self, piece: str) -> str:
        """What methods of adapters do with a piece."""
        usual = "frozen" if self.method in ("sinewich", "tadformer") else "train"
        norms, merge = self.options.get("norms", "shared"), self.options.get("merge", usual)
        tables, patch = self.options.get("tables", "shared"), self.options.get("patch", "train")
        match piece:
            case "weights":
                return "adapted"
            case "reduction":
                return {"train": "shared", "lora": "adapted", "frozen": "frozen"}[merge]
            case "norms" | "merge_norm" | "patch_norm":
                return norms
            case "tables":
                return tables
            case "patch":
                return "shared" if patch == "train" else "frozen"
        return "frozen"

    def layers(self, piece: str, stage: int) -> list[tuple[int, int]]:
        """Inputs and outputs of every layer that is adapted there; none where the rank is 0."""
        c, block = self.channel(stage), ((1, 3), (1, 1), (1, 4), (4, 1))
        shapes = {"weights": block * self.depths[stage], "reduction": ((4, 2),)}[piece]
        return [(c * i, c * o) for i, o in shapes] if self.rank[stage] or self.method == "ditask" else []

    def factors(self, piece: str, stage: int) -> int:
        """Parameters of one pair of factors at every layer."""
        return sum(self.rank[stage] * (i + o) for i, o in self.layers(piece, stage))

    def adapters(self, piece: str, stage: int) -> int:
        """Parameters that are trained, of all groups."""
        r, g, layers = self.rank[stage], self.groups(stage), self.layers(piece, stage)
        match self.method:
            case "mtl_lora":
                return sum(r * (i + 3 * o) + g * (r * r + 3) for i, o in layers)
            case "tora":
                return sum(r * (i + o) + 4 * r * r + 4 * g for i, o in layers)
            case "dora":
                return sum(r * (i + o) + o for i, o in layers)
            case "ditask":
                return 63 * len(layers)
            case "sinewich":
                return sum(r * (i + o) for i, o in layers) + (3 * (r * r + 1) if r and piece == "weights" else 0)
        return g * self.factors(piece, stage)

    def teeth(self, stage: int) -> tuple[int, int]:
        """Parameters that are trained for the teeth of a stage, and those of their weights."""
        c, r, t = self.channel(stage), self.rank[stage], len(self.channels)
        trained = {"dora": 12 * c * r + 6 * c, "ditask": 3 * (self.options.get("task_cells", 4) - 1), "sinewich": 3}[
            self.method
        ]
        return (t * trained, t * 9 * c * c) if r or self.method == "ditask" else (0, 0)


def formula(case: Case) -> Account:
    adapters, extras, folded, low_rank = by_method(case)
    decoders = sum(decoder(case, o) for o in case.channels)
    heads = sum(o * {"hrnet": 1081, "pyramid": 49}[case.decoder] for o in case.channels)
    trained = heads if case.method == "tinting" else decoders
    norms = {"hrnet": 2 * 1080, "pyramid": 96 + 96 + 48}[case.decoder] * len(case.channels)
    return Account(adapters, extras, trained, folded + decoders - norms, low_rank + decoders - norms, adds(case))


def by_method(case: Case) -> tuple[int, int, int, int]:
    """Adapters, extras, folded, low rank: of the backbone."""
    stages, tasks = range(len(case.depths)), len(case.channels)
    backbone = sum(sum(case.pieces(s).values()) for s in stages)
    match case.method:
        case "single_task":
            return tasks * backbone, 0, tasks * backbone, tasks * backbone
        case "multi_task":
            return 0, backbone, backbone, backbone
        case "pareto":
            return tasks * backbone, 0, backbone, backbone
        case "decoders":
            return 0, 0, backbone, backbone
        case "bitfit":
            names = ("biases", *(("norms", "merge_norm", "patch_norm") if case.options.get("norms", True) else ()))
            pieces = [(name, n) for s in stages for name, n in case.pieces(s).items() if name in names]
            biases = case.width + sum(n if name == "biases" else n // 2 for name, n in pieces)
            return 0, biases, backbone, backbone
        case "tinting":
            tensors = 4 + 13 * sum(case.depths) + 3 * (len(case.depths) - 1)
            return tasks * tensors, 0, backbone, backbone
        case "rcm":
            adapters, folded, factors = 0, backbone, backbone
            for c, d in ((case.channel(s), case.depths[s]) for s in stages):
                k = min(64, c)
                adapters += tasks * d * (2 * c * k + 2 * c)
                folded += (tasks - 1) * d * 5 * c * c
                factors += tasks * d * 7 * c * k if k < c and tasks > 1 else (tasks - 1) * d * 5 * c * c
            return adapters, 0, folded, factors
        case "taps":
            linears = sum(case.pieces(s)["weights"] for s in stages)
            adapters, deployed = tasks * (linears + 4 * sum(case.depths)), backbone + (tasks - 1) * linears
            return adapters, 0, deployed, deployed
        case "polyhistor" | "polyhistor_lite":
            return generated(case, backbone)
        case "vmt" | "vmt_lite":
            shapes = [(d, case.channel(s), case.channel(s) // 4) for s, d in enumerate(case.depths)]
            tied = case.method == "vmt_lite"
            adapters = sum(d * (c * n + n + c) + 2 * n * tasks + d * (c if tied else c * n) for d, c, n in shapes)
            # Where tasks read, each has an up-projection and a bias, and so has the trunk.
            deployed = backbone + sum(d * (2 * c * n + n) + c + tasks * (c * n + c) for d, c, n in shapes)
            return adapters, 0, deployed, deployed
        case "adapt_finetune" | "lv_adapter":
            widths, inner = [case.channel(s) for s in stages], 4 * 64
            shared = sum(2 * c * (c // 4) + 9 * (c // 4) ** 2 for c in widths)
            if case.method == "adapt_finetune":
                return shared, backbone, backbone + shared, backbone + shared
            own = 16 * 512 + sum(2 * c * inner + 2 * 512 * inner + 1 for c in widths)
            deployed = backbone + shared + tasks * sum(2 * c * 4 * 16 for c in widths)
            return shared + tasks * own, backbone, deployed, deployed
        case "ct_moa":
            # Constant weights: all adapters and T numbers a task; deployed, each task has a wide `up` of its own.
            hidden = [tasks * max(1, case.channel(s) // 8) for s in stages]
            products = sum(n * case.channel(s) for s, n in zip(stages, hidden, strict=True))
            deployed = backbone + (1 + tasks) * products
            return 2 * products + 4 * tasks * tasks, 0, deployed, deployed
    found = [grouped(case, stage, piece, n) for stage in stages for piece, n in case.pieces(stage).items()]
    adapters, extras, folded, low_rank = map(sum, zip(*found, strict=True))
    if case.method == "palora":  # a member for each task
        return tasks * adapters, extras, folded, low_rank
    if case.method == "mtlora":
        # In each stage's last block: the trunk's factors stay, and every task has some of its own.
        of_tasks = sum(12 * case.channel(s) * 4 * tasks for s in stages if case.rank[s])
        kept = of_tasks + sum(12 * case.channel(s) * case.rank[s] for s in stages)
        return adapters + of_tasks, extras, folded + kept, low_rank + kept
    if case.method in TEETH:
        trained, weights = map(sum, zip(*map(case.teeth, stages), strict=True))
        return adapters + trained, extras, folded + weights, low_rank + weights
    if case.method == "tadformer":
        filters = sum(3 * (9 * r * r + 27 * r) for r in case.rank)
        prompts = tasks * case.width + sum(2 * case.channel(s) ** 2 for s in stages[:-1])
        norms = [2 * case.channel(s) for s in stages]
        # In last blocks the factors stay, and one norm; each stage has two scales, of the trunk and of tasks.
        kept = filters + prompts + sum(norms) + 2 * 4 + sum(12 * case.channel(s) * case.rank[s] for s in stages)
        own = filters + prompts + sum(n * d for n, d in zip(norms, case.depths, strict=True)) + 4
        return adapters + own, extras, folded + kept, low_rank + kept
    return adapters, extras, folded, low_rank


def generated(case: Case, backbone: int) -> tuple[int, int, int, int]:
    """Polyhistor's generators make two matrices for each task, behind each half of a block."""
    tasks, kb, both = len(case.channels), 32 * 8, [2 * d for d in case.depths]
    lite = case.method == "polyhistor_lite"
    widths = [case.channel(s) for s in range(len(both))]
    generators = [2 * kb * (c + c // 4) for c in widths]
    adapters = 32 * tasks + (generators[0] if lite else sum(n * g for n, g in zip(both, generators, strict=True)))
    adapters += sum(n * 2 * 4**s for s, n in enumerate(both)) if lite else 0
    deployed = backbone + tasks * sum(n * 2 * c * (c // 4) for n, c in zip(both, widths, strict=True))
    return adapters, 0, deployed, deployed


def grouped(case: Case, stage: int, piece: str, numel: int) -> tuple[int, int, int, int]:
    """The same of one piece of a stage."""
    g = case.groups(stage)
    match case.policy(piece):
        case "adapted":
            factors = case.factors(piece, stage)
            alone = g == 1 or not case.rank[stage]
            low_rank = numel if alone else numel + g * factors
            return case.adapters(piece, stage), 0, numel if alone else g * numel, low_rank
        case "per_group":
            return g * numel, 0, g * numel, g * numel
        case "shared":
            return 0, numel, numel, numel
    return 0, 0, numel, numel


def decoder(case: Case, outputs: int) -> int:
    c = case.width
    if case.decoder == "hrnet":
        return 18 * 2 * c + 36 * 4 * c + (72 + 144) * 8 * c + 270 * 1080 + 1080 + 2160 + 1081 * outputs
    lateral = 48 * (c + 1) + 96 * (2 * c + 1) + 96 * (4 * c + 1) + 96 * (16 * c + 4 + 1)
    smooth = 2 * (9 * 96 * 96 + 2 * 96) + 9 * 48 * 48 + 2 * 48
    return 2 * 15 * c + lateral + smooth + 96 * 48 + 49 * outputs


def adds(case: Case) -> int:
    """Multiply-adds: linear layers, attention's two products, merging, patches, decoders."""
    tasks, total = len(case.channels), 0
    single = case.method == "single_task"
    for stage, depth in enumerate(case.depths):
        n, c = case.tokens(stage), case.channel(stage)
        merging = 2 * n * c * c if stage < len(case.depths) - 1 else 0
        total += case.groups(stage) * (depth * (12 * n * c * c + 2 * n * 49 * c) + merging)
        if case.method == "mtlora":
            # One dense product serves all; where decoders read behind the merging, a task's features are merged too.
            teeth = tasks * merging if case.decoder == "hrnet" else 0
            total += 12 * n * c * (case.rank[stage] + 4 * tasks) + teeth if case.rank[stage] else 0
        if case.method in TEETH and case.teeth(stage)[0]:
            total += n * case.teeth(stage)[1] + (tasks * merging if case.decoder == "hrnet" else 0)
        if case.method.startswith("vmt"):
            total += n * c * (c // 4) * (2 * depth + tasks) + (tasks * merging if case.decoder == "hrnet" else 0)
        if case.method in ("adapt_finetune", "lv_adapter"):
            own = tasks if case.method == "lv_adapter" else 0
            total += n * (2 * c * (c // 4) + 9 * (c // 4) ** 2) + own * n * 2 * c * 4 * 16
            total += max(1, own) * merging if case.decoder == "hrnet" else 0
        if case.method.startswith("polyhistor"):
            total += tasks * 2 * depth * 2 * n * c * (c // 4)
            # All is one up to the first adapter, behind the first attention.
            total -= (tasks - 1) * (4 * n * c * c + 2 * n * 49 * c) if stage == 0 else 0
        if case.method == "ct_moa":
            teeth = tasks * merging if case.decoder == "hrnet" else 0
            total += tasks * 2 * n * c * tasks * max(1, c // 8) + teeth
        if case.method == "tadformer":
            total += prompted(case, stage) + (tasks * merging if case.decoder == "hrnet" else 0)
    total += case.tokens(0) * 48 * case.width * (tasks if single else 1)
    if case.method == "rcm":  # tasks part behind the first attention
        total -= (tasks - 1) * case.tokens(0) * (3 * case.width**2 + 2 * 49 * case.width)
    return total + sum(decoder_adds(case, o) for o in case.channels)


def prompted(case: Case, stage: int) -> int:
    """What TADFormer adds to a stage: prompts in its blocks and behind it, adapters and filters in its last block."""
    tasks, depth, n, c, r = (
        len(case.channels),
        case.depths[stage],
        case.tokens(stage),
        case.channel(stage),
        case.rank[stage],
    )
    windows = n // 49
    prompts = depth * (4 * c * c * windows * tasks + 8 * c * c * tasks + 2 * windows * c * ((49 + tasks) ** 2 - 49**2))
    trunk = 2 * c * r * (n + windows * tasks) + 10 * c * r * (n + tasks)
    filters = tasks * (12 * c * r * n + 9 * r * r * (windows + 2))
    streams = 1 + (tasks if case.decoder == "hrnet" else 0)
    wider = streams * tasks * 2 * c * c if stage < len(case.depths) - 1 else 0
    return prompts + trunk + filters + wider


def decoder_adds(case: Case, outputs: int) -> int:
    n, c = [case.tokens(s) for s in range(4)], case.width
    if case.decoder == "hrnet":
        levels = n[1] * 2 * c * 18 + n[2] * 4 * c * 36 + n[3] * 8 * c * (72 + 144)
        return levels + n[1] * (270 * 1080 + 1080 * outputs)
    lateral = n[0] * c * 48 + n[1] * 2 * c * 96 + n[2] * 4 * c * 96 + n[3] * (16 * c + 4) * 96
    smooth = (n[1] + n[2]) * 9 * 96 * 96 + n[0] * 9 * 48 * 48 + n[1] * 96 * 48
    return lateral + smooth + n[0] * 48 * outputs


def measured(case: Case, monkeypatch: pytest.MonkeyPatch) -> Account:
    with monkeypatch.context() as patch:
        spec = {"embed_dim": case.width, "depths": case.depths, "num_heads": case.heads}
        patch.setitem(SWINS, "swin_counted", spec)
        options = {**case.options, "rank": list(case.rank)} if case.method in ADAPTED else case.options
        tasks = ",".join(f"t{index}:{channels}" for index, channels in enumerate(case.channels))
        config = CountConfig(
            "swin_counted", case.side, tasks, case.method, options=options, decoder=case.decoder,
            tree=",".join(map(str, case.counts)),
        )  # fmt: skip
        return account(config.model(), (case.side, case.side))


@st.composite
def any_case(draw: st.DrawFn) -> Case:
    method = draw(st.sampled_from(list(METHODS)))
    channels = draw(st.lists(st.integers(1, 40), min_size=1, max_size=4))
    heads = draw(st.integers(1, 2))
    one_trunk = method in ("mtlora", "palora", "tadformer", *TEETH)
    both = ("shared", "frozen") if one_trunk else ("shared", "per_group", "frozen")
    options = {"bitfit": {"norms": draw(st.booleans())}}
    least = int(METHODS[method].tree != "shared" or method == "tadformer")
    adapted = {"norms": st.sampled_from(both), "tables": st.sampled_from(both)} | {
        "merge": st.sampled_from(("train", "frozen", *(() if method == "ditask" else ("lora",)))),
        "patch": st.sampled_from(("train", "frozen")),
    }
    return Case(
        width=4 * heads * draw(st.integers(1, 3)),
        depths=tuple(draw(st.lists(st.integers(1, 2), min_size=4, max_size=4))),
        heads=tuple(heads * 2**stage for stage in range(4)),
        method=method,
        # Without adapters nothing tells groups apart, and they are computed as one: no closed form says where.
        rank=tuple(draw(st.lists(st.integers(least, 5), min_size=4, max_size=4))),
        counts=tuple(sorted(draw(st.lists(st.integers(1, len(channels)), min_size=4, max_size=4)))),
        channels=tuple(channels),
        side=224,  # no window is padded
        decoder=draw(st.sampled_from(("hrnet", "pyramid"))),
        options=draw(st.fixed_dictionaries(adapted)) if method in (*ADAPTED, *TEETH) else options.get(method, {}),
    )


@settings(max_examples=10, deadline=None)
@given(case=any_case())
@example(Case(8, (1, 2, 1, 1), (1, 2, 4, 8), "tadformer", (1, 2, 1, 3), (1, 1, 1, 1), (1, 3), 224, "pyramid"))
@example(Case(4, (1, 2, 1, 1), (1, 2, 4, 8), "mtlora", (0, 2, 1, 0), (1, 1, 1, 1), (1, 3), 224, "pyramid"))
def test_counts_equal_their_closed_forms(case: Case) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        assert measured(case, monkeypatch) == formula(case)


@pytest.mark.parametrize("method", METHODS)
def test_counts_equal_their_closed_forms_for_every_method(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(12, (1, 1, 2, 1), (1, 2, 4, 8), method, (2, 2, 3, 3), (1, 1, 2, 4), (21, 7, 1, 3), 224, "hrnet")
    assert measured(case, monkeypatch) == formula(case)


def tiny(method: str, tree: str = "1,2,2,4", rank: int = 16, tasks: str = PASCAL, **options: Any) -> Case:
    counts = tuple(map(int, tree.split(",")))
    channels = tuple(task.channels for task in parse_tasks(tasks))
    heads = (3, 6, 12, 24)
    return Case(96, (2, 2, 6, 2), heads, method, (rank,) * 4, counts, channels, 448, "hrnet", options)


@pytest.mark.parametrize(
    ("case", "trainable"),
    [
        # As published, to the digit (MTLoRA, arXiv 2403.20320).
        (tiny("mtlora", rank=16), 4_953_146),
        (tiny("mtlora", rank=32), 6_083_642),
        (tiny("mtlora", rank=64), 8_344_634),
        # Of its code.
        (tiny("mtlora", rank=16, merge="lora"), 3_469_370),
        (tiny("mtlora", rank=32, merge="lora"), 4_664_378),
        (tiny("mtlora", rank=64, merge="lora"), 7_054_394),
        (tiny("single_task"), 112_017_896),
        (tiny("multi_task"), 29_464_442),
        (tiny("decoders"), 1_946_624),
        (tiny("bitfit"), 1_998_080),
        (tiny("bitfit", norms=False), 39_840 + 1_946_624),
        (tiny("lora"), 4_676_666),
        (tiny("rcm"), 4 * (565_248 + 8_832) + 1_946_624),  # 8,832: gains
        (tiny("tinting"), 169 * 4 + 1081 * (21 + 7 + 1 + 3)),
        (tiny("taps"), 4 * (25_878_528 + 48) + 1_946_624),
        (tiny("ct_moa"), 783_360 + 64 + 1_946_624),
        (tiny("tadformer", rank=16), 3_557_502),
        (tiny("tadformer", rank=32), 4_776_126),
        (tiny("tadformer", rank=64), 7_379_262),
        (tiny("lora_per_task"), 8_068_154),
        (tiny("mtl_lora"), 2_452_032 + 1_599_546 + 1_946_624),
        (tiny("ditask"), 1_602_714 + 1_946_624),
        (tiny("ditask", task_cells=64), 1_605_594 + 1_946_624),
        (tiny("sinewich", rank=64), 4_521_984 + 12 * 64**2 + 60 + 51_258 + 1_946_624),
        (tiny("tora", rank=32), 2_458_368 + 1_599_546 + 1_946_624),
        # As reconstructed: 2 k b (n + C_1) + T k + 2 * 468, and 2 k b (1 + 1 / 4) * 2 * 4,416 + T k.
        (tiny("polyhistor_lite"), 61_440 + 128 + 936 + 1_946_624),
        (tiny("polyhistor"), 5_652_480 + 128 + 1_946_624),
        # As reconstructed, n = C / 4: 1 % of four Swin-T; reading in all blocks would make it 1,092,624.
        (tiny("vmt"), 1_092_624 - 2 * 4 * (1_104 - 360) + 1_946_624),
        (tiny("vmt_lite"), 1_086_672 - 539_136 + 4_416 + 1_946_624),
        (tiny("adapt_finetune"), 832_320 + 27_517_818 + 1_946_624),
        (tiny("lv_adapter"), 832_320 + 4 * (2 * 1_440 * 256 + 4 * 2 * 512 * 256 + 4 + 8_192) + 27_517_818 + 1_946_624),
    ],
)
def test_closed_forms_give_the_counts_of_the_literature(case: Case, trainable: int) -> None:
    assert formula(case).trainable == trainable


@pytest.mark.parametrize("case", [tiny("mtlora"), tiny("mtlora", rank=64, merge="lora"), tiny("ptsa")])
def test_swin_tiny_itself_is_counted_right(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured(case, monkeypatch) == formula(case)


@pytest.mark.parametrize(
    ("tree", "rank", "trained", "frozen", "adapted"),
    [
        ("1,2,2,4", 4, 4_295_738, 2_747_450, 2_777_402),
        ("1,2,2,4", 8, 5_045_306, 3_497_018, 3_556_922),
        ("1,2,2,4", 16, 6_544_442, 4_996_154, 5_115_962),
        ("1,2,2,4", 32, 9_542_714, 7_994_426, 8_234_042),
        ("1,1,2,4", 16, 6_446_138, 4_897_850, 4_999_226),
        ("1,1,1,1", 16, 4_676_666, 3_128_378, 3_192_890),
        ("4,4,4,4", 16, 8_068_154, 6_519_866, 6_777_914),
    ],
)
def test_trainable_of_trees(tree: str, rank: int, trained: int, frozen: int, adapted: int) -> None:
    """By what is done with the layers that merge patches."""
    found = [formula(tiny("ptsa", tree, rank, merge=merge)).trainable for merge in ("train", "frozen", "lora")]
    assert found == [trained, frozen, adapted]


NORMS_OF_DECODERS = 4 * 2 * 1080  # deployed, they are part of convolutions


def test_deployed_on_swin_tiny() -> None:
    network = 27_517_818 + 1_946_624 - NORMS_OF_DECODERS
    for method in ("multi_task", "decoders", "bitfit", "lora"):
        assert (formula(tiny(method)).folded, formula(tiny(method)).low_rank) == (network, network)
    ptsa = formula(tiny("ptsa"))
    assert ptsa.folded == 81_486_714 + 1_946_624 - NORMS_OF_DECODERS
    assert ptsa.low_rank == 32_413_562 - NORMS_OF_DECODERS


@pytest.mark.parametrize(
    ("tasks", "tree", "giga"),
    [
        (PASCAL, "1,1,1,1", 21.94),
        (PASCAL, "1,1,2,4", 39.09),
        (PASCAL, "1,2,2,4", 42.21),
        (PASCAL, "1,2,3,4", 50.94),
        (PASCAL, "4,4,4,4", 75.65),
        ("segmentation:40,depth,normals", "1,2,2,3", 38.48),
        ("segmentation:40,depth,normals", "3,3,3,3", 56.82),
        ("segmentation:40,depth,normals,edge:1", "1,2,2,4", 42.25),
        (PASCAL + ",edge:1", "1,2,3,5", 54.72),
    ],
)
def test_multiply_adds_on_swin_tiny_with_attention(tasks: str, tree: str, giga: float) -> None:
    assert formula(tiny("ptsa", tree, tasks=tasks)).multiply_adds / 1e9 == pytest.approx(giga, abs=0.005)


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.lists(st.integers(1, n), min_size=1, max_size=4))))
def test_a_tree_of_counts_has_them(drawn: tuple[int, list[int]]) -> None:
    number, counts = drawn
    tasks = [f"t{index}" for index in range(number)]
    tree = TaskTree.of_counts(tasks, sorted(counts))
    assert list(tree.counts) == sorted(counts)
    if counts != sorted(counts):
        with pytest.raises(TreeError, match="numbers from 1 to"):
            TaskTree.of_counts(tasks, counts)


def test_trees_of_equal_counts_cost_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SWINS, "swin_counted", {"embed_dim": 12, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)})
    trees = ("a,b,c / a,b | c / a,b | c / a | b | c", "a,b,c / a,c | b / a,c | b / a | b | c")
    costs = [count(CountConfig("swin_counted", 64, "a:21,b:7,c:1", tree=tree)) for tree in trees]
    assert costs[0] == costs[1] == count(CountConfig("swin_counted", 64, "a:21,b:7,c:1", tree="1,2,2,3"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 450}, "--image-size is 450; it must be a multiple of 32 up to 8192"),
        ({"decoder": "unet"}, "--decoder 'unet' is unknown; known are pyramid, hrnet"),
        ({"width": 0}, "--width is 0"),
        ({"tasks": "parts"}, "task 'parts' is unknown; known are .*; of others say parts:7"),
        ({"tasks": "depth:3"}, "task depth has 1 channels; leave '3' out"),
        ({"tasks": "parts:300"}, "task parts has '300' channels; allowed are 1 to 256"),
        ({"tasks": "depth,depth"}, "name each once"),
        ({"tree": "1,2,5"}, "allowed are numbers from 1 to 4 that never fall"),
        ({"tree": "a/a"}, "the tree names a, the tasks are segmentation"),
        ({"tree": "1,2"}, "the tree has 2 stages, the backbone 4"),
        ({"method": "vpt"}, "method 'vpt' is unknown"),
        ({"backbone": "vit"}, "backbone 'vit' is unknown"),
        ({"options": {"ranks": 3}}, "ptsa has no option 'ranks'"),
    ],
)
def test_what_cannot_be_counted_is_refused(options: dict, message: str) -> None:
    with pytest.raises((ConfigError, TreeError), match=message):
        count(CountConfig(**options))


def test_the_command_as_people_and_as_programs_type_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"training count --backbone swin_tiny --image-size 448 --tasks {PASCAL} --method mtlora --rank 16"
    monkeypatch.setattr(sys, "argv", f"{command} --decoder hrnet --json".split())
    main()
    found = json.loads(capsys.readouterr().out)
    assert found["trainable"] == found["adapters"] + found["extras"] + found["decoders"] == 4_953_146
    monkeypatch.setattr(sys, "argv", f"{command} --decoder=hrnet".split())
    main()
    assert re.search(r"^trainable parameters +4,953,146$", capsys.readouterr().out, re.MULTILINE)


def test_the_list_of_methods_is_the_registry(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["training", "methods", "--json"])
    main()
    found = json.loads(capsys.readouterr().out)
    assert list(found["methods"]) == list(METHODS)
    assert list(found["rules"]) == list(RULES)
    assert {"kind", "source", "tree", "trains", "options", "settings", "folds"} == found["methods"]["ptsa"].keys()
    assert found["methods"]["mtlora"]["options"]["task_rank"] == 4
    monkeypatch.setattr(sys, "argv", ["training", "methods"])
    main()
    text = capsys.readouterr().out
    assert all(f"{name}: {spec.kind}" in text and spec.trains in text for name, spec in METHODS.items())
    assert all(re.search(rf"^  {name} +\w", text, re.MULTILINE) for name in RULES)


def test_on_a_backbone_the_list_says_what_each_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    some = {name: METHODS[name] for name in ("ptsa", "mtlora", "tadformer")}
    monkeypatch.setattr("training.accounting.method_list.METHODS", some)
    listed = list_methods(MethodsConfig("pvt_v2_b0"))
    found = listed["methods"]
    assert found["ptsa"]["graph"] == {"copies": [1, 1, 2, 4], "teeth": 0, "kept": []}
    assert found["mtlora"]["graph"] == {"copies": [1, 1, 1, 1], "teeth": 4, "kept": ["low_rank_add"]}
    costs = account(ModelConfig("pvt_v2_b0", TaskTree.of_counts(FOUR, (1, 1, 2, 4)), "ptsa"), (448, 448))
    assert found["ptsa"]["trainable"] == costs.trainable
    assert found["ptsa"]["multiply_adds"] == costs.multiply_adds
    assert "windows" in found["tadformer"]["refused"]
    assert "stages computed 1-1-2-4 times" in methods_table(listed)
    with pytest.raises(ConfigError, match="--backbone 'resnet' is unknown; known are swin_nano"):
        MethodsConfig("resnet")
