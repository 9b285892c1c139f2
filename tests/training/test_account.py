"""What a model costs equals closed forms that were written apart from its tensors, piece by piece."""

import json
import re
import sys
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ptsa_serve.errors import TreeError
from ptsa_serve.task_tree import TaskTree
from tests.training.closed_forms import ADAPTED, FOUR, PASCAL, TEETH, Case, formula
from training.__main__ import main
from training.accounting.account import Account, account
from training.accounting.count import CountConfig, count, parse_tasks
from training.accounting.method_list import MethodsConfig, list_methods, methods_table
from training.backbones.swin import SWINS
from training.errors import ConfigError
from training.methods import METHODS
from training.network.model import ModelConfig
from training.rules import RULES


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


def test_the_help_of_fit_names_every_method_with_its_source(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["training", "fit", "--help"])
    with pytest.raises(SystemExit):
        main()
    text = capsys.readouterr().out
    assert all(f"\n  {name} ({spec.source})\n" in text for name, spec in METHODS.items())


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
