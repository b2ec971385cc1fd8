"""Open a checkpoint: find its files, recognise how each layer is stored, refuse with a reason what
cannot be read.

How a layer is stored is read from its tensors' names and shapes, layer by layer; the configuration
only settles what they leave open (GPTQ's zero convention, GPTQ or AWQ for equal names).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

from nybble.errors import FormatError
from nybble.formats.awq import awq_linear
from nybble.formats.base import LinearWeights
from nybble.formats.config import QuantConfig, read_json, read_quant_config
from nybble.formats.dense import DenseLinear
from nybble.formats.exl2 import Exl2Linear
from nybble.formats.gptq import GptqLinear
from nybble.formats.safetensors import SafetensorsFile, TensorInfo

INDEX = "model.safetensors.index.json"
INDEX_CAP = 32 << 20
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
FOREIGN = {  # last name parts that only other formats use
    "weight_packed": "compressed-tensors",
    "quant_state.bitsandbytes__nf4": "bitsandbytes",
    "quant_state.bitsandbytes__fp4": "bitsandbytes",
    "SCB": "bitsandbytes",
    "weight_scale_inv": "FP8",
    "trellis": "EXL3",
}
EXL2_PARTS = ("q_weight", "q_scale", "q_scale_max", "q_groups", "q_invperm")


class Checkpoint:
    """The tensors of a model folder; see :func:`open_checkpoint`, which makes it.

    ``path`` the folder, ``config`` config.json as a dict, ``quant`` its quantization settings or
    None, ``files`` the safetensors files.
    """

    def __init__(self, path: Path, config: dict[str, Any], files: list[SafetensorsFile]) -> None:
        self.path = path
        self.config = config
        self.quant: QuantConfig | None = read_quant_config(path, config)
        self.files = files
        self._where: dict[str, SafetensorsFile] = {}
        for file in files:
            for name in file.infos:
                if name in self._where:
                    raise FormatError(
                        f"{path}: tensor {name[:80]!r} is in {self._where[name].path.name} and in "
                        f"{file.path.name}; "
                        "remove the files that are not part of the model."
                    )
                self._where[name] = file
        self._kinds = {
            key: kind for name in self._where for key, kind in [_kind(name, self._where)] if kind
        }
        self._refuse_foreign()

    @property
    def format(self) -> str:
        """``exl2``, ``gptq``, ``awq``, ``fp16`` (any unquantized model), or ``mixed`` for two
        quantized kinds in one."""
        kinds = set(self._kinds.values())
        if "qweight" in kinds:
            kinds = (kinds - {"qweight"}) | {"awq" if self._is_awq() else "gptq"}
        kinds -= {"fp16"}
        return "mixed" if len(kinds) > 1 else kinds.pop() if kinds else "fp16"

    @property
    def tokenizer_path(self) -> Path | None:
        """The folder's tokenizer.json, if there is one."""
        path = self.path / "tokenizer.json"
        return path if path.is_file() else None

    def names(self) -> list[str]:
        """The names of all tensors."""
        return list(self._where)

    def has(self, name: str) -> bool:
        """Whether there is a tensor ``name``."""
        return name in self._where

    def info(self, name: str) -> TensorInfo:
        """dtype, shape and bytes of a tensor, without reading it; raises FormatError when there is
        none."""
        return self._file(name).infos[name]

    def tensor(self, name: str) -> Tensor:
        """The tensor ``name``; raises FormatError when there is none."""
        return self._file(name).tensor(name)

    def linears(self) -> Iterator[str]:
        """Keys of the layers that :meth:`linear` reads: all quantized ones, and every
        ``KEY.weight`` of two dimensions."""
        for key, kind in self._kinds.items():
            if kind != "fp16" or len(self.info(f"{key}.weight").shape) == 2:
                yield key

    def kind(self, key: str) -> str:
        """How layer ``key`` is stored: ``exl2``, ``gptq``, ``awq`` or ``fp16``; raises FormatError
        when it is not there."""
        kind = self._kinds.get(key)
        if kind is None:
            raise FormatError(
                f"{self.path}: layer {key!r} has none of {key}.weight, {key}.qweight, "
                f"{key}.q_weight; "
                "the checkpoint is incomplete or of another architecture than config.json says."
            )
        if kind == "qweight":
            return "awq" if self._is_awq(key) else "gptq"
        return kind

    def linear(
        self, key: str, *, in_features: int | None = None, out_features: int | None = None
    ) -> LinearWeights:
        """Layer ``key``, checked; raises FormatError when it is missing, damaged or not of the
        given size.

        EXL2 pads its outputs to a multiple of 32, so ``N`` may be larger than ``out_features`` by
        up to 31 there.

        Example: ``open_checkpoint(path).linear("model.layers.0.self_attn.q_proj",
            in_features=512)``
        """
        kind = self.kind(key)
        layer: LinearWeights
        if kind == "exl2":
            parts = {part: self.tensor(f"{key}.{part}") for part in EXL2_PARTS}
            layer = Exl2Linear(**parts, bias=self._optional(f"{key}.bias"), key=key)
        elif kind == "gptq":
            layer = self._gptq(key)
        elif kind == "awq":
            names = ("qweight", "qzeros", "scaled_zeros", "scales", "bias")
            found = {
                name: tensor
                for name in names
                if (tensor := self._optional(f"{key}.{name}")) is not None
            }
            layer = awq_linear(key, found, self.quant, in_features)
        else:
            layer = DenseLinear(self.tensor(f"{key}.weight"), self._optional(f"{key}.bias"), key)
        layer.validate()
        self._check_size(layer, kind, key, in_features, out_features)
        return layer

    def _gptq(self, key: str) -> GptqLinear:
        v2 = self.quant is not None and self.quant.checkpoint_format == "gptq_v2"
        return GptqLinear(
            qweight=self.tensor(f"{key}.qweight"),
            qzeros=self.tensor(f"{key}.qzeros"),
            scales=self.tensor(f"{key}.scales"),
            g_idx=self._optional(f"{key}.g_idx"),
            bias=self._optional(f"{key}.bias"),
            bits=GptqLinear.infer_bits(key, self.info(f"{key}.qzeros"), self.info(f"{key}.scales")),
            group_size=None if self.quant is None else self.quant.group_size,
            v2=v2,
            key=key,
        )

    def _check_size(
        self,
        layer: LinearWeights,
        kind: str,
        key: str,
        in_features: int | None,
        out_features: int | None,
    ) -> None:
        pad = 31 if kind == "exl2" else 0
        right_k = in_features is None or in_features == layer.K
        right_n = out_features is None or out_features <= layer.N <= out_features + pad
        if not (right_k and right_n):
            raise FormatError(
                f"{key}: expected {in_features} inputs and {out_features} outputs from "
                "config.json, "
                f"got {layer.K} and {layer.N}; config.json belongs to another model or the "
                "checkpoint is damaged."
            )

    def _optional(self, name: str) -> Tensor | None:
        return self.tensor(name) if self.has(name) else None

    def _file(self, name: str) -> SafetensorsFile:
        file = self._where.get(name)
        if file is None:
            raise FormatError(
                f"{self.path}: tensor {name!r} is missing; the checkpoint is incomplete."
            )
        return file

    def _is_awq(self, key: str | None = None) -> bool:
        """Settle AWQ or GPTQ for ``KEY.qweight``: the configuration, else the tensors that only
        one of them has."""
        if self.quant is not None and self.quant.method in ("awq", "gptq"):
            return self.quant.method == "awq"
        keys = [k for k, kind in self._kinds.items() if kind == "qweight"] if key is None else [key]
        for k in keys:
            if self.has(f"{k}.g_idx"):
                return False
            if self.has(f"{k}.scaled_zeros"):
                return True
            weight, scales = self.info(f"{k}.qweight").shape, self.info(f"{k}.scales").shape
            if len(weight) == 2 and len(scales) == 2:
                return weight[1] != scales[1]  # GPTQ packs along K and keeps N columns
        return False

    def _refuse_foreign(self) -> None:
        for name in self._where:
            for part, method in FOREIGN.items():
                if name.endswith("." + part):
                    raise FormatError(
                        f"{self.path}: tensor {name[:80]!r} is of a {method} checkpoint, which "
                        "nybble does not read; "
                        "use an EXL2, GPTQ, AWQ or unquantized safetensors version of the model."
                    )


