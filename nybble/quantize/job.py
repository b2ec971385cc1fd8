"""A quantization from folder to folder that can be stopped at any moment and resumed.

Finished sites lie in ``.OUTPUT.work`` beside the output, each as a safetensors file and then, as its seal, a JSON file.
The output is put together in ``.OUTPUT.new`` and gets its name last, so a folder of that name is always a whole model.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import nybble
from nybble.errors import SettingError
from nybble.formats.exl2 import Exl2Linear
from nybble.formats.safetensors import SafetensorsFile, write_safetensors
from nybble.quantize.plan import WIDTHS, Site, assign_widths, find_sites
from nybble.quantize.report import LayerReport, Report
from nybble.quantize.rtn import fit_group, scale_of
from nybble.quantize.source import Source

SHARD_BYTES = 4 << 30
COPIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
    "LICENSE",
)
Progress = Callable[[int, int, str], None]  # weights done, weights in all, what is being done


@dataclass(frozen=True)
class Settings:
    """What was asked for."""

    bits: float = (
        4.0  # stored bits a weight of all matrices but the head, scales and row order included
    )
    head_bits: int = 6
    group_size: int = 128

    def check(self) -> None:
        """Raises SettingError for what EXL2 cannot hold."""
        if self.head_bits not in WIDTHS:
            raise SettingError(
                f"--head-bits: expected one of {', '.join(map(str, WIDTHS))}, got {self.head_bits}"
            )
        if self.group_size not in (32, 64, 128):
            raise SettingError(f"--group-size: expected 32, 64 or 128, got {self.group_size}")


def quantize_rtn(
    source: str | Path,
    output: str | Path,
    settings: Settings | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Write the checkpoint ``source`` as EXL2 into the folder ``output``, rounding to nearest.

    Args:
        source: folder of a full-precision checkpoint. output: folder to make.
        force: replace ``output`` if it exists. progress: called as work is done.

    Raises:
        SettingError: the output exists, a setting cannot be met, or the disk is too full.
        FormatError: the source is quantized already or damaged.

    Example: ``quantize_rtn("llama", "llama-4bit", Settings(bits=4.0))``
    """
    settings = settings or Settings()
    settings.check()
    started = time.monotonic()
    output = Path(output)
    tell = progress or (lambda done, total, what: None)
    read = Source(source)
    _check_output(Path(source), output, force)
    tell(0, 1, "reading")
    sites = find_sites(read, settings.head_bits)
    assign_widths(sites, settings.bits, settings.group_size)
    _check_disk(read, sites, settings, output)
    work = _open_work(read, output, settings)
    layers: list[LayerReport] = []
    total, done = sum(site.numel for site in sites), 0
    for number, site in enumerate(sites):
        tell(done, total, site.keys[0])
        layers += _site_reports(work / f"{number:05d}", site, read, settings)
        done += site.numel
    tell(total, total, "writing")
    fresh, nbytes = _assemble(work, output, read, settings, len(sites))
    report = Report(
        method="rtn",
        target=settings.bits,
        head_bits=settings.head_bits,
        group_size=settings.group_size,
        layers=tuple(layers),
        kept=tuple(read.kept),
        bytes=nbytes,
        source_bytes=sum(read.checkpoint.info(name).nbytes for name in read.checkpoint.names()),
        seconds=time.monotonic() - started,
    )
    _write_json(fresh / "report.json", report.to_dict())
    _publish(fresh, output)
    shutil.rmtree(work)
    return report


