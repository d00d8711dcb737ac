"""Names and reasons as a person reads them in figures and on pages; tables, files and models keep the data's names."""

import re
from collections import Counter
from collections.abc import Sequence


def shown_class(name: str) -> str:
    """``Geococcyx`` of ``110.Geococcyx``, ``grizzly bear`` of ``grizzly+bear``, ``access road`` of ``access_road``.

    Signs at an end and numbers of another form are part of the name.
    """
    return _spaced(re.sub(r"^\d{3}\.(?=\D)", "", name))


def shown_classes(names: Sequence[str]) -> list[str]:
    """:func:`shown_class` of each; those that would read alike keep their numbers."""
    shown = [shown_class(name) for name in names]
    times = Counter(shown)
    return [_spaced(name) if times[short] > 1 else short for name, short in zip(names, shown, strict=True)]


def _spaced(name: str) -> str:
    return re.sub(r"(?<=[^\W_])[+_]+(?=[^\W_])", " ", name)


def shown_attribute(name: str) -> str:
    """``bill color: grey`` of ``has_bill_color::grey``."""
    return name.removeprefix("has_").replace("::", ": ").replace("_", " ")


def shown_reason(attribute: str, g: float) -> str:
    """What a photograph shows of an attribute, by the sign of its evidence g: ``red top``, or ``less red top than
    usual``; for a class as well as against it. Less of it speaks for a class that has less of it: g and y are negative.
    """
    name = shown_attribute(attribute)
    if g >= 0:
        return name
    return f"{name}, less than usual" if ": " in name else f"less {name} than usual"
