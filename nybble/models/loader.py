"""From a checkpoint to a model: all names and shapes are checked before weights are placed."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from nybble import env
from nybble.errors import FormatError, SettingError
from nybble.formats.base import LinearWeights
from nybble.formats.dense import DenseLinear
from nybble.formats.detect import Checkpoint, open_checkpoint
from nybble.models.config import ModelConfig
from nybble.models.hub import resolve
from nybble.models.transformer import DecoderLayer, Model
from nybble.modules.attention import Attention
from nybble.modules.before import Gate, RmsNorm
from nybble.modules.embedding import Embedding
from nybble.modules.linear import Linear, Placement, build_linear
from nybble.modules.mlp import Mlp
from nybble.modules.rope import RopeTable
from nybble.ops._native import ensure_loaded

Progress = Callable[[int, int], None]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Tensors that old checkpoints carry and that follow from the config.
IGNORED = (".rotary_emb.inv_freq",)


def load_model(
    path: str | Path,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    act_bits: int | None = None,
    progress: Progress | None = None,
) -> Model:
    """Load a model, quantized or not.

    Args:
        path: a folder, ``"demo"`` or a hub id; see :func:`nybble.models.hub.resolve`.
        device: ``"cpu"``, ``"cuda"``, ``"cuda:N"``, or ``"auto"`` for a GPU where there is one.
        dtype: of activations and dense weights. None: float32 on the CPU with dense weights as
            stored, float16 on a GPU.
        act_bits: 32, 16 or 8, of activations in quantized products; None: ``NYBBLE_ACT_BITS``.
        progress: called with layers done and layers in all.

    Raises:
        FormatError: no such model, or tensors are missing, damaged or of another shape than
            config.json says.
        UnsupportedModelError: the model is of a kind that nybble does not run.
        SettingError: the device is not there, or ``dtype`` or ``act_bits`` is none of the above.

    Example: ``load_model("demo").forward(torch.tensor([[0, 5, 6]]))`` is float32 ``[1, 3, V]``.
    """
    place = _placement(device, dtype, act_bits)
    checkpoint = open_checkpoint(resolve(path))
    config = ModelConfig.from_dict(checkpoint.config)
    ensure_loaded()  # a first use may build the library: not in the middle of the first prompt
    return _Loader(checkpoint, config, place).build(progress or _silent)


def _silent(done: int, total: int) -> None:
    """No progress is shown."""


def _placement(device: str, dtype: torch.dtype | None, act_bits: int | None) -> Placement:
    if dtype is not None and dtype not in DTYPES:
        raise SettingError(f"dtype is {dtype}, expected one of {', '.join(map(str, DTYPES))}")
    if act_bits not in (None, 32, 16, 8):
        raise SettingError(f"act_bits is {act_bits}, expected 32, 16 or 8")
    act_bits = act_bits or env.integer("NYBBLE_ACT_BITS")  # once, not at each product
    where = _device(device)
    if where.type == "cuda":
        on_gpu = dtype or torch.float16
        return Placement(where, on_gpu, on_gpu, act_bits)
    return Placement(where, dtype or torch.float32, dtype, act_bits)


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as e:
        raise SettingError(f"device is {name!r}, expected 'auto', 'cpu', 'cuda' or 'cuda:N'") from e
    if device.type not in ("cpu", "cuda"):
        raise SettingError(f"device is {name!r}, expected 'auto', 'cpu', 'cuda' or 'cuda:N'")
    if device.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise SettingError(
            f"device is {name!r}, but this torch ({torch.__version__}) sees no GPU; install a "
            "torch with CUDA and a "
            "driver that fits, or use device='cpu' (nybble doctor tells more)"
        )
    device = torch.device(
        "cuda", torch.cuda.current_device() if device.index is None else device.index
    )
    if device.index >= torch.cuda.device_count():
        raise SettingError(
            f"device is {name!r}, but there are {torch.cuda.device_count()} GPUs, counted from 0"
        )
    return device


@dataclass(frozen=True)
class _LinearSpec:
    """What config.json says of one linear layer."""

    key: str
    K: int
    N: int
    bias: bool  # must have one


class _Loader:
    """Checks one checkpoint against its config, then builds the model."""

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, place: Placement) -> None:
        self.checkpoint, self.config, self.place = checkpoint, config, place
        self.names = config.architecture.names
        present = set(checkpoint.names())
        head = self.names.head
        # A tied head that was quantized is a matrix of its own; a dense copy of the embedding is
        # not used.
        self.own_head = not config.tied_head or (
            f"{head}.weight" not in present and any(name.startswith(f"{head}.") for name in present)
        )
        self._check_names(present)
        self._check_vectors()
        self.widths = {spec.key: spec.N for spec in self._linears()}
        self.weights = {spec.key: self._read(spec) for spec in self._linears()}

    def _layer(self, i: int, name: str) -> str:
        return self.names.layer.format(i=i) + name

    def _linears(self) -> Iterator[_LinearSpec]:
        """All linear layers, in the order they run."""
        c, names, biases = self.config, self.names.layers, self.config.biases
        q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
        for i in range(c.layers):
            yield _LinearSpec(self._layer(i, names.q), c.hidden_size, q, biases.qkv)
            yield _LinearSpec(self._layer(i, names.k), c.hidden_size, kv, biases.qkv)
            yield _LinearSpec(self._layer(i, names.v), c.hidden_size, kv, biases.qkv)
            yield _LinearSpec(self._layer(i, names.out), q, c.hidden_size, biases.out)
            yield _LinearSpec(
                self._layer(i, names.gate), c.hidden_size, c.intermediate_size, biases.mlp
            )
            yield _LinearSpec(
                self._layer(i, names.up), c.hidden_size, c.intermediate_size, biases.mlp
            )
            yield _LinearSpec(
                self._layer(i, names.down), c.intermediate_size, c.hidden_size, biases.mlp
            )
        if self.own_head:
            yield _LinearSpec(self.names.head, c.hidden_size, c.vocab_size, False)

    def _vectors(self) -> Iterator[str]:
        """Names of the tensors that are no linear layer's."""
        yield self.names.embedding
        yield self.names.norm
        for i in range(self.config.layers):
            yield self._layer(i, self.names.layers.attention_norm)
            yield self._layer(i, self.names.layers.mlp_norm)

    def _check_names(self, present: set[str]) -> None:
        specs, vectors = list(self._linears()), set(self._vectors())
        keys = set(self.checkpoint.linears())
        missing = sorted(vectors - present) + [
            f"{spec.key}.weight" for spec in specs if spec.key not in keys
        ]
        missing += [
            f"{s.key}.bias"
            for s in specs
            if s.bias and s.key in keys and f"{s.key}.bias" not in present
        ]
        if missing:
            raise FormatError(
                f"{self.checkpoint.path}: {len(missing)} tensors that config.json asks for "
                f"are missing: {_some(missing)}. "
                "Is the download complete, and are all its safetensors files here?"
            )
        known = {spec.key for spec in specs} | (
            {self.names.head} if self.config.tied_head else set()
        )
        extra = sorted(
            name
            for name in present - vectors
            if name.rpartition(".")[0] not in known and not name.endswith(IGNORED)
        )
        if extra:
            warnings.warn(
                f"{self.checkpoint.path}: {len(extra)} tensors are not used by this "
                f"architecture: {_some(extra)}",
                stacklevel=5,
            )

    def _read(self, spec: _LinearSpec) -> LinearWeights:
        return self.checkpoint.linear(spec.key, in_features=spec.K, out_features=spec.N)

    def _linear(self, *keys: str) -> Linear:
        """Layers of one input; each one's stored weights are let go once placed."""
        return build_linear(
            [self.weights.pop(key) for key in keys], [self.widths[key] for key in keys], self.place
        )

    def _check_vectors(self) -> None:
        c = self.config
        for name in self._vectors():
            shape = (
                (c.vocab_size, c.hidden_size) if name == self.names.embedding else (c.hidden_size,)
            )
            info = self.checkpoint.info(name)
            if tuple(info.shape) != shape or info.dtype not in DTYPES:
                raise FormatError(
                    f"{self.checkpoint.path}: {name} is {info.dtype} {list(info.shape)}, "
                    "expected floating point "
                    f"{list(shape)} by config.json; the two do not belong together"
                )

    def _norm(self, name: str) -> RmsNorm:
        weight = self.checkpoint.tensor(name).to(self.place.device, torch.float32)
        return RmsNorm(weight, self.config.norm_eps)

    def _decoder_layer(self, i: int) -> DecoderLayer:
        c, n = self.config, self.names.layers
        attention = Attention(
            norm=self._norm(self._layer(i, n.attention_norm)),
            qkv=self._linear(self._layer(i, n.q), self._layer(i, n.k), self._layer(i, n.v)),
            out=self._linear(self._layer(i, n.out)),
            layer=i,
            heads=c.heads,
            kv_heads=c.kv_heads,
            head_dim=c.head_dim,
            window=c.windows[i],
        )
        mlp = Mlp(
            norm=self._norm(self._layer(i, n.mlp_norm)),
            gate_up=self._linear(self._layer(i, n.gate), self._layer(i, n.up)),
            down=self._linear(self._layer(i, n.down)),
            gate=Gate(c.activation),
        )
        return DecoderLayer(attention, mlp)

    def build(self, progress: Progress) -> Model:
        """Place the weights, layer by layer."""
        c, place = self.config, self.place
        table = place.dense(self.checkpoint.tensor(self.names.embedding))
        layers = []
        for i in range(c.layers):
            layers.append(self._decoder_layer(i))
            progress(i + 1, c.layers)
        if self.own_head:
            head = self._linear(self.names.head)
        else:
            head = build_linear([DenseLinear(table)], [c.vocab_size], place)
        return Model(
            config=c,
            device=place.device,
            dtype=place.dtype,
            embedding=Embedding(table, place.dtype),
            layers=tuple(layers),
            norm=self._norm(self.names.norm),
            head=head,
            rope=RopeTable(c.rope, c.max_positions, place.device),
        )


def _some(names: list[str]) -> str:
    """The first eight."""
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
