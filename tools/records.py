"""What lies beside a released file: its checksum, an SBOM (CycloneDX 1.6) and a provenance statement (in-toto, SLSA v1).

Plain data in, plain data out. Times are the commit's, so the same commit makes the same records.
"""

from __future__ import annotations

import datetime
import email
import email.message
import hashlib
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

REPOSITORY = "pkg:pypi/nybble"
BUILD_TYPE = "urn:nybble:tools/release.py:1"
# What a CUDA wheel carries inside: not a dependency that pip could tell.
CUDA_RUNTIME = {
    "type": "library",
    "name": "cudart_static",
    "supplier": {"name": "NVIDIA"},
    "licenses": [{"license": {"name": "NVIDIA CUDA Toolkit EULA"}}],
    "description": "CUDA runtime, linked statically",
}
DEMO_MODEL = {
    "type": "machine-learning-model",
    "name": "nybble-demo",
    "licenses": [{"license": {"id": "CC0-1.0"}}],
    "description": "The demo model in nybble/demo; MODEL_CARD.md says how it was made",
}


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def when(epoch: int) -> str:
    """A time as both formats write it.

    >>> when(0)
    '1970-01-01T00:00:00Z'
    """
    return datetime.datetime.fromtimestamp(epoch, datetime.timezone.utc).strftime(
        "%Y-%m-%dT%H:%M:%SZ"
    )


def metadata(path: Path) -> email.message.Message:
    """METADATA of a wheel or PKG-INFO of an sdist. ValueError where there is not exactly one."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as wheel:
            names = [n for n in wheel.namelist() if n.endswith(".dist-info/METADATA")]
            texts = [wheel.read(name).decode() for name in names]
    else:
        with tarfile.open(path) as archive:
            members = [m for m in archive.getmembers() if re.fullmatch(r"[^/]+/PKG-INFO", m.name)]
            texts = [file.read().decode() for m in members if (file := archive.extractfile(m))]
    if len(texts) != 1:
        raise ValueError(f"{path} has {len(texts)} metadata files, expected 1")
    return email.message_from_string(texts[0])


def requirement(line: str) -> dict[str, Any]:
    """A dependency as a CycloneDX component; the range as a property, since no one version is meant.

    >>> requirement("torch>=2.10")["purl"], requirement("pytest; extra == 'dev'")["scope"]
    ('pkg:pypi/torch', 'optional')
    """
    found = re.match(r"([A-Za-z0-9._-]+)\s*([^;]*)(?:;(.*))?", line)
    assert found, line
    name = re.sub(r"[-_.]+", "-", found.group(1)).lower()
    return {
        "type": "library",
        "bom-ref": f"{name}:{found.group(3) or ''}".rstrip(":").replace(" ", ""),
        "name": name,
        "purl": f"pkg:pypi/{name}",
        "scope": "optional" if "extra ==" in (found.group(3) or "") else "required",
        "properties": [{"name": "nybble:requires", "value": line}],
    }


def sbom(path: Path, *, epoch: int, cuda: str) -> dict[str, Any]:
    """CycloneDX for one file: what is in it, and what it asks pip for. ``cuda``: toolkit of its GPU code; empty: none."""
    facts = metadata(path)
    name, version = facts["Name"], facts["Version"]
    inside = [DEMO_MODEL, *([CUDA_RUNTIME | {"version": cuda}] if cuda else [])]
    inside = [part | {"bom-ref": part["name"], "scope": "required"} for part in inside]
    asked = [requirement(line) for line in facts.get_all("Requires-Dist") or []]
    root = f"{REPOSITORY}@{version}"
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": when(epoch),
            "component": {
                "type": "library",
                "bom-ref": root,
                "name": name,
                "version": version,
                "purl": root,
                "licenses": [{"license": {"id": "MIT"}}],
                "hashes": [{"alg": "SHA-256", "content": sha256(path)}],
                "properties": [{"name": "nybble:file", "value": path.name}],
            },
        },
        "components": [*inside, *asked],
        "dependencies": [
            {"ref": root, "dependsOn": [part["bom-ref"] for part in [*inside, *asked]]}
        ],
    }


def provenance(
    path: Path,
    *,
    epoch: int,
    commit: str,
    asked: dict[str, Any],
    tools: dict[str, str],
    builder: str,
) -> dict[str, Any]:
    """An in-toto statement, not signed: which commit, which settings, which tools made this file."""
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": path.name, "digest": {"sha256": sha256(path)}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": asked,
                "internalParameters": {"SOURCE_DATE_EPOCH": epoch},
                "resolvedDependencies": [
                    {"name": "source", "digest": {"gitCommit": commit}},
                    *({"name": name, "annotations": {"version": v}} for name, v in tools.items()),
                ],
            },
            "runDetails": {"builder": {"id": builder}},
        },
    }
