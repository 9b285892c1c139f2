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
from training.backbones.swin import SWINS
from training.errors import ConfigError
from training.methods import METHODS

PASCAL = "segmentation:21,human_parts:7,saliency,normals"
ADAPTED = ("ptsa", "lora", "lora_per_task", "mtlora", "tadformer")


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
        usual = "frozen" if self.method == "tadformer" else "train"
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

    def factors(self, piece: str, stage: int) -> int:
        """Parameters of one adapter."""
        c, d, r = self.channel(stage), self.depths[stage], self.rank[stage]
        return {"weights": 16 * d * c * r, "reduction": 6 * c * r}[piece]


def formula(case: Case) -> Account:
    adapters, extras, folded, low_rank = by_method(case)
    decoders = sum(decoder(case, o) for o in case.channels)
    norms = {"hrnet": 2 * 1080, "pyramid": 96 + 96 + 48}[case.decoder] * len(case.channels)
    return Account(adapters, extras, decoders, folded + decoders - norms, low_rank + decoders - norms, adds(case))


def by_method(case: Case) -> tuple[int, int, int, int]:
    """Adapters, extras, folded, low rank: of the backbone."""
    stages, tasks = range(len(case.depths)), len(case.channels)
    backbone = sum(sum(case.pieces(s).values()) for s in stages)
    match case.method:
        case "single_task":
            return tasks * backbone, 0, tasks * backbone, tasks * backbone
        case "multi_task":
            return 0, backbone, backbone, backbone
        case "decoders":
            return 0, 0, backbone, backbone
        case "bitfit":
            names = ("biases", *(("norms", "merge_norm", "patch_norm") if case.options.get("norms", True) else ()))
            pieces = [(name, n) for s in stages for name, n in case.pieces(s).items() if name in names]
            biases = case.width + sum(n if name == "biases" else n // 2 for name, n in pieces)
            return 0, biases, backbone, backbone
        case "ct_moa":
            # Constant weights: all adapters and T numbers a task; deployed, each task has a wide `up` of its own.
            hidden = [tasks * max(1, case.channel(s) // 8) for s in stages]
            products = sum(n * case.channel(s) for s, n in zip(stages, hidden, strict=True))
            deployed = backbone + (1 + tasks) * products
            return 2 * products + 4 * tasks * tasks, 0, deployed, deployed
    found = [grouped(case, stage, piece, n) for stage in stages for piece, n in case.pieces(stage).items()]
    adapters, extras, folded, low_rank = map(sum, zip(*found, strict=True))
    if case.method == "mtlora":
        # In each stage's last block: the trunk's factors stay, and every task has some of its own.
        of_tasks = sum(12 * case.channel(s) * 4 * tasks for s in stages if case.rank[s])
        kept = of_tasks + sum(12 * case.channel(s) * case.rank[s] for s in stages)
        return adapters + of_tasks, extras, folded + kept, low_rank + kept
    if case.method == "tadformer":
        filters = sum(3 * (9 * r * r + 27 * r) for r in case.rank)
        prompts = tasks * case.width + sum(2 * case.channel(s) ** 2 for s in stages[:-1])
        norms = [2 * case.channel(s) for s in stages]
        # In last blocks the factors stay, and one norm; each stage has two scales, of the trunk and of tasks.
        kept = filters + prompts + sum(norms) + 2 * 4 + sum(12 * case.channel(s) * case.rank[s] for s in stages)
        own = filters + prompts + sum(n * d for n, d in zip(norms, case.depths, strict=True)) + 4
        return adapters + own, extras, folded + kept, low_rank + kept
    return adapters, extras, folded, low_rank


def grouped(case: Case, stage: int, piece: str, numel: int) -> tuple[int, int, int, int]:
    """The same of one piece of a stage."""
    g = case.groups(stage)
    match case.policy(piece):
        case "adapted":
            factors = case.factors(piece, stage)
            alone = g == 1 or not case.rank[stage]
            return g * factors, 0, numel if alone else g * numel, numel if alone else numel + g * factors
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
        if case.method == "ct_moa":
            teeth = tasks * merging if case.decoder == "hrnet" else 0
            total += tasks * 2 * n * c * tasks * max(1, c // 8) + teeth
        if case.method == "tadformer":
            total += prompted(case, stage) + (tasks * merging if case.decoder == "hrnet" else 0)
    total += case.tokens(0) * 48 * case.width * (tasks if single else 1)
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
    both = ("shared", "frozen") if method in ("mtlora", "tadformer") else ("shared", "per_group", "frozen")
    options = {"bitfit": {"norms": draw(st.booleans())}}
    least = int(METHODS[method].tree != "shared" or method == "tadformer")
    adapted = {"norms": st.sampled_from(both), "tables": st.sampled_from(both)} | {
        "merge": st.sampled_from(("train", "lora", "frozen")),
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
        options=draw(st.fixed_dictionaries(adapted)) if method in ADAPTED else options.get(method, {}),
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
        (tiny("ct_moa"), 783_360 + 64 + 1_946_624),
        (tiny("tadformer", rank=16), 3_557_502),
        (tiny("tadformer", rank=32), 4_776_126),
        (tiny("tadformer", rank=64), 7_379_262),
        (tiny("lora_per_task"), 8_068_154),
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
    assert list(found) == list(METHODS)
    assert {"kind", "source", "tree", "trains", "options", "folds"} == found["ptsa"].keys()
    assert found["mtlora"]["options"]["task_rank"] == 4
    monkeypatch.setattr(sys, "argv", ["training", "methods"])
    main()
    text = capsys.readouterr().out
    assert all(f"{name}: {spec.kind}" in text and spec.trains in text for name, spec in METHODS.items())
