"""Every stored layout: the specs' worked examples, random round trips, and the packed matrix
against plain arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from nybble.errors import FormatError
from nybble.formats.awq import AwqGemmLinear, AwqGemvLinear, AwqV2Linear, zeros_width
from nybble.formats.base import pack_nibbles, pack_words, unpack_nibbles, unpack_words
from nybble.formats.detect import open_checkpoint
from nybble.formats.exl2 import Exl2Linear
from nybble.formats.gptq import GptqLinear
from nybble.ops.packed import dequantize
from tests.formats.make import LAYOUTS, quantize, write_model


def words(text: str) -> torch.Tensor:
    """Hexadecimal words to int32."""
    values = [int(word, 16) for word in text.split()]
    return torch.tensor([v - (1 << 32) if v >> 31 else v for v in values], dtype=torch.int32)


def halves(text: str) -> torch.Tensor:
    values = [int(word, 16) for word in text.split()]
    return torch.tensor([v - (1 << 16) if v >> 15 else v for v in values], dtype=torch.int16).view(
        torch.float16
    )


STREAMS = {
    2: "1B1B1B1B 1B1B1B1B",
    3: "53977053 70539770 97705397",
    4: "4D6F81A3 C5E7092B 4D6F81A3 C5E7092B",
    5: "4DFC4543 78245BA3 0753617D 4B276CF4 E55C7066",
    6: "9F611283 90BBD2D9 B2579740 8F201EB3 9CAB91D5 71538703",
    8: "18110A03 342D261F 5049423B 6C655E57 88817A73 A49D968F C0B9B2AB DCD5CEC7",
}


@pytest.mark.parametrize("bits", STREAMS)
def test_streams_as_in_the_spec(bits: int) -> None:
    codes = ((7 * torch.arange(32) + 3) % (1 << bits)).to(torch.uint8)[:, None]
    packed = words(STREAMS[bits])[:, None]
    assert torch.equal(pack_words(codes, bits), packed)
    assert torch.equal(unpack_words(packed, bits), codes)


@pytest.mark.parametrize("bits", STREAMS)
def test_streams_shorter_than_a_period(bits: int) -> None:
    rows = 32 // bits if 32 % bits == 0 else 64 if bits in (3, 5) else 16
    codes = torch.randint(0, 1 << bits, (rows, 5), dtype=torch.uint8)
    assert torch.equal(unpack_words(pack_words(codes, bits), bits), codes)


def test_packing_refuses_what_does_not_fit() -> None:
    with pytest.raises(FormatError, match="below 4, got 4"):
        pack_words(torch.full((16, 1), 4, dtype=torch.uint8), 2)
    with pytest.raises(FormatError, match="multiple of 32"):
        pack_words(torch.zeros(3, 1, dtype=torch.uint8), 4)


def exl2_example() -> Exl2Linear:
    k, n = torch.arange(64)[:, None], torch.arange(8)[None]
    codes = torch.where(k < 32, (3 * k + 5 * n + 1) % 16, (3 * k + 5 * n + 1) % 4).to(torch.uint8)
    index = (
        torch.tensor(
            [[1, 2, 3, 4, 5, 6, 7, 16], [16, 15, 14, 13, 12, 11, 10, 9]], dtype=torch.uint8
        )
        - 1
    )
    perm = 5 * torch.arange(64) % 64
    return Exl2Linear.from_codes(
        codes,
        index,
        halves("2E66 224B"),
        torch.tensor([4, 2]),
        torch.tensor([32, 32]),
        torch.argsort(perm),
    )


def test_exl2_worked_example() -> None:
    layer = exl2_example()
    even = "630DA741 B852FC96 0DA741EB 52FC9630 A741EB85 FC9630DA 41EB852F 9630DA74"
    odd = "EB852FC9 30DA741E 852FC963 DA741EB8 2FC9630D 741EB852 C9630DA7 1EB852FC"
    low = "B1B1B1B1 C6C6C6C6 1B1B1B1B 6C6C6C6C B1B1B1B1 C6C6C6C6 1B1B1B1B 6C6C6C6C"
    assert torch.equal(layer.q_weight, words(f"{even} {odd} {even} {odd} {low} {low}").view(6, 8))
    assert torch.equal(layer.q_scale, words("F6543210 89ABCDEF").view(2, 1))
    assert layer.q_groups.tolist() == [4, 0, 2, 4]
    assert layer.q_invperm[:6].tolist() == [0, 13, 26, 39, 52, 1]
    weight = dequantize(layer.to_packed()).half()
    rows = {
        0: "9999 9A66 2166 AA66 A780 2733 3049 B666",
        5: "9666 1666 2566 A800 0000 2C80 AF59 AE66",
        31: "1266 2199 A333 1E66 2B80 AC80 0000 3800",
        32: "A24C 0000 20D2 A428 9F16 0000 1CEB 9FF8",
        63: "0000 2189 A4D2 A028 0000 1DF4 A0EB 9BF8",
    }
    for row, expected in rows.items():
        assert torch.equal(weight[row] + 0.0, halves(expected) + 0.0), row


def test_gptq_worked_example() -> None:
    k, n = torch.arange(16)[:, None], torch.arange(8)[None]
    g_idx = torch.tensor([0, 1, 1, 0, 1, 0, 0, 1, 0, 1, 0, 1, 1, 0, 0, 1])
    stored = torch.tensor([[7, 7, 8, 0, 15, 3, 9, 1], [7, 6, 5, 4, 3, 2, 1, 0]])
    scales = halves(
        "211F 251F 27AE 291F 2A66 2BAE 2C7B 2D1F 251F 291F 2BAE 2D1F 2E66 2FAE 307B 311F"
    ).view(2, 8)
    layer = GptqLinear.from_codes(
        ((k + 3 * n) % 16).to(torch.uint8), scales, stored + 1, 4, g_idx=g_idx
    )
    first = "76543210 A9876543 DCBA9876 0FEDCBA9 3210FEDC 6543210F 98765432 CBA98765"
    second = "FEDCBA98 210FEDCB 543210FE 87654321 BA987654 EDCBA987 10FEDCBA 43210FED"
    assert torch.equal(layer.qweight, words(f"{first} {second}").view(2, 8))
    assert torch.equal(layer.qzeros, words("193F0877 01234567").view(2, 1))
    weight = dequantize(layer.to_packed()).half()
    assert torch.equal(weight[0], halves("AD1F AE67 ADC2 351F B266 3948 B87B 33AE"))
    assert torch.equal(weight[1], halves("B07B AFAE 2BAE 3667 3B33 B5C2 307B 3A67"))
    assert torch.equal(weight[15], halves("307B B267 ABAE 33AE 3999 3D48 B07B 37AE"))


def test_awq_gemm_worked_example() -> None:
    layer = AwqGemmLinear.from_codes(
        torch.arange(16, dtype=torch.uint8).view(2, 8),
        torch.ones(1, 8).half(),
        torch.zeros(1, 8, dtype=torch.uint8),
    )
    assert torch.equal(layer.qweight.flatten(), words("75316420 FDB9ECA8"))


def test_awq_gemv_worked_example_and_widths() -> None:
    assert torch.equal(
        pack_nibbles(torch.arange(1, 9, dtype=torch.uint8)[None]).flatten(), words("87654321")
    )
    cases = {(4096, 128): 4, (11008, 128): 11, (14336, 128): 14, (1536, 128): 2, (896, 128): 1}
    cases |= {(4096, 64): 8, (4544, 64): 10, (4096, 32): 16}
    assert {case: zeros_width(*case) for case in cases} == cases


def test_awq_v2_worked_example() -> None:
    n, k = torch.arange(8)[:, None], torch.arange(64)[None]
    q = ((7 * k + 3 * n + k // 8) % 16).to(torch.uint8)
    layer = AwqV2Linear.from_codes(
        q.t().contiguous(), torch.ones(1, 8).half(), torch.zeros(1, 8, dtype=torch.uint8)
    )
    row = """b290 2907 907e 07e5 7e5c e5c3 5c3a c3a1 f6d4 6d4b d4b2 4b29 b290 2907 907e 07e5
             e5c3 5c3a c3a1 3a18 a18f 18f6 8f6d f6d4 2907 907e 07e5 7e5c e5c3 5c3a c3a1 3a18
             18f6 8f6d f6d4 6d4b d4b2 4b29 b290 2907 5c3a c3a1 3a18 a18f 18f6 8f6d f6d4 6d4b
             4b29 b290 2907 907e 07e5 7e5c e5c3 5c3a 8f6d f6d4 6d4b d4b2 4b29 b290 2907 907e"""
    assert torch.equal(layer.qweight[0], halves(row).view(torch.int16))
    assert torch.equal(layer.codes(), q.t())
    gemv = AwqGemvLinear.from_codes(
        q.t().contiguous(), torch.ones(1, 8).half(), torch.zeros(1, 8, dtype=torch.uint8)
    )
    assert torch.equal(
        gemv.qweight[0],
        words("1a3c5e70 a3c5e709 3c5e7092 c5e7092b 5e7092b4 e7092b4d 7092b4d6 092b4d6f"),
    )


def test_awq_v2_keeps_the_rounded_product() -> None:
    """s = 0.0123 and z = 7: the stored product is rounded, so code 7 does not mean 0."""
    scales = torch.full((1, 8), 0.0123).half()
    layer = AwqV2Linear.from_codes(
        torch.full((64, 8), 7, dtype=torch.uint8), scales, torch.full((1, 8), 7, dtype=torch.uint8)
    )
    assert dequantize(layer.to_packed())[0, 0].item() == pytest.approx(3.05e-5, rel=1e-2)


def test_nibble_order_round_trip() -> None:
    values = torch.randint(0, 16, (3, 24), dtype=torch.uint8)
    for order in (range(8), (0, 2, 4, 6, 1, 3, 5, 7)):
        assert torch.equal(unpack_nibbles(pack_nibbles(values, order), order), values)


CASES = [("exl2", {"bits": b, "act_order": True}) for b in (2, 3, 4, 5, 6, 8)]
CASES += [
    ("gptq", {"bits": b, "act_order": a, "v2": v})
    for b in (2, 3, 4, 8)
    for a in (False, True)
    for v in (False, True)
]
CASES += [("gptq", {"group_size": -1}), ("gptq", {"group_size": 48}), ("gptq", {"group_size": 100})]
CASES += [
    (layout, {"group_size": g})
    for layout in LAYOUTS
    if layout.startswith("awq")
    for g in (32, 64, 128, -1)
]
CASES += [("awq-v2", {"dtype": torch.bfloat16, "group_size": 128})]


@pytest.mark.parametrize(("layout", "options"), CASES, ids=str)
def test_round_trip_through_a_file(layout: str, options: dict[str, object], tmp_path: Path) -> None:
    torch.manual_seed(3)
    K, N = 256, 64
    # type: ignore[arg-type]
    made = quantize(torch.randn(N, K), layout, bias=torch.randn(N).half(), **options)
    checkpoint = open_checkpoint(write_model(tmp_path, {"layers.0.q": made}))
    layer = checkpoint.linear("layers.0.q", in_features=K, out_features=N)
    assert checkpoint.format == layout.partition("-")[0] == checkpoint.kind("layers.0.q")
    assert type(layer) is type(made.linear)
    stored = layer.tensors()
    assert stored.keys() == made.tensors.keys()
    for name, tensor in made.tensors.items():
        assert stored[name].dtype == tensor.dtype
        assert torch.equal(stored[name].view(torch.uint8), tensor.view(torch.uint8)), name
    packed = layer.to_packed()
    # v2's zeros are a float32 quotient: one rounding, scaled by at most 16 steps of 0.5
    tolerance = (
        {"atol": 4e-6, "rtol": 0} if "v2" in layout or "fast" in layout else {"atol": 0, "rtol": 0}
    )
    torch.testing.assert_close(dequantize(packed).t(), made.weight, **tolerance)
    assert packed.bias is not None and torch.equal(packed.bias, made.tensors["bias"])


def test_real_exl2_checkpoint(data: Path) -> None:
    checkpoint = open_checkpoint(data / "golden" / "exl2-4.0bpw")
    assert checkpoint.format == "exl2"
    layer = checkpoint.linear("lm_head", in_features=512, out_features=4096)
    assert isinstance(layer, Exl2Linear)
    bits, _, rows = layer.layout()
    perm = torch.argsort(layer.q_invperm.long())
    again = Exl2Linear.from_codes(
        layer.codes(), unpack_nibbles(layer.q_scale), layer.q_scale_max, bits, rows, layer.q_invperm
    )
    for name, tensor in layer.tensors().items():
        assert torch.equal(again.tensors()[name], tensor), name
    assert torch.equal(
        dequantize(layer.to_packed())[perm[0]][0],
        (layer.codes()[0, 0].float() - 128) * layer.scales()[0, 0],
    )


def test_real_dense_checkpoint(data: Path) -> None:
    checkpoint = open_checkpoint(data / "demo-model")
    assert checkpoint.format == "fp16"
    assert checkpoint.linear("lm_head").N == 4096
    assert checkpoint.tokenizer_path == data / "demo-model" / "tokenizer.json"
