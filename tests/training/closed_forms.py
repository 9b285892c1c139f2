"""What models cost, in closed forms that were written apart from their tensors, piece by piece."""

from dataclasses import dataclass, field
from typing import Any

from training.accounting.account import Account
from training.methods import METHODS

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
