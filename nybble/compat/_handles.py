"""Integer handles for the old interfaces: what a ``make_*`` function returns and a ``free_*`` one takes."""

from __future__ import annotations

import itertools
import threading
from typing import TypeVar

T = TypeVar("T")

_lock = threading.Lock()
# Far from small numbers, which a program may pass by mistake; never used twice, so that a freed handle stays unknown.
_numbers = itertools.count(1 << 20, 16)
_objects: dict[int, object] = {}


def new(thing: object) -> int:
    """A handle that keeps ``thing``, and the tensors in it, alive until :func:`free`."""
    with _lock:
        handle = next(_numbers)
        _objects[handle] = thing
        return handle


def get(handle: int, kind: type[T], *, name: str) -> T:
    """The object behind ``handle``.

    Raises:
        RuntimeError: there is none (never made, or freed), or it is of another kind.
        TypeError: ``handle`` is no integer.
    """
    if isinstance(handle, bool) or not isinstance(handle, int):
        raise TypeError(f"{name}: the handle is {type(handle).__name__}, expected int")
    thing = _objects.get(handle)
    if thing is None:
        raise RuntimeError(
            f"{name}: there is no {kind.__name__} with handle {handle}; it was freed or never made"
        )
    if not isinstance(thing, kind):
        raise RuntimeError(
            f"{name}: handle {handle} is of a {type(thing).__name__}, expected a {kind.__name__}"
        )
    return thing


def free(handle: int, kind: type[object], *, name: str) -> None:
    """Forget ``handle``; 0 is nothing to free.

    Raises:
        RuntimeError: as :func:`get`.
    """
    if handle == 0 and not isinstance(handle, bool):
        return
    get(handle, kind, name=name)
    with _lock:
        _objects.pop(handle, None)
