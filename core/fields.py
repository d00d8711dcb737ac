"""Settings whose fields are flags: a default, its help and its limits stand once, in a frozen dataclass."""

import operator
from argparse import ArgumentParser, ArgumentTypeError, _ArgumentGroup
from collections.abc import Callable, Mapping, Sequence
from dataclasses import Field, field, fields, replace
from math import isfinite
from types import NoneType
from typing import Any, get_args, get_type_hints

from core.files.errors import UserError

LIMITS = {"above": operator.gt, "at_least": operator.ge, "below": operator.lt, "at_most": operator.le}
_SWITCH = dict.fromkeys(("on", "true", "yes", "1"), True) | dict.fromkeys(("off", "false", "no", "0"), False)
_NEEDED = {bool: "on or off", int: "a whole number", float: "a number", str: "a text"}


def hp(default: Any, help: str, *, flag: bool = True, choices: Sequence[str] = (), **limits: float) -> Any:
    """A field: its default, its help text, the texts it may be, or ``limits`` (above, at_least, below, at_most).

    ``flag`` False: it is no user's choice and has no flag (what makes two methods of one model).
    """
    return field(default=default, metadata={"help": help, "limits": limits, "flag": flag, "choices": choices})


def flag_of(name: str) -> str:
    """weight_decay -> --weight-decay"""
    return f"--{name.replace('_', '-')}"


def _range_of(f: Field[Any]) -> str:
    if choices := f.metadata.get("choices"):
        return f"one of {', '.join(choices)}"
    return " and ".join(f"{key.replace('_', ' ')} {value:g}" for key, value in f.metadata.get("limits", {}).items())


def check(settings: Any) -> Any:
    """The settings, each :func:`hp` field within its limits; else refused with the flag, the value and the range."""
    for f in fields(settings):
        value, limits, choices = getattr(settings, f.name), f.metadata.get("limits", {}), f.metadata.get("choices")
        if value is None:
            continue
        inside = not isinstance(value, float | int) or isfinite(value)
        inside = inside and all(LIMITS[key](value, limit) for key, limit in limits.items())
        if not inside or (choices and value not in choices):
            must = _range_of(f) or "a finite number"
            raise UserError(f"{flag_of(f.name)} {value}: {f.metadata.get('help', f.name)} must be {must}")
    return settings


def with_settings(settings: Any, changes: Mapping[str, Any]) -> Any:
    """The settings with some fields replaced, each within its limits."""
    return check(replace(settings, **changes))


def add_fields(parser: ArgumentParser | _ArgumentGroup, settings: Any, *, without: Sequence[str] = ()) -> None:
    """One flag for each field; a field without one keeps its value among the parsed arguments."""
    hints = get_type_hints(type(settings))
    for f in (f for f in fields(settings) if f.name not in without):
        value = getattr(settings, f.name)
        if not f.metadata["flag"]:
            parser.set_defaults(**{f.name: value})
            continue
        shown = ("off", "on")[value] if isinstance(value, bool) else "none" if value is None else value
        limits = f"; {_range_of(f)}" if _range_of(f) else ""
        kinds = get_args(hints[f.name]) or (hints[f.name],)
        parser.add_argument(
            flag_of(f.name), type=_parser_of(kinds), default=value, metavar="VALUE",
            nargs="?" if bool in kinds else None, const=True if bool in kinds else None,  # the flag alone: on
            help=f"{f.metadata['help']} ({shown}{limits})",
        )  # fmt: skip


def _parser_of(kinds: tuple[Any, ...]) -> Callable[[str], Any]:
    """Type of a flag: bool, int, float or str, or none where that is among the ``kinds``."""
    (kind,) = (k for k in kinds if k is not NoneType)
    needed = _NEEDED[kind] + (" (or none)" if NoneType in kinds else "")

    def parse(text: str) -> Any:
        if NoneType in kinds and text.lower() == "none":
            return None
        try:
            return _SWITCH[text.lower()] if kind is bool else kind(text)
        except (KeyError, ValueError):
            raise ArgumentTypeError(f"{text!r}: {needed} is needed") from None

    return parse
