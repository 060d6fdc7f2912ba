"""The console blocks of the documentation, each with the mark that says how it is run.

A mark is an HTML comment right before the block:
`<!-- lab -->` in a lab that the blocks of a page share, `<!-- here -->` on any machine, each with `, needs COMMAND` and
`, exit N` or `, exit N or M` where that is so; `<!-- run elsewhere: FILE -->` names the test that runs it;
`<!-- not run: REASON -->`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_BLOCK = re.compile(r"(?:^<!-- (?P<mark>[^\n]*) -->\n)?^```console\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"(?P<where>lab|here)(?:, needs (?P<needs>\w+))?(?:, exit (?P<codes>\d+(?: or \d+)*))?")


@dataclass(frozen=True)
class Command:
    """A line after `$ `, with the output that the page shows; `...` in it stands for anything."""

    line: str
    shown: tuple[str, ...]


@dataclass(frozen=True)
class Block:
    """`codes`: with what the last command may end."""

    page: str
    line: int
    mark: str
    commands: tuple[Command, ...]
    where: str = ""
    needs: str = ""
    codes: tuple[int, ...] = (0,)

    @property
    def elsewhere(self) -> str:
        """The file of the test that runs it."""
        return self.mark.removeprefix("run elsewhere: ") if self.mark.startswith("run elsewhere: ") else ""

    @property
    def not_run(self) -> str:
        """Why nothing runs it."""
        return self.mark.removeprefix("not run: ") if self.mark.startswith("not run: ") else ""

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> Iterator[Block]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in _BLOCK.finditer(text):
            mark = found["mark"] or ""
            parsed = _MARK.fullmatch(mark)
            yield Block(
                page=str(page.relative_to(ROOT)),
                line=text.count("\n", 0, found.start("text")),
                mark=mark,
                commands=tuple(_commands(found["text"])),
                where=parsed["where"] if parsed else "",
                needs=(parsed["needs"] or "") if parsed else "",
                codes=tuple(map(int, (parsed["codes"] or "0").split(" or "))) if parsed else (0,),
            )


def _commands(text: str) -> Iterator[Command]:
    line, shown = "", list[str]()
    for each in text.splitlines():
        if each.startswith("$ "):
            if line:
                yield Command(line, tuple(shown))
            line, shown = each.removeprefix("$ "), []
        else:
            shown.append(each)
    if line:
        yield Command(line, tuple(shown))


def fits(output: str, shown: tuple[str, ...]) -> bool:
    """Whether the output is as shown: `...` stands for any text, also none, also over several lines."""
    if not shown:
        return True
    parts = [part.strip() for part in "\n".join(shown).split("...")]
    pattern = ".*".join(r"\s+".join(map(re.escape, part.split())) for part in parts)
    return re.fullmatch(rf"\s*{pattern}\s*", output, re.DOTALL) is not None
