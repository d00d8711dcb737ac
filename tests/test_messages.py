"""All messages in one go (tests/messages.py provokes them): one voice, short, with the way out, nothing written."""

import re
from pathlib import Path

import pytest

from core.files.errors import UserError, run_cli
from tests.messages import CASES, Case, base, provoke


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("whole")
    base(place)
    return place


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_message_is_short_in_one_voice_and_says_the_way_out(tmp_path: Path, whole: Path, case: Case) -> None:
    place = tmp_path / "place"
    code, out, said = provoke(case, whole, place)
    assert code == 2 and not out, (code, out, said)
    assert said.startswith("error: ") and said.count("error: ") == 1, said
    for words in case.says:
        assert words in said
    assert len(said) < 900 and len(said.splitlines()) < 6, said
    assert not re.search(r"Traceback|0x[0-9a-f]{6}|usage:|object at|\bNone\b|\n\n|  $", said), said
    assert not said.endswith((":", ","))
    left = [p.name for p in place.rglob("*") if re.search(r"\.(tmp|lock|new)$|^new\.hdf5$", p.name)]
    assert not left


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (MemoryError(), "--batch-size"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "--batch-size"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling"), "GPU.*--batch-size"),
        (OSError(28, "No space left on device", "a/b"), "a/b: No space left on device. .*again"),
        (UserError("a"), "a"),
    ],
)
def test_memory_and_the_systems_refusals_are_a_sentence_wherever_they_come_from(
    capsys: pytest.CaptureFixture[str], error: Exception, says: str
) -> None:
    def fails() -> None:
        raise error

    assert run_cli(fails) == 2
    printed = capsys.readouterr().err
    assert re.fullmatch(f"error: .*{says}.*\n", printed), printed


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes"), OSError("no number")])
def test_a_fault_of_this_program_keeps_its_traceback(error: Exception) -> None:
    def fails() -> None:
        raise error

    with pytest.raises(type(error)):
        run_cli(fails)
