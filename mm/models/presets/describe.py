"""From the description of a part to the part."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from mm.errors import UsageError

Presets = Mapping[str, Callable[..., Any]]


def build_part(role: str, presets: Presets, description: Mapping[str, Any], **given: Any) -> Any:
    """Builds a part of its description.

    Args:
        role: what the part is, for messages: ``text_decoder``.
        presets: the functions that build such parts, by name.
        description: ``preset`` and that function's arguments.
        given: further arguments, which a description can't hold. Those that the preset doesn't take are left out.

    Raises:
        UsageError: no such preset, an argument that it doesn't take, lacks, or can't build of.
    """
    build, numbers = _resolve(role, presets, description)
    known = inspect.signature(build).parameters
    given = {name: value for name, value in given.items() if name in known}
    if lacking := [
        name
        for name, parameter in known.items()
        if parameter.default is parameter.empty and name not in numbers | given
    ]:
        raise UsageError(f"{role}: preset {description['preset']!r} also needs {', '.join(lacking)}")
    try:
        return build(**(numbers | given))
    except UsageError as error:
        raise UsageError(f"{role}: {error}") from error
    except (ArithmeticError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(f"{role}: preset {description['preset']!r} can't be built ({reason})") from error


def complete(role: str, presets: Presets, description: Mapping[str, Any], **given: Any) -> dict[str, Any]:
    """Adds to a description the numbers that the other parts decide, as far as its preset takes them.

    Raises:
        UsageError: no such preset, or an argument that it doesn't take.
    """
    build, _ = _resolve(role, presets, description)
    known = inspect.signature(build).parameters
    return dict(description) | {name: value for name, value in given.items() if name in known}


def _resolve(role: str, presets: Presets, description: Mapping[str, Any]) -> tuple[Callable[..., Any], dict[str, Any]]:
    if not isinstance(description, Mapping) or not isinstance(description.get("preset"), str):
        raise UsageError(f"{role}: needs a preset by name: {', '.join(presets)}")
    numbers = {str(name): value for name, value in description.items() if name != "preset"}
    preset = description["preset"]
    if preset not in presets:
        raise UsageError(f"{role}: no preset {preset!r}; there are {', '.join(presets)}")
    known = inspect.signature(presets[preset]).parameters
    if extra := sorted(name for name in numbers if name not in known):
        raise UsageError(f"{role}: preset {preset!r} has no {', '.join(extra)}; it has {', '.join(known)}")
    return presets[preset], numbers
