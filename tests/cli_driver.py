"""Runs commands of ``mm`` in the test's own process.

Put here: one call for a command and its exit code. Keep out: assertions on what it prints.
"""

from click.testing import CliRunner, Result

from mm_assets.cli import main


def mm(*arguments: str, code: int = 0) -> Result:
    """Run a command and expect its exit code."""
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == code, f"exit code {result.exit_code}\n{result.output}"
    return result
