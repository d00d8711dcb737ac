"""The contract of a method: fields of a recipe and their flags, what is refused at import, and the registry."""

from dataclasses import dataclass

import pytest

import core.method as contract
from core.commands import flags
from core.commands.parser import Parser, from_flags
from core.fields import add_fields
from core.files.errors import UserError
from core.method import hp, method, with_settings
from core.methods import find_method, methods


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Fields of every kind."""

    lr: float = hp(0.1, "learning rate", above=0)
    share: float = hp(0.5, "a share", at_least=0, at_most=1)
    momentum: float = hp(0.9, "momentum", at_least=0, below=1)
    epochs: int = hp(3, "epochs", at_least=0)
    on: bool = hp(False, "a switch")
    threshold: float | None = hp(None, "a threshold", at_least=0, at_most=1)
    scale: float = hp(1.0, "a scale")
    hidden: int = hp(1, "no flag", flag=False)


def typed(*argv, of=None):
    """The recipe of what a user types."""
    parser = Parser()
    add_fields(parser, of or Recipe(hidden=7))
    return from_flags(Recipe, parser.parse_args(argv))


def build(recipe, space, shape, seed, epochs):
    """Never called."""


def other(recipe, space, shape, seed, epochs):
    """Never called."""


def test_what_a_user_types_becomes_a_value_and_all_else_stays():
    assert typed() == Recipe(hidden=7)
    argv = ["--lr", "1e-3", "--share", "1", "--epochs", "0", "--on", "ON", "--threshold", "0.25"]
    assert typed(*argv) == Recipe(lr=1e-3, share=1.0, epochs=0, on=True, threshold=0.25, hidden=7)
    assert typed("--threshold", "none", "--on", "0", of=Recipe(threshold=0.5, on=True)) == Recipe()
    with pytest.raises(UserError, match="unrecognized arguments: --hidden"):
        typed("--hidden", "3")


@pytest.mark.parametrize(
    ("flag", "text", "said"),
    [
        ("--lr", "0", "--lr 0.0: learning rate must be above 0"),
        ("--scale", "inf", "--scale inf: a scale must be a finite number"),
        ("--share", "7", "--share 7.0: a share must be at least 0 and at most 1"),
        ("--momentum", "1", "at least 0 and below 1"),
        ("--epochs", "2.5", "--epochs: '2.5': a whole number is needed"),
        ("--on", "2", "--on: '2': on or off is needed"),
        ("--lr", "", "--lr: '': a number is needed"),  # an empty variable of a shell: no way to ask for the default
        ("--threshold", "", "--threshold: '': a number (or none) is needed"),
    ],
)
def test_values_outside_their_range_are_a_sentence_with_flag_value_and_range(flag, text, said):
    with pytest.raises(UserError) as error:
        typed(f"{flag}={text}")
    assert said in str(error.value)


def test_what_is_refused_at_import_names_the_file(monkeypatch):
    monkeypatch.setattr(contract, "REGISTRY", dict(methods()))
    method("fine", recipes={"*": Recipe(), "CUB": Recipe(lr=0.2)})(build)
    assert methods()["fine"].recipe("CUB").lr == 0.2 and methods()["fine"].recipe("any other").lr == 0.1
    method("fine", recipes={"*": Recipe()})(build)  # the same file imported anew
    for name, recipes, function, said in (
        ("fine", {"*": Recipe()}, other, "has a method 'fine' already"),
        ("dazle", {"*": Recipe()}, build, "has a method 'dazle' already"),
        ("half", {"*": Recipe(), "CUP": Recipe()}, build, "'CUP', which is no registered data set"),
    ):
        with pytest.raises(UserError, match=rf"test_method\.py.*{said}"):
            method(name, recipes=recipes)(function)
    with pytest.raises(UserError, match="no method 'half'; there are vsmr, "):
        find_method("half")


def test_a_method_has_its_own_flags_and_no_others():
    parser, name = flags.method_first(None, "CUB", ["--method", "dazle", "--split", "cub50"])
    assert name == "CUB50"
    args = parser.parse_args(["--method", "dazle", "--lr", "0.5"])
    assert from_flags(find_method("dazle").recipe_type, args) == with_settings(
        find_method("dazle").recipe("*"), {"lr": 0.5}
    )
    with pytest.raises(UserError, match=r"unrecognized arguments: --beta 3; .* --method dazle --help lists"):
        parser.parse_args(["--beta", "3"])
    for argv in (["--method", "dazle-prepared"], ["--method", "vsmr-staged", "--split", "cub50"]):
        parser, name = flags.method_first(None, "CUB", argv)
        known = find_method(argv[1])
        assert from_flags(known.recipe_type, parser.parse_args(argv)) == known.recipe(name)  # that of the data set


def test_abbreviations_are_not_taken():
    parser, _ = flags.method_first(None, "CUB", [])
    flags.add_seeds(parser, 1)
    assert flags.seeds_of(parser.parse_args(["--seed", "3"])) == (3,)
    assert flags.seeds_of(parser.parse_args(["--seeds", "3"])) == (0, 1, 2)
    for wrong, said in (
        (["--bet", "1"], "unrecognized arguments: --bet"),
        (["--seeds", "0"], "'0' is not a whole number of at least 1"),
        (["--seeds", "2", "--seed", "1"], "not allowed with"),
    ):
        with pytest.raises(UserError, match=said):
            parser.parse_args(wrong)
