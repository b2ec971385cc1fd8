"""Norms and gates of ``awq_inference_engine``, plain and with 8-bit results. Two names mislead: see each first line."""

from __future__ import annotations

import torch
from torch import Tensor

from nybble import ops
from nybble.compat import _args
from nybble.compat.awq import _check

# Where the old kernel clamps float16: 64504, which that type rounds to this.
_CLAMP = 64512.0


def layernorm_forward_cuda(
    input: Tensor,
    gamma: Tensor,
    out: Tensor,
    eps: float,
    /,
) -> None:
    """RMS norm: ``out = input / sqrt(mean(input^2) + eps) * gamma``, no mean and no bias.

    Args:
        input: float16 or bfloat16 ``[B, S, C]``. float16 results stay within +-64512, and NaN becomes -64512.
        gamma: ``[C]`` in input's dtype.
        out: as input; written.

    Raises ``RuntimeError`` naming what does not fit.
    """
    eps = _args.number("eps", eps)
    _check.tensors(input=input, gamma=gamma, out=out)
    _check.one_of("layernorm_forward_cuda", input, _check.HALVES)
    _check.dtype("gamma", gamma, input.dtype)
    _check.dtype("out", out, input.dtype)
    _check.shape("input", input, None, None, None)
    _check.shape("gamma", gamma, input.shape[-1])
    _check.shape("out", out, *input.shape)
    y = ops.rms_norm(input, gamma.contiguous(), eps)
    if y.dtype == torch.float16:
        y.clamp_(-_CLAMP, _CLAMP).nan_to_num_(-_CLAMP)
    out.copy_(y)


def rms_norm_general(
    out: Tensor,
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    scaling: Tensor,
    epsilon: float,
    use_per_token_quant: bool = True,
) -> None:
    """Layer norm to 8 bits: ``y = (input - mean) / sqrt(var + epsilon) * weight + bias``, ``out = round(y / scaling)``.

    Args:
        out: int8, as many elements as input; written.
        input: float16, bfloat16 or float32 ``[..., H]``.
        weight, bias: ``[H]`` in input's dtype.
        scaling: float16, one a token: written with ``max|y| / 127``.
        use_per_token_quant: False: no bias, scaling is ``[1]``, is read, and multiplies: ``out = round(y * scaling)``.

    Raises ``RuntimeError`` naming what does not fit.
    """
    epsilon = _args.number("epsilon", epsilon)
    per_token = _args.boolean("use_per_token_quant", use_per_token_quant)
    _check.tensors(out=out, input=input, weight=weight, bias=bias, scaling=scaling)
    _check.one_of("generalLayerNorm", input, _check.FLOATS)
    _check.dtype("out", out, torch.int8)
    _check.dtype("weight", weight, input.dtype)
    _check.dtype("bias", bias, input.dtype)
    _check.dtype("scaling", scaling, torch.float16)
    tokens = _check.rows("input", input)
    _check.shape("weight", weight, input.shape[-1])
    _check.shape("bias", bias, input.shape[-1])
    _check.elements("out", out, input.numel())
    _check.elements("scaling", scaling, tokens if per_token else 1)
    if per_token:
        y = ops.layer_norm_int8(input, weight.contiguous(), bias.contiguous(), epsilon)
        _store(y, out, scaling)
    else:
        steps = ops.layer_norm(input, weight.contiguous(), None, epsilon).float() * scaling.float()
        steps.nan_to_num_(0.0).round_().clamp_(-128, 127)
        out.copy_(steps.view(out.shape))


def invoke_quant(out: Tensor, input: Tensor, scale: Tensor, /) -> None:
    """``scale = max|input| / 127`` of each token, ``out = round(input / scale)``.

    Args:
        out: int8, as many elements as input; written.
        input: float16, bfloat16 or float32 ``[..., H]``.
        scale: float16, one a token; written.

    Raises ``RuntimeError`` naming what does not fit.
    """
    _check.tensors(out=out, input=input, scale=scale)
    _check.one_of("quant_kernel", input, _check.FLOATS)
    _quantized_targets(out, input, scale, "scale")
    _store(ops.quantize_int8(input), out, scale)


def silu_and_mul(input: Tensor, /) -> Tensor:
    """``silu(g) * u`` for input ``[..., 2d]`` = g, u in float16, bfloat16 or float32. Returns ``[..., d]``."""
    _check.tensors(input=input)
    _check.one_of("silu_and_mul_kernel", input, _check.FLOATS)
    _check.rows("input", input)
    d, odd = divmod(input.shape[-1], 2)
    _check.require(not odd, f"input has shape {list(input.shape)}, expected [..., 2d]")
    return ops.silu_mul(input[..., :d], input[..., d:])


def gelu_and_quant(out: Tensor, input: Tensor, scale_out: Tensor, tmp: Tensor, /) -> None:
    """``tmp = gelu(input)`` (tanh form), ``scale_out = max|tmp| / 127`` of each token, ``out = round(tmp / scale_out)``.

    Args:
        out: int8, as many elements as input; written.
        input: float16 ``[..., d]``.
        scale_out: float16, one a token; written.
        tmp: float16, contiguous, at least as many elements as input; the first ones are written.

    Raises ``RuntimeError`` naming what does not fit.
    """
    _check.tensors(out=out, input=input, scale_out=scale_out, tmp=tmp)
    _check.dtype("input", input, torch.float16)
    _check.dtype("tmp", tmp, torch.float16)
    _quantized_targets(out, input, scale_out, "scale_out")
    _check.require(tmp.is_contiguous(), "tmp is not contiguous")
    _check.require(
        tmp.numel() >= input.numel(),
        f"tmp has {tmp.numel()} elements, expected {input.numel()} or more",
    )
    activated = tmp.view(-1)[: input.numel()].view(input.shape)
    activated.copy_(torch.nn.functional.gelu(input, approximate="tanh"))
    _store(ops.quantize_int8(activated), out, scale_out)


def _quantized_targets(out: Tensor, x: Tensor, scale: Tensor, name: str) -> None:
    _check.dtype("out", out, torch.int8)
    _check.dtype(name, scale, torch.float16)
    tokens = _check.rows("input", x)
    _check.elements("out", out, x.numel())
    _check.elements(name, scale, tokens)


def _store(quantized: tuple[Tensor, Tensor], out: Tensor, scale: Tensor) -> None:
    codes, scales = quantized
    out.copy_(codes.view(out.shape))
    scale.copy_(scales.view(scale.shape))
