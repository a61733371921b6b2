"""Deformable attention against a plain loop; first weights; where images are padded."""

import math

import pytest
import torch

from pycls_std.layers.deformable_attention import DeformableAttention, sample_maps

SIZES = [(5, 7), (3, 4)]
PLACES = sum(height * width for height, width in SIZES)


def bilinear(image, x, y):
    """Return the value (C,) at a place of a map (H, W, C), x and y in pixels from the outer borders; zero beyond."""
    height, width, channels = image.shape
    x, y, total = x - 0.5, y - 0.5, torch.zeros(channels)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                total += image[row, column] * (1 - abs(x - column)) * (1 - abs(y - row))
    return total


def looped(values, sizes, places, weights):
    """Return what `sample_maps` does, place by place."""
    batch, queries, heads, maps, points, _ = places.shape
    total = torch.zeros(batch, queries, heads, values.shape[-1])
    for b, q, m in ((b, q, m) for b in range(batch) for q in range(queries) for m in range(heads)):
        start = 0
        for level, (height, width) in enumerate(sizes):
            image = values[b, start : start + height * width, m].view(height, width, -1)
            start += height * width
            for point in range(points):
                x, y = places[b, q, m, level, point].tolist()
                total[b, q, m] += weights[b, q, m, level, point] * bilinear(image, x * width, y * height)
    return total.flatten(2)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_samples_as_the_loop_does(device):
    torch.manual_seed(0)
    values = torch.randn(2, PLACES, 3, 4)
    places = torch.rand(2, 6, 3, 2, 5, 2) * 1.6 - 0.3  # some of them beyond the borders
    weights = torch.rand(2, 6, 3, 2, 5)
    found = sample_maps(values.to(device), SIZES, places.to(device), weights.to(device)).cpu()
    torch.testing.assert_close(found, looped(values, SIZES, places, weights), atol=1e-5, rtol=1e-5)
    shape = sample_maps(values.to("meta"), SIZES, places.to("meta"), weights.to("meta"))  # without sampling
    assert (shape.shape, shape.dtype, shape.device.type) == (found.shape, found.dtype, "meta")


@pytest.mark.parametrize("coordinates", [2, 4])
def test_attention_by_hand(coordinates):
    """Offsets are in pixels of each map, or reach to half of a box's width and height."""
    torch.manual_seed(0)
    attention = DeformableAttention(8, maps=2, heads=2, points=3)
    for layer in (attention.sampling_offsets, attention.attention_weights):
        torch.nn.init.normal_(layer.weight, std=0.3)
    queries, references, memory = torch.randn(2, 4, 8), torch.rand(2, 4, 2, coordinates), torch.randn(2, PLACES, 8)
    image = torch.rand(2, PLACES) > 0.3
    values = (attention.value_proj(memory) * image[..., None]).view(2, PLACES, 2, 4)
    offsets = attention.sampling_offsets(queries).view(2, 4, 2, 2, 3, 2)
    weights = attention.attention_weights(queries).view(2, 4, 2, 6).softmax(3).view(2, 4, 2, 2, 3)
    places = torch.empty_like(offsets)
    for level, (height, width) in enumerate(SIZES):
        unit = torch.tensor([1 / width, 1 / height]).expand(2, 4, 1, 1, 2)
        if coordinates == 4:
            unit = references[:, :, level, None, None, 2:] / 6
        places[:, :, :, level] = references[:, :, level, None, None, :2] + offsets[:, :, :, level] * unit
    expected = attention.output_proj(looped(values, SIZES, places, weights))
    found = attention(queries, references, memory, sizes=SIZES, image=image)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_no_tensor_is_made_of_numbers_of_the_host(monkeypatch):
    """Which a GPU would wait for in every layer: with boxes, and with points alone."""
    attention = DeformableAttention(8, maps=2, heads=2, points=3)
    monkeypatch.setattr(torch, "tensor", None)
    monkeypatch.setattr(torch, "as_tensor", None)
    for coordinates in (2, 4):
        references = torch.rand(2, 4, 2, coordinates)
        attention(torch.randn(2, 4, 8), references, torch.randn(2, PLACES, 8), sizes=SIZES)


def test_first_weights():
    """Eight heads look into the eight directions of a square, 1 to 4 pixels far, whatever the query; all alike."""
    attention = DeformableAttention(32, maps=2, heads=8, points=4)
    offsets = attention.sampling_offsets(torch.randn(1, 3, 32)).view(3, 8, 2, 4, 2)
    directions = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    expected = torch.tensor(directions, dtype=torch.float32)[:, None, None] * torch.arange(1, 5)[:, None]
    torch.testing.assert_close(offsets, expected.expand(3, 8, 2, 4, 2), atol=1e-5, rtol=0)
    assert not attention.attention_weights.weight.any() and not attention.attention_weights.bias.any()
    with pytest.raises(ValueError, match="3 heads do not divide 32 channels"):
        DeformableAttention(32, heads=3)


def test_compiles_whole_and_knows_its_shape_without_numbers():
    torch.manual_seed(0)
    attention = DeformableAttention(8, maps=2, heads=2, points=3)
    inputs = torch.randn(2, 4, 8), torch.rand(2, 4, 2, 4), torch.randn(2, PLACES, 8)
    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs, sizes=SIZES), attention(*inputs, sizes=SIZES))
    with torch.autocast("cpu", torch.bfloat16):
        half = attention(*inputs, sizes=SIZES)
    torch.testing.assert_close(half.float(), attention(*inputs, sizes=SIZES), atol=0.05, rtol=0.05)
    assert attention.to("meta")(*(each.to("meta") for each in inputs), sizes=SIZES).shape == (2, 4, 8)
