"""The mutation check: its patches apply to today's code, and a bug that survives is told."""

import ast
from pathlib import Path

import mutations
import pytest
from mutations import CODE, ROOT, BrokenCheckError, Edit, Mutation, check, main, patched, read_mutations

ALL = read_mutations()
ADD = "def add(a, b):\n    return a + b\n"
TEST = "from mm_assets import add\n\ndef test_sums():\n    assert add(2, 2) == 4\n"


def _bug(new: str, old: str = "a + b", test: str = "tests/test_add.py::test_sums", name: str = "bug") -> Mutation:
    return Mutation(name, "sums", (test,), (Edit("mm_assets/__init__.py", old, new),))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Lay out a tree as small as one can be."""
    for name in CODE:
        (tmp_path / name).write_text("", encoding="utf-8") if "." in name else (tmp_path / name).mkdir()
    for package in ("jobs", "sensors"):
        (tmp_path / package / "__init__.py").write_text("", encoding="utf-8")
    (tmp_path / "mm_assets" / "__init__.py").write_text(ADD, encoding="utf-8")
    (tmp_path / "tests" / "test_add.py").write_text(TEST, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("mutation", ALL.values(), ids=ALL)
def test_a_bug_can_be_planted(mutation: Mutation) -> None:
    """Each text to replace stands once in its file, what comes of it is Python, and the tests are there."""
    assert mutation.edits
    for file, text in patched(mutation, ROOT).items():
        compile(text, str(file), "exec")
        assert text != file.read_text(encoding="utf-8")
    assert mutation.tests
    for test in mutation.tests:
        file_name, _, name = test.partition("::")
        parsed = ast.parse((ROOT / file_name).read_text(encoding="utf-8"))
        names = {node.name for node in parsed.body if isinstance(node, ast.FunctionDef)}
        assert name.partition("[")[0] in names


@pytest.mark.parametrize(("old", "n"), [("a - b", 0), ("a", 3)])
def test_a_patch_that_does_not_fit_is_refused(tree: Path, old: str, n: int) -> None:
    """A text that is gone, or stands there twice, would plant nothing or something else."""
    with pytest.raises(BrokenCheckError, match=f"stands {n} times in mm_assets/__init__.py"):
        check([_bug("a * b", old)], tree)


def test_survivors_are_told(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A bug that the tests find is caught, one that they do not find survives; the tree itself stays as it is."""
    assert check([_bug("a - b", name="found"), _bug("a * b", name="missed")], tree) == ["missed"]

    rows = {line.split()[0]: line.split()[1] for line in capsys.readouterr().out.splitlines()}
    assert (rows["found"], rows["missed"]) == ("caught", "SURVIVED")
    assert (tree / "mm_assets" / "__init__.py").read_text(encoding="utf-8") == ADD


def test_what_cannot_be_tested_is_no_catch(tree: Path) -> None:
    """A patch after which nothing can be imported says nothing about the tests."""
    with pytest.raises(BrokenCheckError, match="neither pass nor fail"):
        check([_bug("a +")], tree)


def test_tests_that_fail_by_themselves_catch_nothing(tree: Path) -> None:
    """They must pass without a bug before their failure means one."""
    (tree / "tests" / "test_add.py").write_text(TEST.replace("4", "5"), encoding="utf-8")
    with pytest.raises(BrokenCheckError, match="without any bug the tests do not pass"):
        check([_bug("a - b")], tree)


@pytest.mark.parametrize(("survived", "code"), [([], 0), (["no-wrap"], 1), (None, 2)])
def test_exit_codes_tell_survivors_from_a_broken_check(
    monkeypatch: pytest.MonkeyPatch, survived: list[str] | None, code: int
) -> None:
    """1 for a bug that survived, 2 where the check could not be made."""

    def answer(chosen: list[Mutation]) -> list[str]:
        assert [mutation.name for mutation in chosen] == ["no-wrap"]
        if survived is None:
            msg = "broken"
            raise BrokenCheckError(msg)
        return survived

    monkeypatch.setattr(mutations, "check", answer)
    assert main(["no-wrap"]) == code


def test_the_list_tells_each_bug(capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each, and nothing is run; an unknown name is an error."""
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(ALL)
    with pytest.raises(SystemExit, match="2"):
        main(["no-such-bug"])
