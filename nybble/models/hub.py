"""Where a model's files are: a folder, the demo in the package, or a repository on the Hugging Face
hub."""

from __future__ import annotations

import re
from pathlib import Path

from nybble.errors import FormatError

DEMO = Path(__file__).resolve().parents[1] / "demo"
PATTERNS = [
    "*.safetensors",
    "*.json",
    "*.jinja",
]  # newer models keep the chat template in a .jinja file
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve(name: str | Path) -> Path:
    """The folder of model ``name``, downloaded if it is a hub id.

    Args:
        name: a folder; ``"demo"``; or ``"owner/model"``, fetched once into the hub's own cache. A
            folder comes first.

    Raises:
        FormatError: there is no such folder, the download failed, or huggingface_hub is not
            installed.

    Example: ``resolve("demo")`` is the folder of the demo model.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists():
        raise FormatError(f"{name} is a file, expected the folder of a model (with config.json)")
    if str(name) == "demo":
        if DEMO.is_dir():
            return DEMO
        raise FormatError(
            f"the demo model is not in this installation ({DEMO} is missing); reinstall nybble"
        )
    if not _HUB_ID.fullmatch(str(name)):
        raise FormatError(f"{name}: no such folder, and not 'demo' or a hub id such as owner/model")
    return _download(str(name))


def _download(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError as e:
        raise FormatError(
            f"{name}: no such folder; as a hub id it needs huggingface_hub: pip install "
            "huggingface_hub"
        ) from e
    try:
        return Path(snapshot_download(name, allow_patterns=PATTERNS))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as e:
        reason = str(e).strip().splitlines()
        raise FormatError(
            f"{name}: no such folder, and the download from the hub failed: "
            f"{reason[0] if reason else type(e).__name__}. "
            "Check the name and the network, or give a folder."
        ) from e