def _kind(name: str, names: dict[str, SafetensorsFile]) -> tuple[str, str]:
    """The layer a tensor makes, and its kind; EXL2 comes before GPTQ/AWQ before floating point, as
    the formats say."""
    key, _, part = name.rpartition(".")
    if part == "q_weight":
        return key, "exl2"
    if part == "qweight" and f"{key}.q_weight" not in names:
        return key, "qweight"
    if part == "weight" and f"{key}.q_weight" not in names and f"{key}.qweight" not in names:
        return key, "fp16"
    return key, ""


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open the model folder ``path``.

    Reads and checks config.json and the safetensors headers, no tensor. Raises FormatError when
    the folder holds no model, when a shard is missing or damaged, and, by name, for formats nybble
    does not read (GGUF, pickles and others).

    Example: ``open_checkpoint("models/demo").format`` is ``"exl2"``.
    """
    folder = Path(path)
    if folder.is_file() and folder.suffix == ".gguf":
        raise FormatError(
            f"{folder}: this is a GGUF file, which nybble does not read; use the safetensors model."
        )
    if not folder.is_dir():
        raise FormatError(
            f"{folder}: expected a model folder (config.json and *.safetensors), found none there."
        )
    files = [SafetensorsFile(file) for file in _weight_files(folder)]
    if not (folder / "config.json").is_file():
        raise FormatError(
            f"{folder}: expected config.json beside the weights, found none; copy it from the "
            "model."
        )
    checkpoint = Checkpoint(folder, read_json(folder / "config.json"), files)
    _check_index(folder, checkpoint)
    return checkpoint


def _weight_files(folder: Path) -> list[Path]:
    """The files that make the model: those of the index, else one of the usual names, else all."""
    present = sorted(p for p in folder.iterdir() if p.suffix == ".safetensors" and p.is_file())
    outputs = [p for p in present if p.name == "output.safetensors" or p.name.startswith("output-")]
    if (folder / INDEX).is_file():
        shards = sorted(set(_index(folder).values()))
        missing = [name for name in shards if not (folder / name).is_file()]
        if not missing:
            return [folder / name for name in shards]
        if len(missing) < len(shards) or not outputs:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise FormatError(
                f"{folder}: shard {missing[0]}{more} of {INDEX} is missing; fetch the model again."
            )
        # EXL2's converter copies the original's index, which then speaks of files that are not
        # there
    for chosen in (
        outputs,
        [p for p in present if p.name == "model.safetensors"],
        [p for p in present if p.name.startswith("model-")],
        [p for p in present if not p.name.startswith("adapter_")],
    ):
        if chosen:
            _check_numbering(folder, chosen)
            return chosen
    raise _no_weights(folder)


def _no_weights(folder: Path) -> FormatError:
    others = sorted(p.name for p in folder.iterdir() if p.suffix in (*PICKLES, ".gguf"))
    if not others:
        return FormatError(
            f"{folder}: expected *.safetensors files, found none; this is no model folder."
        )
    if others[0].endswith(".gguf"):
        return FormatError(
            f"{folder}: {others[0]} is a GGUF file, which nybble does not read; use the "
            "safetensors model."
        )
    return FormatError(
        f"{folder}: {others[0]} is a pickle, which can run code when opened, so nybble never "
        "does. Convert it: load the "
        "model with transformers where you trust it and call save_pretrained(folder, "
        "safe_serialization=True)."
    )


def _check_numbering(folder: Path, files: list[Path]) -> None:
    """``NAME-00001-of-00003``: all of one count are there."""
    for path in files:
        head, _, total = path.stem.rpartition("-of-")
        base, _, number = head.rpartition("-")
        if not (base and number.isdecimal() and total.isdecimal() and len(total) < 9):
            continue
        have = {p.name for p in files}
        for i in range(1, min(int(total), len(files) + 1) + 1):
            name = f"{base}-{i:0{len(number)}d}-of-{total}.safetensors"
            if name not in have:
                raise FormatError(f"{folder}: shard {name} is missing; fetch the model again.")
        if int(total) != len(files):
            raise FormatError(
                f"{folder}: expected {total} shards, found {len(files)}; remove those of another "
                "model."
            )


def _index(folder: Path) -> dict[str, str]:
    """``weight_map`` of the index: tensor name to file name, which must name files of this
    folder."""
    weight_map = read_json(folder / INDEX, INDEX_CAP).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(
            f"{folder / INDEX}: expected weight_map to be an object of names, got "
            f"{str(weight_map)[:80]}."
        )
    for name, shard in weight_map.items():
        plain = (
            isinstance(shard, str)
            and shard.endswith(".safetensors")
            and not set(shard) & set("/\\:\0")
        )
        if not plain or shard.startswith("."):
            raise FormatError(
                f"{folder / INDEX}: expected {name[:80]!r} in a file of this folder, got "
                f"{str(shard)[:80]}."
            )
    return weight_map


def _check_index(folder: Path, checkpoint: Checkpoint) -> None:
    """Every tensor is in the shard the index says."""
    if not (folder / INDEX).is_file():
        return
    files = {file.path.name: file for file in checkpoint.files}
    for name, shard in _index(folder).items():
        if shard in files and name not in files[shard].infos:
            raise FormatError(
                f"{folder}: {INDEX} says {name[:80]!r} is in {shard}, which does not have it."
            )
