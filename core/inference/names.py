"""Names and reasons as a person reads them in figures and on pages; tables, files and models keep the data's names."""

import re
from collections import Counter
from collections.abc import Sequence


def shown_class(name: str) -> str:
    """A class's name without CUB's number before it, and with spaces where AWA2 and SUN write ``+`` and ``_``.

    ``110.Geococcyx`` -> Geococcyx, ``grizzly+bear`` -> grizzly bear, ``access_road`` -> access road. Signs at an end
    and numbers of another form are part of the name.
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
    usual``; ``bill color: grey``, or ``bill color: grey, less than usual``.

    It names a reason for a class as well as one against it. What adds to the score of a class that has less of the
    attribute than usual is that the photograph shows less of it, too: g and y are both negative there.
    """
    name = shown_attribute(attribute)
    if g >= 0:
        return name
    return f"{name}, less than usual" if ": " in name else f"less {name} than usual"
