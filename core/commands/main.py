"""The one command of an installation: `vsmr own`, `vsmr predict`, ...; each word stands for a script of the clone."""

import importlib
import sys

from core.commands.parser import Parser
from core.files.errors import run_cli

COMMANDS = {  # word -> what --help says of it
    "own": "A folder of your own: photographs by class and a sheet that describes the classes, in; a model, out.",
    "predict": "Photographs in, classes and reasons out, from a finished run.",
    "train": "Train a method on a data set, choose on validation classes, report T1 U S H AUSUC.",
    "extract": "Region features of a data set's images from a frozen backbone.",
    "tables": "Reproduce every table: data sets x methods x seeds.",
    "demo": "The whole pipeline on a data set that is drawn here: no download, no GPU.",
}
DATASETS = ("AWA2", "CUB", "SUN")  # of train and extract, as their next word


def main() -> int:
    return run_cli(dispatch, sys.argv[1:])


def dispatch(words: list[str]) -> int:
    """Run the command that the first word names, with all that follows."""
    sys.argv[0] = "vsmr"  # what messages tell the user to type
    rows = "\n".join(f"  {word:<8} {said}" for word, said in COMMANDS.items())
    command = _word(f"vsmr COMMAND --help tells more.\n\n{rows}", "command", tuple(COMMANDS), words)
    said, rest, dataset = COMMANDS[command], words[1:], "DEMO"
    sys.argv[0] += f" {command}"
    if command in ("train", "extract"):
        dataset, rest = _word(said, "dataset", DATASETS, rest), rest[1:]
        sys.argv[0] += f" {dataset}"
    # what a command needs is imported for it alone: for some that takes seconds
    module = {"tables": "reproduce", "demo": "train"}.get(command, command)
    called = importlib.import_module(f"core.commands.{module}").main
    return int(called(said, rest) if command in ("own", "predict", "tables") else called(dataset, said, rest))


def _word(description: str, name: str, choices: tuple[str, ...], words: list[str]) -> str:
    """The first of the words, one of the choices; its --help comes with it."""
    p = Parser(description, prog=sys.argv[0])
    p.add_argument(name, choices=choices)
    return str(getattr(p.parse_args(words[:1]), name))
