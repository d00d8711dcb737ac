"""What a user sees: missing data, flags that do not fit, a feature file of another split."""

import pytest

from core.commands.train import check_same_split, drive
from core.files.errors import UserError
from tests.helpers import TOY, toy_mats


class Recorded:
    def __init__(self, sha256):
        self.provenance = {"split_sha256": sha256}


@pytest.mark.parametrize(("name", "source"), [("AWA2", "AWA2"), ("CUB", "CUB"), ("SUN", "SUN")])
def test_missing_features_name_the_command(tmp_path, monkeypatch, name, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=f"extract_feature_map_ResNet_101_{source}.py"):
        drive(name, None, [])


def test_features_of_another_split_are_refused(tmp_path):
    toy_mats(tmp_path / "xlsa17" / "data" / "TOY")
    with pytest.raises(UserError, match="another split file"):
        check_same_split(Recorded("0" * 64), tmp_path / "f.hdf5", tmp_path, TOY)
    check_same_split(Recorded(None), tmp_path / "f.hdf5", tmp_path, TOY)  # DAZLE's files record none
    check_same_split(Recorded("0" * 64), tmp_path / "f.hdf5", tmp_path / "elsewhere", TOY)


def test_help_explains_every_flag_with_its_default(capsys):
    with pytest.raises(SystemExit):
        drive("CUB", "CUB", ["--help"])
    text = capsys.readouterr().out
    for flag in ("--method", "--select", "--split", "--lambda-cal", "--predictor-lr", "--neighbours"):
        assert flag in text
    assert "dazle: 0.0001" in text
