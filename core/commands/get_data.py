"""The command line of data/get_data.py."""

from collections.abc import Sequence
from pathlib import Path

from core.commands.parser import Parser
from core.datasets.download import SOURCES, get
from core.datasets.paths import DEFAULT_ROOT


def main(description: str | None = None, argv: Sequence[str] | None = None) -> int:
    p = Parser(description)
    p.add_argument("name", choices=sorted(SOURCES))
    p.add_argument("--data-root", type=Path, default=DEFAULT_ROOT, help="your archives may lie in its archives/ (data)")
    a = p.parse_args(argv)
    get(a.name, a.data_root)
    return 0
