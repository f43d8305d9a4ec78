"""Every number in a table of the README and the documentation comes from a file of results.

A table with a decimal point or a percent sign in a number needs a comment above it. The comment
names its sources: files of this repository; `#` selects a part of a JSON file:

    <!-- source: benchmarks/results/choices.json#results/char-PTB -->

Every number of the table, including integers, must be in one of the sources, rounded as printed. If
a source is Markdown, each line must be in it. `published` means the published values of all rows.
The first column, the first line and `code` are names, not numbers. A paragraph with a decimal
point or a percent sign also needs such a comment, and is checked in the same way.
"""

import json
import pathlib
import re

import pytest

from experiments.lib.experiment import NAMES, Experiment, find

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MADE = {"reproduction.md"}
"""Pages that a program makes from the results; another test compares them."""
UNSOURCED = {
    ("deviations.md", "Initial weights: the authors' code has them in two ways"): "of formulas",
    ("peers.md", "Sources"): "versions of libraries",
    ("performance.md", "Tried, without gain"): "prototypes that were not kept",
    ("performance.md", "On accelerators: calculated, not measured"): "calculated",
    ("README.md", "Flax NNX"): "the rate of a picture",
    ("index.md", "zoneout_jax"): "the rate of a picture",
    ("cells.md", "Cells"): "settings",
    ("rerun.md", "Commands"): "published in a later version of the paper",
}
SETTINGS = (
    "Everywhere",
    "All language models",
    "Character-level Penn Treebank",
    "Word-level Penn Treebank",
    "Permuted sequential MNIST",
    "Learning to add",
    "How far gradients reach",
)
UNSOURCED |= {
    ("deviations.md", section): "settings, values of other papers" for section in SETTINGS
}
"""Sections whose numbers have no source file, and why."""
VERSIONS = re.compile(r"\d+\.\d+\.\d+|(Python|Apache-)[\d. to]*\d")
NUMBER = re.compile(r"(?<![\w.,\-/])[-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w.]*\d)")


def blocks(page):
    """Yields tables and paragraphs outside code: (section, sources or None, lines)."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    section, sources = "", None
    for block in re.split(r"\n\s*\n", text):
        lines = block.strip("\n").split("\n")
        if lines[0].startswith("#"):
            section = lines[0].lstrip("# ")
        elif mark := re.fullmatch(r"<!-- source: (.*) -->", block.strip(), re.DOTALL):
            sources = mark[1].split()
            continue
        elif not block.startswith("    "):
            yield section, sources, lines
        sources = None


def cells(lines):
    """Returns the text without code and, for a table, without its first line and column."""
    if lines[0].startswith("|"):
        lines = [line.strip("| ").partition("|")[2] for line in lines[2:]]
    text = re.sub(r"\]\(.*?\)", "]", "\n".join(lines))
    return re.sub(r"`.*?`|arXiv:[\d.]+", "", text)


def measured(lines):
    """Tells whether lines have a number with a decimal point or a percent sign."""
    text = VERSIONS.sub("", cells(lines))
    return re.search(r"(?<![\w.])\d+\.\d|\d ?%", text) is not None


def in_json(content):
    """Yields all numbers in JSON, including numbers in its texts."""
    if isinstance(content, bool) or content is None:
        return
    if isinstance(content, (int, float)):
        yield float(content)
    elif isinstance(content, str):
        yield from (value(found) for found in NUMBER.findall(content))
    else:
        for part in content.values() if isinstance(content, dict) else content:
            yield from in_json(part)


def known(source):
    """Returns the numbers of a source."""
    if source == "published":
        experiments = [find(name) for name in NAMES]
        tables = [e for e in experiments if isinstance(e, Experiment)]
        return [n for e in tables for row in e.rows.values() for n in e.published(row).values()]
    name, _, part = source.partition("#")
    text = (ROOT / name).read_text()
    content = [json.loads(t) for t in (text.splitlines() if name.endswith("l") else [text])]
    for key in filter(None, part.split("/")):
        content = [content[0][key]]
    return list(in_json(content))


def value(text):
    return float(text.replace(",", "").replace("−", "-"))


def is_in(text, percent, numbers):
    """Tells whether one of the numbers is printed like this."""
    mantissa, _, exponent = text.partition("e")
    half = 0.5 * 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2])) * 1.001
    scale = 100 if percent else 1
    return any(abs(scale * number - value(text)) <= half for number in numbers)


def missing(sources, lines):
    """Lists what a block contains and none of its sources does."""
    files = [source for source in sources if source.endswith(".md")]
    if files:
        there = {line for file in files for line in (ROOT / file).read_text().splitlines()}
        return [line for line in lines if line not in there]
    numbers = [number for source in sources for number in known(source)]
    text = cells(lines)
    return [
        found[0]
        for found in NUMBER.finditer(text)
        if not is_in(found[0], text[found.end() :].lstrip()[:1] == "%", numbers)
    ]


@pytest.mark.parametrize("page", [p for p in PAGES if p.name not in MADE], ids=lambda p: p.name)
def test_numbers_come_from_results(page):
    for section, sources, lines in blocks(page):
        if sources:
            assert not missing(sources, lines), (section, lines[0], missing(sources, lines))
        elif measured(lines):
            assert (page.name, section) in UNSOURCED, f"no source: {section}: {lines[0]}"


@pytest.mark.parametrize(
    ("text", "number", "same"),
    [
        ("1.50", 1.504, True),
        ("1.50", 1.506, False),
        ("1,567", 1567, True),
        ("0.19", -0.19, False),
        ("−0.2", -0.15, True),
        ("1.3e-7", 1.34e-7, True),
        ("1.3e-7", 1.36e-7, False),
        ("2", 2.4, True),
    ],
)
def test_as_printed(text, number, same):
    assert is_in(text, False, [number]) == same


def test_an_invented_number_is_found(tmp_path):
    (tmp_path / "a.md").write_text(
        "## S\n\n| | x |\n| --- | --- |\n| a 1.5 | 3.25 |\n\nText 1.5.\n"
    )
    ((_, _, table), _) = [b for b in blocks(tmp_path / "a.md") if b[2][0][0] != "#"]
    assert measured(table) and measured(["Text 1.5."]) and not measured(["Text 1."])
    assert not measured(["JAX 0.7.0 and Python 3.11 to 3.13"])
    assert missing(["benchmarks/results/notebooks.json"], table) == ["3.25"]
    assert is_in("12", True, [0.1234]) and not is_in("12", True, [0.13])
