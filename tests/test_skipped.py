"""The line that says what was skipped, in a run of its own."""

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]


def test_skipped_tests_are_counted_by_reason(pytester: pytest.Pytester) -> None:
    source = Path(__file__).with_name("conftest.py").read_text()
    hook = source[source.index("def pytest_terminal_summary") : source.index("@pytest.fixture")]
    pytester.makeconftest(f"from collections import Counter\nimport pytest\n{hook}")
    pytester.makepyfile(
        """
        import pytest

        @pytest.fixture
        def away():
            pytest.skip("no data")

        @pytest.mark.parametrize("n", range(3))
        def test_a(away, n): ...

        @pytest.mark.skipif(True, reason="no GPU")
        def test_b(): ...

        def test_c(): ...
        """
    )
    lines = pytester.runpytest_inprocess().outlines
    assert "4 skipped: no data (3), no GPU (1)" in lines
    assert "1 passed, 4 skipped" in lines[-1]  # pytest's own line stays the last
    assert "0 skipped" in pytester.runpytest_inprocess("-k", "test_c").outlines
