"""What nybble raises. Each message says what was expected, what came, and what to do next."""

from __future__ import annotations


def help_at(section: str) -> str:
    """Where the page on installing says more; the section is the anchor of a heading there.

    >>> help_at("no-compiler")
    'docs/install.md#no-compiler'
    """
    return f"docs/install.md#{section}"


class NybbleError(Exception):
    """Base of every error nybble raises on purpose."""


class FormatError(NybbleError):
    """A checkpoint is not what it says it is, or is of a kind nybble cannot read."""


class UnsupportedModelError(NybbleError):
    """The checkpoint is sound, but its architecture or a setting of it is not supported."""


class BuildError(NybbleError):
    """The native library could not be built or loaded."""


class SettingError(NybbleError):
    """An environment variable or option has a value nybble does not understand."""


class RequestError(NybbleError, ValueError):
    """A generation request cannot be served as asked."""
