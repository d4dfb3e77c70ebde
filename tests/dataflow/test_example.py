"""The example of docs/method/code/reductions.md runs."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "method" / "code" / "reductions.md"


def test_the_page_tells_the_truth():
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert "assert" in code  # the example states its own result, which running it checks
    exec(compile(code, str(PAGE), "exec"), {"__name__": "__main__"})
