"""What the documentation names is there: tests, files, pages, sections, the policy's keys."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from client.policy import Policy
from common.secagg.reasons import Reason

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.md")])
TOPS = "benchmarks|client|common|docs|examples|server|simulation|tests"


def _tests() -> set[str]:
    """Return the names of all tests, and of all files with tests."""
    names = set()
    for path in ROOT.glob("tests/**/*.py"):
        names.add(path.stem)
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return names


def _anchors(page: Path) -> set[str]:
    """Return a page's headings as links name them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_and_file_that_a_page_names_exists(page: Path) -> None:
    """A promise that cites a test cites one that runs."""
    text = page.read_text(encoding="utf-8")
    assert set(re.findall(r"\btest_\w+", text)) <= _tests()
    files = re.findall(rf"`((?:{TOPS})/[\w./-]+)", text)
    assert [file for file in files if not (ROOT / file).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_within_the_project_leads_somewhere(page: Path) -> None:
    """A page that moved, or a heading that was reworded, takes its links along."""
    dead = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if "://" not in link and (not target.exists() or (anchor and anchor not in _anchors(target))):
            dead.append(link)
    assert dead == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_line_of_a_table_belongs_to_one(page: Path) -> None:
    """A blank line within a table ends it: what follows would be shown as text with bars."""
    blocks = re.split(r"\n\s*\n", page.read_text(encoding="utf-8"))
    tables = [block.strip() for block in blocks if block.lstrip().startswith("| ")]
    assert [table[:80] for table in tables if not re.search(r"^\s*\|[-|: ]+\|$", table, re.MULTILINE)] == []


def test_every_reason_for_a_refusal_stands_in_the_table() -> None:
    """Whoever meets one in a log finds what it is against; and the table has none that is never given."""
    page = (ROOT / "docs/security.md").read_text(encoding="utf-8")
    section = page.partition("## What is refused\n")[2].partition("\n## ")[0]
    told = {
        name
        for row in re.findall(r"\|([^|]*)\|$", section, re.MULTILINE)
        for name in re.findall(r"`(.*?)`", row)
    }
    assert told == {str(reason) for reason in Reason}


def test_a_hospital_finds_every_key_of_its_policy_explained() -> None:
    """Nobody meets a bound in policy.toml that the hospital's page does not have."""
    keys = {field.alias or name for name, field in Policy.model_fields.items()}
    told = re.findall(
        r"^\| `([a-z-]+)` \|", (ROOT / "docs/hospital.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert keys <= set(told)
