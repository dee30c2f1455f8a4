"""MkDocs hook: the site's pages that are not in docs/, and links that hold both there and in the repository.

README.md is cut into pages at its second-level headings, other README files become a page each, and the command line's
reference is what ``--help`` prints. Nothing is written twice.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

from fl_privacy.cli import app

REPOSITORY = Path(__file__).parents[1]
README = REPOSITORY / "README.md"
SECTIONS = {  # heading in README.md -> page; what stands before the first heading goes with "Start"
    "Start": "index.md",
    "Your own text": "tutorial.md",
    "The owner's desk": "desk.md",
    "What is protected, and what is not": "protection.md",
    "Cost of the secure sum": "cost.md",
    "The code": "code.md",
}
WHOLE = {"README.zh-CN.md": "zh.md", "benchmarks/README.md": "benchmarks.md", "domains/README.md": "demo.md"}
FENCED = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^## (.+)\n", re.MULTILINE)
LINK = re.compile(r"\[([^\]]*)\]\(([^)#:\s]+)(#[^)\s]*)?\)")
HELP_WIDTH = 100


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside docs/, or in no file at all."""
    pages = dict(_readme_pages(README.read_text(encoding="utf-8")))
    pages |= {page: (REPOSITORY / path).read_text(encoding="utf-8") for path, page in WHOLE.items()}
    pages["cli.md"] = command_line(app)
    for page, content in pages.items():
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point the page's links to pages; a link to a file that the site has not becomes its text."""
    origins = {page: REPOSITORY / path for path, page in WHOLE.items()} | dict.fromkeys(SECTIONS.values(), README)
    origin = origins.get(page.file.src_uri, REPOSITORY / "docs" / page.file.src_uri)
    parts = FENCED.split(markdown)
    parts[::2] = [LINK.sub(lambda found: _link(found, origin), part) for part in parts[::2]]
    return "".join(parts)


def command_line(root: click.Group) -> str:
    """Every command, as its ``--help`` prints it, under a heading of its own."""
    told = "# Command line\n\nAs `fl-privacy COMMAND --help` prints it.\n"
    return told + "".join(f"\n## {context.command_path}\n\n```text\n{context.get_help()}\n```\n" for context in contexts(root))


def contexts(command: click.Command, name: str = "fl-privacy", parent: click.Context | None = None) -> Iterator[click.Context]:
    """A context of the command and of each command below it."""
    context = click.Context(command, parent, name, terminal_width=HELP_WIDTH, **command.context_settings)
    yield context
    if isinstance(command, click.Group):
        for inner in sorted(command.commands):
            yield from contexts(command.commands[inner], inner, context)


def _readme_pages(text: str) -> Iterator[tuple[str, str]]:
    before, *rest = HEADING.split(text)
    headings, bodies = rest[::2], rest[1::2]
    if headings != list(SECTIONS):
        raise PluginError(f"README.md has the headings {headings}; give each a page in {Path(__file__).name}")
    for heading, body in zip(headings, bodies, strict=True):
        start = f"{before}\n## {heading}\n" if heading == "Start" else f"# {heading}\n"
        yield SECTIONS[heading], start + body


def _link(found: re.Match[str], origin: Path) -> str:
    label, target, anchor = found[1], found[2], found[3] or ""
    path = (origin.parent / target).resolve()
    if not path.exists():
        return found[0]  # MkDocs says so
    place = path.relative_to(REPOSITORY).as_posix()
    if path == README:
        return f"[{label}]({_section(anchor)}{anchor})"
    if place in WHOLE:
        return f"[{label}]({WHOLE[place]}{anchor})"
    if place.startswith("docs/") and path.is_file():
        return f"[{label}]({place.removeprefix('docs/')}{anchor})"
    return label


def _section(anchor: str) -> str:
    """The page with this heading of README.md."""
    slugs = {"#" + re.sub(r"[^\w\s-]", "", heading).lower().replace(" ", "-"): page for heading, page in SECTIONS.items()}
    return slugs.get(anchor, "index.md")
