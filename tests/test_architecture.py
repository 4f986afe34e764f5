"""The picture in docs/architecture.md shows every module and nothing that is not there."""

from __future__ import annotations

import re

from tests import ROOT

ROOMS = {"devtools", "validator", "compaction", "scanner", "shared"}
DRAWN_ELSEWHERE = ROOT / "devtools" / "zoo"


def test_the_picture_matches_the_code() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    picture = re.sub(r"#.*", "", text.partition("```text\n")[2].partition("```")[0])
    drawn = set(re.findall(r"[a-z_]{2,}", picture))
    files = [path for room in ROOMS for path in (ROOT / room).rglob("*.py") if DRAWN_ELSEWHERE not in path.parents]
    modules = {path.stem for path in files if not path.stem.startswith("__")}
    rooms = {path.parent.name for path in files}
    assert drawn == modules | rooms | {DRAWN_ELSEWHERE.name}
