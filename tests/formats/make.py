"""Synthetic quantized layers in every stored layout, for tests: from dense weights to tensors,
config and their value.

``quantize(weight, "gptq", bits=4, group_size=32, ...)`` rounds ``[N, K]`` weights to the nearest
code and stores them; what comes back holds the tensors by suffix, the ``quantization_config`` for
config.json, and the weights the tensors mean.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nybble.formats.awq import AwqGemmLinear, AwqGemvLinear, AwqV2Linear
from nybble.formats.base import LinearWeights
from nybble.formats.exl2 import Exl2Linear
from nybble.formats.gptq import GptqLinear
from nybble.formats.safetensors import write_safetensors

AWQ = {
    "awq-gemm": AwqGemmLinear,
    "awq-gemv": AwqGemvLinear,
    "awq-v2": AwqV2Linear,
    "awq-gemv-fast": AwqV2Linear,
}
LAYOUTS = ("exl2", "gptq", *AWQ)


@dataclass(frozen=True)
class Made:
    """One stored layer."""

    tensors: dict[str, Tensor]  # by suffix, as on disk
    config: dict[str, object]  # quantization_config
    weight: Tensor  # float32 [N, K], what the stored numbers mean, without rounding products
    linear: LinearWeights


def quantize(
    weight: Tensor,
    layout: str,
    *,
    bits: int = 4,
    group_size: int = 32,
    act_order: bool = False,
    v2: bool = False,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> Made:
    """Round ``weight`` ``[N, K]`` to nearest and store it in ``layout`` (one of LAYOUTS).

    ``act_order`` gives inputs a random order (GPTQ: a random g_idx; EXL2: a random q_invperm).
    ``v2`` is GPTQ's zero convention. EXL2 uses ``bits`` for the first half of the groups and the
    next lower width for the rest.
    """
    N, K = weight.shape
    size = K if group_size == -1 else group_size
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(K, generator=generator) if act_order else torch.arange(K)
    rows = weight.float().t()[order]  # [K, N], groups follow each other
    if layout == "exl2":
        return _exl2(rows, order, bits, size, bias)
    group = torch.arange(K) // size
    G = int(group[-1]) + 1
    top = (1 << bits) - 1
    low = torch.stack([rows[group == g].amin(0) for g in range(G)]).clamp(max=0)
    high = torch.stack([rows[group == g].amax(0) for g in range(G)]).clamp(min=0)
    scales = ((high - low).clamp(min=1e-3) / top).to(dtype)
    zeros = (-low / scales.float()).round().clamp(1, top)
    codes = ((rows / scales.float()[group]).round() + zeros[group]).clamp(0, top).to(torch.uint8)
    meaning = (codes.float() - zeros[group]) * scales.float()[group]
    linear: LinearWeights
    config: dict[str, object] = {
        "quant_method": layout.partition("-")[0],
        "bits": bits,
        "group_size": group_size,
    }
    if layout == "gptq":
        g_idx = torch.empty(K, dtype=torch.int32)
        g_idx[order] = group.to(torch.int32)
        unordered = torch.empty_like(codes)
        unordered[order] = codes
        linear = GptqLinear.from_codes(
            unordered, scales, zeros, bits, g_idx=g_idx, bias=bias, v2=v2
        )
        config |= {
            "desc_act": act_order,
            "sym": False,
            "checkpoint_format": "gptq_v2" if v2 else "gptq",
        }
    else:
        linear = AWQ[layout].from_codes(codes, scales, zeros.to(torch.uint8), bias)
        config |= {"zero_point": True, "version": "gemm" if layout == "awq-gemm" else "gemv"}
    tensors = linear.tensors()
    if isinstance(linear, AwqV2Linear):
        G = linear.groups
        meaning = codes.float() * scales.float()[group] + linear.scaled_zeros[:G].float()[group]
        config |= {"backend": "llm-awq"}
        if layout == "awq-gemv-fast":
            tensors["qzeros"] = tensors.pop("scaled_zeros")
            config |= {"version": "gemv_fast", "backend": "autoawq"}
    value = torch.empty(K, N)
    value[order] = meaning
    return Made(tensors, config, value.t().contiguous(), linear)


def _exl2(rows: Tensor, order: Tensor, bits: int, size: int, bias: Tensor | None) -> Made:
    K, N = rows.shape
    G = -(-K // size)
    lower = {8: 6, 6: 5, 5: 4, 4: 3, 3: 2, 2: 2}[bits]
    widths = torch.tensor([bits if g < (G + 1) // 2 else lower for g in range(G)])
    counts = torch.tensor([min(size, K - g * size) for g in range(G)])
    group = torch.repeat_interleave(torch.arange(G), counts)
    half = (1 << (widths - 1)).float()
    largest = torch.stack([rows[group == g].abs().amax(0) for g in range(G)]) / half[:, None]
    peak = largest.amax(1).half()
    index = (16 * (largest / peak.float()[:, None].clamp(min=1e-9)).sqrt()).ceil().clamp(1, 16) - 1
    step = (peak.float() / 256).half().float()
    scales = ((index + 1) ** 2 * step[:, None]).half().float()
    safe = scales[group].clamp(min=1e-9)
    codes = torch.minimum(
        (rows / safe).round() + half[group][:, None], 2 * half[group][:, None] - 1
    ).clamp(min=0)
    meaning = (codes - half[group][:, None]) * scales[group]
    linear = Exl2Linear.from_codes(
        codes.to(torch.uint8),
        index.to(torch.uint8),
        peak,
        widths,
        counts,
        torch.argsort(order),
        bias,
    )
    value = torch.empty(K, N)
    value[order] = meaning
    return Made(
        linear.tensors(),
        {"quant_method": "exl2", "bits": float(bits)},
        value.t().contiguous(),
        linear,
    )


def write_model(
    folder: Path,
    layers: Mapping[str, Made],
    dense: Mapping[str, Tensor] | None = None,
    config: object = None,
) -> Path:
    """A model folder: ``layers`` by key, ``dense`` tensors by full name, ``config`` for
    config.json (quantization added)."""
    tensors = dict(dense or {})
    settings: dict[str, object] = (
        dict(config) if isinstance(config, Mapping) else {"architectures": ["LlamaForCausalLM"]}
    )
    for key, made in layers.items():
        tensors |= {f"{key}.{suffix}": tensor for suffix, tensor in made.tensors.items()}
        settings["quantization_config"] = made.config
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(settings))
    return folder