def quantize_linear(
    weight: Tensor,
    order: Tensor,
    groups: list[tuple[int, int]],
    bias: Tensor | None = None,
    key: str = "",
) -> tuple[Exl2Linear, float]:
    """One matrix, and its relative error ``|W - W'| / |W|``.

    Args:
        weight: float32 ``[N, K]``. order: int64 ``[K]``, input feature of each packed row.
        groups: ``(bits, rows)`` of each scale group.
        bias: ``[N]``. key: the layer's name.
    """
    N = weight.shape[0]
    padded = -(-N // 32) * 32
    rows = torch.nn.functional.pad(weight, (0, 0, 0, padded - N)).t()[order].contiguous()
    fits, wrong, at = [], 0.0, 0
    for bits, size in groups:
        part = rows[at : at + size]
        fit = fit_group(part, bits)
        rest = (fit.codes.float() - (1 << (bits - 1))) * scale_of(fit.index, fit.maximum) - part
        wrong += float(rest.square().sum())
        fits.append(fit)
        at += size
    linear = Exl2Linear.from_codes(
        codes=torch.cat([f.codes for f in fits]),
        scale_index=torch.stack([f.index for f in fits]),
        scale_max=torch.stack([f.maximum for f in fits]),
        bits=torch.tensor([bits for bits, _ in groups]),
        rows=torch.tensor([size for _, size in groups]),
        invperm=torch.argsort(order),
        bias=None if bias is None else torch.nn.functional.pad(bias.half(), (0, padded - N)),
        key=key,
    )
    return linear, (wrong / max(float(rows.square().sum()), 1e-30)) ** 0.5


def _site_reports(path: Path, site: Site, read: Source, settings: Settings) -> list[LayerReport]:
    """Quantize a site, or take it over from a run that was stopped."""
    seal = path.with_suffix(".json")
    if seal.is_file():
        return [
            LayerReport(**{**r, "shape": tuple(r["shape"])}) for r in json.loads(seal.read_text())
        ]
    groups = site.groups(settings.group_size)
    widths = {str(b): sum(rows for bits, rows in groups if bits == b) for b, _ in groups}
    tensors: dict[str, Tensor] = {}
    reports = []
    for key in site.keys:
        weight = read.weight(key)
        linear, error = quantize_linear(weight, site.order, groups, read.bias(key), key)
        tensors |= {f"{key}.{name}": tensor for name, tensor in linear.tensors().items()}
        reports.append(
            LayerReport(key, (linear.K, linear.N), round(linear.bits_per_weight, 4), widths, error)
        )
    write_safetensors(path.with_suffix(".safetensors"), tensors)
    _write_json(seal, [asdict(report) for report in reports])
    return reports


def _check_output(source: Path, output: Path, force: bool) -> None:
    if output.exists() and output.resolve() == source.resolve():
        raise SettingError(f"{output}: the output is the source itself; name another folder")
    if output.exists() and not force:
        raise SettingError(
            f"{output} exists already; name another folder, or add --force to replace it"
        )
    if output.exists() and not output.is_dir():
        raise SettingError(f"{output} is a file; name a folder")
    if output.is_dir() and any(output.iterdir()) and not (output / "config.json").is_file():
        raise SettingError(
            f"{output} is a folder of something else than a model and is not replaced; name another one"
        )


def _check_disk(read: Source, sites: list[Site], settings: Settings, output: Path) -> None:
    """The finished sites and the output lie on the disk together for a while."""
    made = sum(site.stored_bits(settings.group_size) for site in sites) // 8
    copied = sum(read.checkpoint.info(name).nbytes for name in read.others())
    need = 2 * made + copied + (32 << 20)
    output.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(output.parent).free
    if free < need:
        raise SettingError(
            f"{output.parent}: {need / 1e9:.2f} GB are needed while quantizing, {free / 1e9:.2f} GB are free; "
            "make room or write to another disk"
        )


def _open_work(read: Source, output: Path, settings: Settings) -> Path:
    """The folder of finished sites; emptied when it belongs to another job."""
    work = output.parent / f".{output.name}.work"
    files = sorted(
        p for p in read.checkpoint.path.iterdir() if p.suffix in (".safetensors", ".json")
    )
    job: dict[str, Any] = {
        "version": nybble.__version__,
        "settings": asdict(settings),
        "files": [[p.name, p.stat().st_size, p.stat().st_mtime_ns] for p in files],
    }
    about = work / "job.json"
    if work.is_dir() and not (about.is_file() and json.loads(about.read_text()) == job):
        shutil.rmtree(work)
    work.mkdir(exist_ok=True)
    _write_json(about, job)
    return work


def _assemble(
    work: Path, output: Path, read: Source, settings: Settings, sites: int
) -> tuple[Path, int]:
    """Put the output together under a temporary name; returns it and the bytes of its tensors."""
    fresh = output.parent / f".{output.name}.new"
    if fresh.exists():
        shutil.rmtree(fresh)
    fresh.mkdir()
    nbytes = _write_shards(fresh, work, read, sites)
    config = dict(read.checkpoint.config)
    config["torch_dtype"] = "float16"
    config.pop("dtype", None)
    config["quantization_config"] = {
        "quant_method": "exl2",
        "version": nybble.__version__,
        "bits": settings.bits,
        "head_bits": settings.head_bits,
        "calibration": {"rows": 0, "length": 0, "dataset": "(none: round to nearest)"},
    }
    _write_json(fresh / "config.json", config)
    for name in COPIED:
        if (read.checkpoint.path / name).is_file():
            shutil.copyfile(read.checkpoint.path / name, fresh / name)
    return fresh, nbytes


def _publish(fresh: Path, output: Path) -> None:
    """Give ``fresh`` its name; what had the name (``--force``) goes once the new one is in place."""
    old = output.parent / f".{output.name}.old"
    shutil.rmtree(old, ignore_errors=True)  # left by a run that was killed right here
    if output.exists():
        output.rename(old)
    fresh.rename(output)
    if old.exists():
        shutil.rmtree(old)


def _write_shards(folder: Path, work: Path, read: Source, sites: int) -> int:
    """Copied tensors first, then the sites, in files of at most SHARD_BYTES; one file is ``model.safetensors``."""
    shards: list[list[tuple[str, SafetensorsFile | None]]] = [[]]
    filled = total = 0
    entries: list[tuple[str, SafetensorsFile | None, int]] = [
        (name, None, read.checkpoint.info(name).nbytes) for name in read.others()
    ]
    for number in range(sites):
        file = SafetensorsFile(work / f"{number:05d}.safetensors")
        entries += [(name, file, file.infos[name].nbytes) for name in file.names()]
    for name, where, size in entries:
        if filled and filled + size > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append((name, where))
        filled += size
    many = len(shards) > 1
    weight_map: dict[str, str] = {}
    for i, shard in enumerate(shards, 1):
        title = f"model-{i:05d}-of-{len(shards):05d}.safetensors" if many else "model.safetensors"
        tensors = {
            n: _to_half(read.checkpoint.tensor(n)) if f is None else f.tensor(n) for n, f in shard
        }
        write_safetensors(folder / title, tensors, {"format": "pt"})
        weight_map |= dict.fromkeys(tensors, title)
        total += sum(t.numel() * t.element_size() for t in tensors.values())  # after halving
    if many:
        _write_json(
            folder / "model.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": weight_map},
        )
    return total


def _to_half(tensor: Tensor) -> Tensor:
    """Half precision, unless a number would become infinite."""
    if tensor.dtype not in (torch.bfloat16, torch.float32):
        return tensor
    half = tensor.half()
    return half if bool(torch.isfinite(half).all()) else tensor


def _write_json(path: Path, value: object) -> None:
    temporary = path.with_suffix(".json.part")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    temporary.rename(path)
