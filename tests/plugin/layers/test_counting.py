# Copyright (c) 2026 the lowrank-plugin authors
# SPDX-License-Identifier: Apache-2.0

"""MACs of whole models against formulas by hand and against published numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank_plugin.layers.counting import counting

B, N, E, H, FF = 2, 10, 32, 4, 48


@torch.no_grad()
def macs(run, *args, **kwargs) -> float:
    with counting() as found:
        run(*args, **kwargs)
    return found()


def attention(queries=N, keys=N, width=E, batch=B):
    return 2 * batch * queries * keys * width


def projections(queries=N, keys=N, width=E, kdim=E, vdim=E, batch=B):
    return batch * (2 * queries * width * width + keys * width * (kdim + vdim))


def heads(length, number=H, size=E // H):
    return torch.randn(B, number, length, size)


ATTENTION = [
    pytest.param({}, id="plain"),
    pytest.param({"is_causal": True}, id="causal"),
    pytest.param({"attn_mask": torch.ones(N, N).tril().bool()}, id="mask"),
    pytest.param({"attn_mask": torch.randn(B, 1, N, N)}, id="bias"),
    pytest.param({"scale": 0.5}, id="scale"),
]


@pytest.mark.parametrize("options", ATTENTION)
def test_scaled_dot_products(options):
    assert macs(F.scaled_dot_product_attention, heads(N), heads(N), heads(N), **options) == attention()


def test_scaled_dot_products_of_other_lengths_and_widths():
    query, key, value = heads(7), heads(N), heads(N, size=24)
    assert macs(F.scaled_dot_product_attention, query, key, value) == B * H * 7 * N * (E // H + 24)


def test_queries_that_share_keys():
    query, key = heads(N), heads(N, number=2)
    assert macs(F.scaled_dot_product_attention, query, key, key, enable_gqa=True) == attention()


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("train", [False, True])
def test_multi_head_attention(need_weights, train):
    layer, x = nn.MultiheadAttention(E, H, batch_first=True).train(train), torch.randn(B, N, E)
    assert macs(layer, x, x, x, need_weights=need_weights) == projections() + attention()


@pytest.mark.parametrize("need_weights", [False, True])
def test_multi_head_attention_across(need_weights):
    layer = nn.MultiheadAttention(E, H, batch_first=True, kdim=20, vdim=12).eval()
    x, key, value = torch.randn(B, 7, E), torch.randn(B, N, 20), torch.randn(B, N, 12)
    wanted = projections(queries=7, kdim=20, vdim=12) + attention(queries=7)
    assert macs(layer, x, key, value, need_weights=need_weights) == wanted


ENCODER = projections() + attention() + 2 * B * N * E * FF


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
def test_encoder_layers(train, norm_first):
    layer = nn.TransformerEncoderLayer(E, H, FF, batch_first=True, norm_first=norm_first).train(train)
    assert macs(layer, torch.randn(B, N, E)) == ENCODER
    assert macs(layer, torch.randn(B, N, E), src_mask=torch.zeros(N, N)) == ENCODER


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_encoders_with_padding():
    layer = nn.TransformerEncoderLayer(E, H, FF, batch_first=True)
    encoder, x = nn.TransformerEncoder(layer, 2).eval(), torch.randn(B, N, E)
    assert macs(encoder, x) == 2 * ENCODER
    padding = torch.zeros(B, N, dtype=torch.bool)
    padding[1, 6:] = True
    assert macs(encoder, x, src_key_padding_mask=padding) == 2 * sum(
        projections(n, n, batch=1) + attention(n, n, batch=1) + 2 * n * E * FF for n in (N, 6)
    )


def test_decoder_layers():
    layer = nn.TransformerDecoderLayer(E, H, FF, batch_first=True).eval()
    across = projections(queries=7) + attention(queries=7)
    own = projections(7, 7) + attention(7, 7) + 2 * B * 7 * E * FF
    assert macs(layer, torch.randn(B, 7, E), torch.randn(B, N, E)) == own + across


GATES = {nn.RNN: 1, nn.GRU: 3, nn.LSTM: 4}


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_recurrent_layers(kind, bidirectional, batch_first):
    layer = kind(20, 24, num_layers=3, bidirectional=bidirectional, batch_first=batch_first).eval()
    ways = 1 + bidirectional
    weights = GATES[kind] * 24 * ways * ((20 + 24) + 2 * (ways * 24 + 24))
    assert macs(layer, torch.randn(5, 7, 20)) == 5 * 7 * weights


def test_packed_sequences():
    packed = nn.utils.rnn.pack_padded_sequence(torch.randn(7, 2, 20), [7, 4])
    assert macs(nn.LSTM(20, 24).eval(), packed) == 11 * 4 * 24 * (20 + 24)


@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_projected_and_single_cells():
    assert macs(nn.LSTM(20, 24, proj_size=8).eval(), torch.randn(7, 2, 20)) == 14 * (4 * 24 * (20 + 8) + 8 * 24)
    assert macs(nn.LSTMCell(20, 24), torch.randn(2, 20)) == 2 * 4 * 24 * 44
    assert macs(nn.GRUCell(20, 24), torch.randn(2, 20)) == 2 * 3 * 24 * 44


PRODUCTS = [
    pytest.param(lambda: torch.bmm(torch.ones(3, 4, 5), torch.ones(3, 5, 6)), 3 * 4 * 5 * 6, id="bmm"),
    pytest.param(lambda: torch.ones(3, 2, 4, 5) @ torch.ones(5, 6), 3 * 2 * 4 * 5 * 6, id="matmul"),
    pytest.param(
        lambda: torch.einsum("bhnd,bhmd->bhnm", torch.ones(2, 3, 4, 5), torch.ones(2, 3, 6, 5)), 2 * 3 * 4 * 5 * 6,
        id="einsum",
    ),
    pytest.param(lambda: torch.ones(4, 5) @ torch.ones(5), 20, id="mv"),
    pytest.param(lambda: torch.ones(5) @ torch.ones(5), 5, id="dot"),
    pytest.param(lambda: torch.addmv(torch.ones(4), torch.ones(4, 5), torch.ones(5)), 20, id="addmv"),
    pytest.param(
        lambda: torch.addbmm(torch.ones(4, 6), torch.ones(3, 4, 5), torch.ones(3, 5, 6)), 3 * 4 * 5 * 6, id="addbmm"
    ),
    pytest.param(
        lambda: torch.baddbmm(torch.ones(3, 4, 6), torch.ones(3, 4, 5), torch.ones(3, 5, 6)), 3 * 4 * 5 * 6,
        id="baddbmm",
    ),
    pytest.param(lambda: nn.Linear(5, 6)(torch.ones(5)), 30, id="a single row"),
    pytest.param(lambda: nn.Linear(5, 6)(torch.ones(2, 3, 5)), 6 * 30, id="linear"),
    pytest.param(
        lambda: nn.Bilinear(5, 6, 7)(torch.ones(2, 5), torch.ones(2, 6)), 2 * (7 * 5 * 6 + 7 * 5), id="bilinear"
    ),
    pytest.param(lambda: nn.Conv2d(4, 6, 3, groups=2)(torch.ones(2, 4, 8, 8)), 72 * 6 * 2 * 9, id="grouped"),
    pytest.param(lambda: nn.Conv2d(4, 4, 3, groups=4)(torch.ones(1, 4, 8, 8)), 36 * 4 * 9, id="depthwise"),
    pytest.param(lambda: nn.Conv1d(4, 6, 3, stride=2)(torch.ones(2, 4, 9)), 2 * 4 * 6 * 4 * 3, id="strided"),
    pytest.param(lambda: nn.Conv3d(2, 3, (1, 3, 3), dilation=2)(torch.ones(1, 2, 5, 9, 9)), 125 * 3 * 2 * 9, id="3d"),
    pytest.param(
        lambda: nn.ConvTranspose2d(4, 6, 2, stride=2)(torch.ones(2, 4, 8, 8)), 2 * 64 * 4 * 6 * 4, id="transposed"
    ),
    pytest.param(lambda: nn.Embedding(9, 4)(torch.ones(2, dtype=torch.long)), 0, id="look-up"),
]  # fmt: skip


@pytest.mark.parametrize(("run", "wanted"), PRODUCTS)
def test_products(run, wanted):
    assert macs(run) == wanted


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(
    "make",
    [
        lambda: (nn.TransformerEncoderLayer(E, H, FF, batch_first=True), torch.randn(B, N, E)),
        lambda: (nn.LSTM(20, 24, num_layers=2, bidirectional=True), torch.randn(5, 7, 20)),
        lambda: (nn.GRU(20, 24, num_layers=2), torch.randn(5, 7, 20)),
        lambda: (nn.Conv2d(4, 6, 3, groups=2), torch.randn(2, 4, 9, 9)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_same_on_a_gpu(make, dtype):
    model, x = make()
    there = copy.deepcopy(model).eval().to("cuda", dtype)
    assert macs(model.eval(), x) == macs(there, x.to("cuda", dtype))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "published"),
    [
        # in units of 1e9, from the tables of torchvision's documentation
        ("resnet50", 4.09),
        ("vit_b_16", 17.56),
        ("swin_t", 4.49),
        ("convnext_tiny", 4.46),
        ("mobilenet_v3_small", 0.06),
    ],
)
def test_published_networks(name, published):
    models = pytest.importorskip("torchvision.models")
    network = getattr(models, name)(weights=None).eval()
    found = macs(network, torch.randn(1, 3, 224, 224)) / 1e9
    assert abs(found - published) <= max(0.005 * published, 0.005)


class PassesOnAView(nn.Module):
    """A class token, as transformers of images have it, passed on beside the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 4))
        self.joined = Joined()

    def forward(self, x: Tensor) -> Tensor:
        return self.joined((x, self.token.expand(len(x), -1, -1)))


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return self.linear(torch.cat(pair, 1))


def test_a_view_of_a_parameter_may_be_passed_on_without_gradients() -> None:
    with counting() as macs, torch.no_grad():
        PassesOnAView()(torch.zeros(2, 5, 4))

    assert macs() == 2 * 6 * 4 * 3
