"""The contract of a method: fields of a recipe, what is refused at import, and the registry."""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import pytest

import core.method as contract
from core.commands import flags
from core.commands.parser import Parser
from core.files.errors import UserError
from core.method import hp, method, methods, parse_value, with_settings


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Fields of every kind."""

    lr: float = hp(0.1, "learning rate", above=0)
    share: float = hp(0.5, "a share", within=(0, 1))
    momentum: float = hp(0.9, "momentum", at_least=0, below=1)
    epochs: int = hp(3, "epochs", at_least=0)
    on: bool = hp(False, "a switch")
    threshold: float | None = hp(None, "a threshold", within=(0, 1))
    hidden: bool = hp(True, "no flag", flag=False)


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(contract, "_REGISTRY", {m.name: m for m in methods().values()})


def build(recipe, space, shape, seed, epochs):
    """Never called."""


def other(recipe, space, shape, seed, epochs):
    """Never called."""


def test_what_a_user_types_becomes_a_value():
    typed = {"lr": "1e-3", "share": "1", "epochs": "0", "on": "ON", "threshold": "none"}
    values = {name: parse_value(Recipe, name, text) for name, text in typed.items()}
    assert values == {"lr": 1e-3, "share": 1.0, "epochs": 0, "on": True, "threshold": None}
    assert isinstance(values["share"], float) and isinstance(values["epochs"], int)
    assert parse_value(Recipe, "on", "0") is False and parse_value(Recipe, "threshold", "0.25") == 0.25


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("lr", "0", "--lr 0.0: learning rate must be above 0"),
        ("lr", "nan", "--lr nan"),
        ("lr", "inf", "--lr inf"),
        ("lr", "fast", "--lr fast: a number is needed"),
        ("share", "7", "--share 7.0: a share must be between 0 and 1"),
        ("share", "-0.1", "between 0 and 1"),
        ("momentum", "1", "at least 0 and below 1"),
        ("epochs", "-3", "--epochs -3: epochs must be at least 0"),
        ("epochs", "2.5", "--epochs 2.5: a whole number is needed"),
        ("on", "2", "--on 2: on or off is needed"),
        ("threshold", "x", "a number is needed (or none)"),
    ],
)
def test_values_outside_their_range_are_a_sentence_with_flag_value_and_range(name, text, said):
    with pytest.raises(UserError) as error:
        parse_value(Recipe, name, text)
    assert said in str(error.value)


def test_settings_are_checked_too():
    assert with_settings(Recipe(), {"share": 0.25}).share == 0.25
    with pytest.raises(UserError, match="between 0 and 1"):
        with_settings(Recipe(), {"share": 2.0})


@pytest.mark.usefixtures("registry")
def test_what_is_refused_at_import_names_the_file():
    method("fine", recipes={"*": Recipe(), "CUB": Recipe(lr=0.2)})(build)
    assert methods()["fine"].recipe("CUB").lr == 0.2 and methods()["fine"].recipe("any other").lr == 0.1
    method("fine", recipes={"*": Recipe()})(build)  # the same file imported anew
    for name, recipes, function, said in (
        ("fine", {"*": Recipe()}, other, "has a method of that name already"),
        ("dazle", {"*": Recipe()}, build, "has a method of that name already"),
        ("half", {"CUB": Recipe()}, build, 'lacks "*"'),
        ("half", {}, build, 'lacks "*"'),
        ("half", {"*": Recipe(), "CUP": Recipe()}, build, "'CUP', which is no registered data set"),
        ("half", {"*": Recipe(lr=-1.0)}, build, "--lr -1.0: learning rate must be above 0"),
        ("half", {"*": {"lr": 1}}, build, "must be of one dataclass"),
    ):
        with pytest.raises(UserError, match=r"test_method\.py") as error:
            method(name, recipes=recipes)(function)
        assert said in str(error.value)
    assert "half" not in methods()


@pytest.mark.usefixtures("registry")
def test_a_field_that_is_no_hp_is_refused():
    @dataclass(frozen=True, kw_only=True)
    class Plain:
        lr: float = 0.1
        width: int = field(default=3)

    with pytest.raises(UserError, match=r"test_method\.py.*'lr' of Plain must be made with hp"):
        method("half", recipes={"*": Plain()})(build)


def test_a_file_that_defines_a_model_and_registers_no_method_is_refused(monkeypatch):
    known = {m.name: m for m in methods().values() if m.file.name != "ESZSL.py"}
    monkeypatch.setattr(contract, "_REGISTRY", known)
    with pytest.raises(UserError, match=r"ESZSL\.py defines a model but registers no method"):
        methods()


def test_every_field_of_every_method_has_help_and_its_defaults_are_in_range():
    for m in methods().values():
        for recipe in m.recipes.values():
            with_settings(recipe, {f.name: getattr(recipe, f.name) for f in fields(recipe)})
            assert all(f.metadata["help"] for f in fields(recipe))


def test_flags_of_another_method_are_refused_by_name():
    parser = Parser("x")
    flags.add_recipes(parser)
    args = parser.parse_args(["--beta", "3", "--lr", "0.5"])
    recipe, epochs = flags.recipe_from(args, methods()["vsmr"], "CUB")
    assert (recipe.beta, recipe.lr, epochs) == (3.0, 0.5, recipe.epochs)
    with pytest.raises(UserError, match="--beta is no setting of dazle; its settings are --lr"):
        flags.recipe_from(args, methods()["dazle"], "CUB")


def test_abbreviations_are_not_taken():
    parser = Parser("x")
    flags.add_seeds(parser, 1)
    flags.add_recipes(parser)
    assert flags.seeds_of(parser.parse_args(["--seed", "3"])) == (3,)
    assert flags.seeds_of(parser.parse_args(["--seeds", "3"])) == (0, 1, 2)
    for wrong, said in (
        (["--bet", "1"], "unrecognized arguments: --bet"),
        (["--seeds", "0"], "'0' is not a whole number of at least 1"),
        (["--seed", "18446744073709551616"], "'18446744073709551616' is more than 2147483647"),
        (["--seed", "-1"], "at least 0"),
        (["--seeds", "2", "--seed", "1"], "not allowed with"),
    ):
        with pytest.raises(UserError, match=said):
            parser.parse_args(wrong)
