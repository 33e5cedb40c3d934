"""The guides name what the code has: bits, columns, tables, states, pipelines; and their links lead somewhere."""

import re
from pathlib import Path

import pytest

from zsds_hpc.archive import database, paths, refimages
from zsds_hpc.core.maskbits import BITS
from zsds_hpc.core.states import State
from zsds_hpc.photometry import psfcat
from zsds_hpc.photometry.aperture import COLUMNS
from zsds_hpc.pipelines.registry import NAMES, get_pipeline
from zsds_hpc.production import forced
from zsds_hpc.production.cli import build_parser
from zsds_hpc.qa.metrics import QaParams, bit_texts
from zsds_hpc.subtraction import candcat, candidates, streak_table

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FORMATS = ROOT / "docs" / "formats.md"
OPERATOR = ROOT / "docs" / "operator.md"


def test_formats_list_every_bit_column_and_table():
    text = FORMATS.read_text()
    rows = [f"| {bit} | {1 << bit} | {name} | {meaning} |" for bit, (name, meaning) in BITS.items()]
    rows += [
        f"| {name} | {kind.replace('A', 'n x ')} | {unit} | {what} |" for name, (kind, unit, what) in COLUMNS.items()
    ]
    rows += [
        f"| {name} | {kind} | {unit} | {what} |"
        for table in (psfcat.COLUMNS, forced.COLUMNS, candcat.COLUMNS, streak_table.COLUMNS)
        for name, (kind, unit, what) in table.items()
    ]
    rows += [f"| {bit} | {what} |" for bit, what in bit_texts(QaParams()).items()]
    assert [row for row in rows if row not in text] == []
    assert [name for name in database.metadata.tables if f"| `{name}` |" not in text] == []
    assert [kind for kind in paths.CAL_KINDS if kind not in text] == []


def test_formats_list_products_cards_and_reasons_of_discovery():
    text = FORMATS.read_text()
    outputs = [name for step in ("reference", "realtime") for name in get_pipeline(step).outputs]
    assert [name for name in outputs if f"`{name}`" not in text] == []
    assert [card for card, _ in refimages.FACTS.values() if f"`{card}`" not in text] == []
    assert [word for word in (*candidates.REASONS, *streak_table.REASONS) if not re.search(rf"\b{word}\b", text)] == []


def test_operator_guide_has_every_state_and_pipeline():
    text = OPERATOR.read_text()
    assert [state for state in State if f"| {state} |" not in text] == []
    assert [name for name in NAMES if f"`{name}`" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_the_guides_exist(page):
    """The first words after `zsds` are those of the command line."""
    known = next(action for action in build_parser()._actions if action.dest == "command").choices
    named = re.findall(r"\bzsds (?!command)([a-z_]+)\b", page.read_text())
    assert {word for word in named if word not in known} == set()


def test_every_pipeline_has_its_driver_batch_script_and_settings():
    for name in NAMES:
        for place in (f"drivers/{name}.py", f"slurm/{name}.sbatch", f"config/pipelines/{name}.yml"):
            assert (ROOT / place).is_file(), place
