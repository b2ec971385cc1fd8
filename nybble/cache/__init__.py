"""Stores of keys and values."""

from nybble.cache.flat import FlatCache

__all__ = ["FlatCache"]
