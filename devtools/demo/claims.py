"""What a program says, and whether it was so: each claim is printed with a mark, and the failed ones are counted."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text


class Claims:
    """What was said, and whether it was so.

    Attributes:
        failed: How many claims did not hold.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self.failed = 0

    def check(self, claim: str, held: bool) -> None:
        """Prints a claim with a mark that says whether it held."""
        self.failed += not held
        mark = Text("  ✓ ", "green") if held else Text("  ✗ ", "bold red")
        self._console.print(mark + Text(claim), soft_wrap=True)
