"""What a model is, read from config.json: checked once, so that nothing behind it checks again."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from nybble.errors import UnsupportedModelError
from nybble.models.registry import Architecture, Biases, find_architecture
from nybble.modules.rope import KINDS, RopeSpec, yarn_attention_factor

# Far beyond any model there is; a config that asks for more is damaged or hostile.
CAPS = {
    "hidden_size": 1 << 17,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": 1 << 10,
    "num_attention_heads": 1 << 12,
    "num_key_value_heads": 1 << 12,
    "head_dim": 1 << 10,
    "vocab_size": 1 << 22,
    "max_position_embeddings": 1 << 26,
    "sliding_window": 1 << 26,
    "max_window_layers": 1 << 10,
    "original_max_position_embeddings": 1 << 26,
}

# hidden_act of config.json -> nybble.ops.qmatmul.GATES
ACTIVATION_NAMES = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def _fail(field: str, value: object, expected: str) -> NoReturn:
    raise UnsupportedModelError(
        f"config.json: {field} is {reprlib.repr(value)}, expected {expected}"
    )


def _size(raw: Mapping[str, Any], field: str, default: int | None = None, *, least: int = 1) -> int:
    """A whole number from ``least`` to its cap; absent or null takes ``default``."""
    value = raw.get(field)
    if value is None:
        value = default
    if value is None:
        _fail(field, None, "a positive whole number")
    if type(value) is not int or not least <= value <= CAPS[field]:
        _fail(field, value, f"a whole number from {least} to {CAPS[field]}")
    return value


def _number(raw: Mapping[str, Any], field: str, default: float | None = None) -> float:
    """A finite number above 0."""
    value = raw.get(field)
    if value is None:
        value = default
    # 1e300: a whole number in JSON may be larger than any float
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e300:
        _fail(field, value, "a number above 0")
    return float(value)


def _flag(raw: Mapping[str, Any], field: str, default: bool = False) -> bool:
    value = raw.get(field)
    if value is None:
        return default
    if type(value) is not bool:
        _fail(field, value, "true or false")
    return value


def _token(raw: Mapping[str, Any], field: str) -> tuple[int, ...]:
    """Token ids: config.json may give one, a list or none."""
    value = raw.get(field)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(i) is int and i >= -1 for i in ids):
        _fail(field, value, "a token id or a list of them")
    return tuple(i for i in ids if i >= 0)  # -1 is an old way to say none


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only model of the Llama family."""

    architecture: Architecture
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    rope: RopeSpec
    activation: str  # one of nybble.ops.qmatmul.GATES
    biases: Biases
    windows: tuple[int, ...]  # of each layer; 0: every key
    tied_head: bool  # the head is the embedding table
    bos: int | None
    eos: tuple[int, ...]
    pad: int | None

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> ModelConfig:
        """Read and check the contents of config.json.

        Raises:
            UnsupportedModelError: a field is missing, malformed, or asks for what is not supported;
                it names the field.

        >>> ModelConfig.from_dict({"model_type": "llama", "hidden_size": 64, "intermediate_size":
        128,
        ...     "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}).head_dim
        16
        """
        architecture = find_architecture(raw)
        hidden, layers = _size(raw, "hidden_size"), _size(raw, "num_hidden_layers")
        heads = _size(raw, "num_attention_heads")
        kv_heads = _size(raw, "num_key_value_heads", heads)
        if heads % kv_heads:
            _fail("num_key_value_heads", kv_heads, f"a divisor of num_attention_heads = {heads}")
        if raw.get("head_dim") is None and hidden % heads:
            _fail(
                "hidden_size",
                hidden,
                f"a multiple of num_attention_heads = {heads}, or head_dim beside it",
            )
        head_dim = _size(raw, "head_dim", hidden // heads)
        act = raw.get("hidden_act", "silu")
        if not isinstance(act, str) or act not in ACTIVATION_NAMES:
            _fail("hidden_act", act, "one of " + ", ".join(ACTIVATION_NAMES))
        max_positions = _size(raw, "max_position_embeddings", architecture.max_positions)
        bos, pad = _token(raw, "bos_token_id"), _token(raw, "pad_token_id")
        return cls(
            architecture=architecture,
            hidden_size=hidden,
            intermediate_size=_size(raw, "intermediate_size"),
            layers=layers,
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            vocab_size=_size(raw, "vocab_size"),
            max_positions=max_positions,
            norm_eps=_number(raw, "rms_norm_eps", 1e-6),
            rope=_read_rope(raw, head_dim, max_positions),
            activation=ACTIVATION_NAMES[act],
            biases=_read_biases(raw, architecture),
            windows=_read_windows(raw, architecture, layers),
            tied_head=_flag(raw, "tie_word_embeddings"),
            bos=bos[0] if bos else None,
            eos=_token(raw, "eos_token_id"),
            pad=pad[0] if pad else None,
        )


def _read_biases(raw: Mapping[str, Any], architecture: Architecture) -> Biases:
    """Check what ``architecture.biases`` reads, then ask it."""
    _flag(raw, "attention_bias")
    _flag(raw, "mlp_bias")
    return architecture.biases(raw)


def _read_windows(
    raw: Mapping[str, Any], architecture: Architecture, layers: int
) -> tuple[int, ...]:
    """Check what ``architecture.windows`` reads, then ask it."""
    _flag(raw, "use_sliding_window")
    _size(raw, "sliding_window", 0, least=0)
    _size(raw, "max_window_layers", 0, least=0)
    types = raw.get("layer_types")
    kinds = ("full_attention", "sliding_attention")
    if types is not None and not (
        isinstance(types, list) and len(types) == layers and all(t in kinds for t in types)
    ):
        _fail("layer_types", types, f"{layers} entries, each {' or '.join(kinds)}")
    return architecture.windows(raw, layers)


def _read_rope(raw: Mapping[str, Any], head_dim: int, max_positions: int) -> RopeSpec:
    """``rope_parameters`` as transformers 5 writes it, or ``rope_theta`` and ``rope_scaling`` of
    before."""
    field = "rope_parameters" if raw.get("rope_parameters") is not None else "rope_scaling"
    given = raw.get(field) or {}
    if not isinstance(given, Mapping):
        _fail(field, given, "a table of rope settings")
    merged = {
        "rope_theta": raw.get("rope_theta"),
        "partial_rotary_factor": raw.get("partial_rotary_factor"),
    }
    merged |= {name: value for name, value in given.items() if value is not None}
    kind = merged.get("rope_type", merged.get("type", "default"))
    if kind not in KINDS:
        _fail(f"{field}.rope_type", kind, "one of " + ", ".join(KINDS))
    share = _number(merged, "partial_rotary_factor", 1.0)
    dim = int(head_dim * share)
    if share > 1 or dim < 2 or dim % 2:
        _fail(
            "head_dim * partial_rotary_factor",
            head_dim * share,
            f"an even number from 2 to head_dim = {head_dim}",
        )
    theta = _number(merged, "rope_theta", 10000.0)
    if theta <= 1:
        _fail("rope_theta", theta, "a number above 1")
    if kind == "default":
        return RopeSpec(dim=dim, theta=theta)
    factor = _number(merged, "factor")
    if kind == "linear":
        return RopeSpec(dim=dim, theta=theta, kind=kind, factor=factor)
    if kind == "llama3":
        low, high = _number(merged, "low_freq_factor"), _number(merged, "high_freq_factor")
        if low >= high:
            _fail("low_freq_factor", low, f"a number below high_freq_factor = {high}")
        return RopeSpec(
            dim=dim,
            theta=theta,
            kind=kind,
            factor=factor,
            original_max=_size(merged, "original_max_position_embeddings"),
            low_freq_factor=low,
            high_freq_factor=high,
        )
    scales = [
        None if merged.get(m) is None else _number(merged, m) for m in ("mscale", "mscale_all_dim")
    ]
    return RopeSpec(
        dim=dim,
        theta=theta,
        kind=kind,
        factor=factor,
        original_max=_size(merged, "original_max_position_embeddings", max_positions),
        beta_fast=_number(merged, "beta_fast", 32.0),
        beta_slow=_number(merged, "beta_slow", 1.0),
        truncate=_flag(merged, "truncate", True),
        attention_factor=_number(
            merged, "attention_factor", yarn_attention_factor(factor, *scales)
        ),
    )
