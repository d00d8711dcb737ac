"""A parser that says what is wrong in one sentence, and types of flags."""

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any, NoReturn, TypeVar

from core.features.devices import NAMES
from core.fields import check
from core.files.errors import UserError

DEVICE = f"{NAMES} (auto: a GPU where there is one)"  # the help of --device in every command
Settings = TypeVar("Settings")


class Parser(argparse.ArgumentParser):
    """No abbreviated flags; an error is one sentence, raised like every other mistake of a user."""

    def __init__(self, description: str | None = None, *, named: str = "", **more: Any) -> None:
        """``named``: the flags that decide which others there are, for the command that lists them."""
        raw = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=raw, allow_abbrev=False, **more)
        self.named = named

    def error(self, message: str) -> NoReturn:
        said = message.removeprefix("argument ")
        command = sys.argv[0] if sys.argv[0].startswith("vsmr") else f"python {sys.argv[0]}"
        raise UserError(f"{said}; {command} {self.named}--help lists every flag")


def from_flags(kind: type[Settings], args: argparse.Namespace, **others: Any) -> Settings:
    """A dataclass of the flags that are named like its fields, and of ``others``; each within its limits."""
    known = {f.name for f in fields(kind)}  # type: ignore[arg-type]
    made: Settings = check(kind(**{name: value for name, value in vars(args).items() if name in known} | others))
    return made


def whole(at_least: int) -> Callable[[str], int]:
    """Type of a flag: a whole number, not below ``at_least``."""

    def parse(text: str) -> int:
        value = int(text) if text.strip().removeprefix("-").isdecimal() else at_least - 1
        if value < at_least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {at_least}")
        return value

    return parse


def finite(text: str) -> float:
    """Type of a flag: a finite number."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value
