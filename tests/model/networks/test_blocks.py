"""Types and memory layouts that the networks' blocks keep: numbers stay those of torch's own operations."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from model.networks.blocks import instance_norm, prepared, upsample
from model.networks.generator import SpadeBlock
from model.networks.motion import NORM_EPS, GlobalResponseNorm

LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@pytest.mark.parametrize("size", [(2, 6, 8, 4), (2, 6, 3, 8, 4)], ids=["map", "volume"])
def test_prepared_takes_the_layout_of_the_weight_and_the_type_of_autocast(size):
    last = LAST[len(size)]
    x, weight = torch.rand(size), torch.rand(5, 6, *[3] * (len(size) - 2))
    assert prepared(x, weight) is x
    laid_out = prepared(x, weight.contiguous(memory_format=last))
    assert laid_out.is_contiguous(memory_format=last)
    assert torch.equal(laid_out, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prepared(x, weight), x.bfloat16())
    assert prepared(x.to("meta"), weight).shape == x.shape


def test_upsample_repeats_pixels_in_their_own_type():
    x = torch.rand(2, 3, 4, 5).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        doubled = upsample(x, (2, 3))
    assert doubled.dtype == torch.bfloat16
    assert torch.equal(doubled, x.repeat_interleave(2, dim=2).repeat_interleave(3, dim=3))


def test_instance_norm_keeps_the_layout():
    x = torch.randn(2, 6, 8, 4)
    laid_out = instance_norm(x.contiguous(memory_format=torch.channels_last))
    assert laid_out.is_contiguous(memory_format=torch.channels_last)
    assert instance_norm(x).is_contiguous()
    torch.testing.assert_close(laid_out, functional.instance_norm(x))


def test_a_spade_block_brings_its_map_to_size():
    torch.manual_seed(0)
    block = SpadeBlock(6, 4, 5, 3).eval()
    x, feature_map = torch.rand(1, 6, 8, 8), torch.rand(1, 5, 2, 2)
    assert torch.equal(block(x, feature_map), block(x, functional.interpolate(feature_map, size=(8, 8))))


def test_response_norm_is_the_published_one_and_stays_in_the_type_of_its_input():
    torch.manual_seed(0)
    norm = GlobalResponseNorm(6)
    torch.nn.init.normal_(norm.gamma)
    torch.nn.init.normal_(norm.beta)
    x = torch.randn(2, 4, 5, 6)
    response = x.square().sum(dim=(1, 2), keepdim=True).sqrt()
    expected = norm.gamma * (x * response / (response.mean(dim=-1, keepdim=True) + NORM_EPS)) + norm.beta + x
    torch.testing.assert_close(norm(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        near = norm(x.bfloat16())
    assert near.dtype == torch.bfloat16
    torch.testing.assert_close(near.float(), expected, rtol=0.03, atol=0.03)
