"""The teachers with labels: what each network computes, what is said of damaged files; the real ones where they are."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer

from training.data import DATASETS
from training.errors import CheckpointError
from training.labelling.ade20k import Outputs, familiar, nyu_classes, room_share
from training.labelling.base import Guess
from training.labelling.dinov2 import DINOv2
from training.labelling.finding import find_teachers
from training.labelling.grids import on_grid
from training.labelling.litert import LiteRT
from training.labelling.maps import label_of, label_size
from training.labelling.room_head import load_heads
from training.labelling.u2net import U2Net

RNG = np.random.default_rng(0)


def outputs(wide: float = 3.0) -> Outputs:
    sizes = ((129, 129, 151), (65, 65, 256), (128, 128, 32), (32, 32, 128))
    return Outputs(*(RNG.normal(0, wide, size).astype(np.float32) for size in sizes))


def test_beliefs_of_both_networks_are_shared_out_whole() -> None:
    classes = nyu_classes(outputs())
    assert classes.shape == (128, 128, 39)
    assert classes.min() >= 0
    assert classes.sum(-1).max() <= 1 + 1e-5


def test_where_both_networks_agree_nothing_is_changed() -> None:
    many = np.full((129, 129, 151), -9, np.float32)
    few = np.full((128, 128, 32), -9, np.float32)
    # Half of the belief is that of wall and bed, which both know; the other half DeepLab alone can name.
    many[..., [1, 8]], many[..., 66] = 0, np.log(2)
    few[..., [1, 8]], few[..., 0] = 0, np.log(2)
    classes = nyu_classes(Outputs(many, outputs().features, few, outputs().few_features))
    np.testing.assert_allclose(classes[..., [0, 3, 32]].mean((0, 1)), (0.25, 0.25, 0.5), atol=0.01)


def test_a_room_is_its_walls_and_furniture() -> None:
    logits = np.zeros((2, 4, 151), np.float32)
    logits[:, :1, 1], logits[:, 1:2, 8], logits[:, 2:3, 3], logits[:, 3:, 13] = 50, 50, 50, 50  # wall, bed, sky, person
    share = room_share(logits)
    assert share == pytest.approx(0.5)
    assert familiar(share, Guess(logits, np.full((2, 4), 0.8, np.float32))) == pytest.approx(0.4)


def vit(folder: Path) -> tuple[VisionTransformer, Path]:
    """A small vision transformer of timm's, and the file of its weights as DINOv2's are stored: matrices in 8 bits."""
    torch.manual_seed(0)
    model = VisionTransformer(img_size=42, patch_size=14, embed_dim=128, depth=3, num_heads=2, init_values=0.5)
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in model.state_dict().items():
        short = name.replace("attn.", "").replace("mlp.", "").replace(".gamma", "").replace("patch_embed.proj", "patch")
        short = short.replace("pos_embed", "pos").replace("cls_token", "cls")
        if short.startswith(("head", "fc_norm")):
            continue
        value = tensor + 0.3 * torch.randn_like(tensor) / max(tensor.shape[-1], 1) ** 0.5
        if value.ndim == 2:
            scale = value.abs().amax(1, keepdim=True) / 127
            stored[short], stored[f"{short}_scale"] = (value / scale).round().to(torch.int8), scale
            value = stored[short] * scale
        else:
            stored[short] = value
        tensor.copy_(value)
    save_file(stored, folder / "vit.safetensors")
    return model.eval(), folder / "vit.safetensors"


def test_dinov2_is_timms_network(tmp_path: Path) -> None:
    model, path = vit(tmp_path)
    ours = DINOv2(path)
    image = torch.rand(2, 3, 42, 42) * 255
    mean, std = torch.tensor((123.675, 116.28, 103.53)), torch.tensor((58.395, 57.12, 57.375))
    scaled = (image - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    with torch.no_grad():
        last, middle = ours(image, (1,))
        between: Any = model.get_intermediate_layers(scaled, [1], reshape=True)
        tokens = model.forward_features(scaled)[:, 1:].transpose(1, 2).unflatten(2, (3, 3))
    torch.testing.assert_close(last, tokens, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(middle, between[0], atol=1e-5, rtol=1e-5)
    assert [tuple(values.shape) for values in ours(torch.rand(1, 3, 28, 70), (0, 2))] == [(1, 128, 2, 5)] * 3


def darkness(path: Path, gain: float) -> Path:
    """A network of U²-Net's form: `gain` times how dark each pixel is."""
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["grey"], keepdims=1),
        helper.make_node("Mul", ["grey", "gain"], ["dark"]),
        helper.make_node("Sub", ["half", "dark"], ["map"]),
    ]
    constants = [
        helper.make_tensor("axes", TensorProto.INT64, [1], [1]),
        helper.make_tensor("gain", TensorProto.FLOAT, [], [gain / 4]),
        helper.make_tensor("half", TensorProto.FLOAT, [], [gain / 2]),
    ]
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 20, 20])
    out = helper.make_tensor_value_info("map", TensorProto.FLOAT, [1, 1, 20, 20])
    graph = helper.make_graph(nodes, "darkness", [image], [out], constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def test_the_most_salient_pixel_says_how_familiar_a_photo_is(tmp_path: Path) -> None:
    photo = np.full((40, 60, 3), 200, np.uint8)
    photo[10:30, 20:40] = 10
    for gain in (1.0, 0.1):
        guesses = U2Net(darkness(tmp_path / "net.onnx", gain))(photo)
        guess = guesses.maps["saliency"]
        assert guess.values.shape == (20, 20)
        assert guess.values[10, 10] > 0.99
        assert guess.values[2, 2] < 0.01
        assert guess.confidence is not None
        assert guess.confidence[10, 10] > 0.99
        assert guesses.familiar == pytest.approx(gain, rel=0.1)


@pytest.mark.parametrize("kind", ["classes", "probability", "metres", "unit_vectors"])
def test_a_label_is_nothing_where_the_teacher_is_unsure(kind: Any) -> None:
    shape = {"classes": (6, 8, 39), "unit_vectors": (6, 8, 3)}.get(kind, (6, 8))
    sure = np.ones((6, 8), np.float32)
    sure[:, :4] = 0
    label = label_of(kind, Guess(RNG.random(shape).astype(np.float32) + 1, sure), (60, 80), 0.5)
    assert label.ignored == pytest.approx(0.5)
    assert label.confidence == pytest.approx(0.5)
    left = label.values[:, :40]
    assert np.all(left == (255 if kind in ("classes", "probability") else 0))


@pytest.mark.parametrize(
    ("photo", "wanted"), [((480, 640), (192, 256)), ((100, 120), (100, 120)), ((600, 60), (600, 60))]
)
def test_labels_have_the_photos_shape(photo: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert label_size(photo, 256) == wanted


def test_scaling_is_between_pixel_centres() -> None:
    ramp = np.arange(8, dtype=np.float32)[None].repeat(3, 0)
    scaled = on_grid(ramp, (6, 32))
    np.testing.assert_allclose(scaled[2, 2:-2], (np.arange(32)[2:-2] + 0.5) / 4 - 0.5, atol=1e-5)
    assert on_grid(np.ones((3, 4, 2), np.float32), (6, 9)).shape == (6, 9, 2)


@pytest.mark.parametrize("open_teacher", [U2Net, DINOv2, load_heads])
def test_damaged_files_are_told_by_name(open_teacher: Any, tmp_path: Path) -> None:
    (tmp_path / "net").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}garbage")
    with pytest.raises(CheckpointError, match=r"net: no .*copy"):
        open_teacher(tmp_path / "net")
    save_file({"a": torch.zeros(1)}, tmp_path / "net")
    with pytest.raises(CheckpointError, match=r"net: no .*copy"):
        open_teacher(tmp_path / "net")


def test_a_damaged_litert_file_is_told_by_name(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert: pip install -e '.[label]'")
    (tmp_path / "net.tflite").write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match=r"net\.tflite: no network that LiteRT runs"):
        LiteRT(tmp_path / "net.tflite")


def real(text: str) -> Any:
    folder, data = os.environ.get("PTSA_TEACHERS", ""), Path(os.environ.get("PTSA_DATA", ""))
    if not folder or not (data / "nyu/val").is_dir():
        pytest.skip("needs PTSA_TEACHERS, the folder above the teachers' own, and PTSA_DATA, which holds nyu/ and ccp/")
    if text != "u2net":
        pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert: pip install -e '.[label]'")
    return find_teachers([f"{text}={folder}"])[0].open(), data


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ade20k", "room"])
def test_the_real_teachers_know_rooms(name: str) -> None:
    teacher, root = real(name)
    data = DATASETS["nyu"](root / "nyu", "val")
    right, off, angles = [], [], []
    for index in range(0, len(data), 60):
        photo = data[index]
        guesses = teacher(photo.image)
        assert guesses.familiar > 0.3
        labels = {
            task: label_of(data.records[task].kind, guess, photo.image.shape[:2], 0).values
            for task, guess in guesses.maps.items()
        }
        known = photo.labels["segmentation"] != 255
        right.append((labels["segmentation"] == photo.labels["segmentation"])[known].mean())
        if name == "room":
            off.append(np.abs(labels["depth"] - photo.labels["depth"])[photo.labels["depth"] > 0].mean())
            cosine = (labels["normals"] * photo.labels["normals"]).sum(-1).clip(-1, 1)
            angles.append(np.degrees(np.arccos(cosine)).mean())
    assert np.mean(right) > 0.55
    assert not off or (np.mean(off) < 0.8 and np.mean(angles) < 35)


@pytest.mark.slow
def test_the_real_u2net_finds_people() -> None:
    teacher, root = real("u2net")
    data = DATASETS["ccp"](root / "ccp", "val")
    overlaps = []
    for index in range(0, len(data), 30):
        photo = data[index]
        found = label_of("probability", teacher(photo.image).maps["saliency"], photo.image.shape[:2], 0).values == 1
        person = photo.labels["saliency"] == 1
        overlaps.append((found & person).sum() / (found | person).sum())
    assert np.mean(overlaps) > 0.85
