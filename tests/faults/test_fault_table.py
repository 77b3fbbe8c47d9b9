"""The table of faults and the tests are about the same things."""

import ast
import re
from pathlib import Path

HERE = Path(__file__).parent


def written() -> set[str]:
    """Return the names of all tests of faults."""
    found = set()
    for path in HERE.glob("test_fault_*.py"):
        if path.name == Path(__file__).name:
            continue
        tree = ast.parse(path.read_text())
        functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
        found |= {node.name for node in functions if node.name.startswith("test_")}
    return found


def lines() -> list[list[str]]:
    """Return the lines of the table, each in its cells."""
    rows = re.findall(r"^\| (.*) \|$", (HERE / "README.md").read_text(), re.MULTILINE)
    cells = [row.split(" | ") for row in rows]
    return [row for row in cells if row[0] not in ("what is done", "---")]


def test_each_line_of_the_table_names_a_test() -> None:
    assert {row[-1].strip("`") for row in lines()} <= written()


def test_each_test_has_a_line() -> None:
    assert written() <= {row[-1].strip("`") for row in lines()}


def test_each_line_says_what_must_be_seen_and_where() -> None:
    odd = [row for row in lines() if len(row) != 4 or not re.fullmatch(r"[SUTG]+|-", row[2])]
    assert not odd
