"""Run every command and code block of the given Markdown pages, so that no example can rot.

Blocks of a page run in order in one scratch directory: ```python blocks in one namespace, ```bash
blocks with `bash -euo pipefail`. ```text and the like are only read. A block after a line
`<!-- not run: REASON -->` is skipped, and the reason printed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^>]+) -->\n)?^```(?P<lang>\w+)\n(?P<code>.*?)^```", re.M | re.S
)


def run_page(page: Path) -> int:
    """Run one page's blocks in a scratch directory; returns how many were run."""
    text = page.read_text()
    script = ["import subprocess\nif __name__ == '__main__':\n"]
    for match in BLOCK.finditer(text):
        where = f"{page}:{text[: match.start()].count(chr(10)) + 1}"
        if match["lang"] not in ("python", "bash"):
            continue
        if match["reason"]:
            print(f"  {where}: not run: {match['reason']}")
            continue
        code = match["code"]
        if match["lang"] == "bash":
            code = f"subprocess.run(['bash', '-euo', 'pipefail', '-c', {code!r}], check=True, timeout=300)\n"
        script.append(f"    print({where!r}, flush=True)\n{indent(code)}")
    if len(script) > 1:
        run("".join(script), str(page))
    return len(script) - 1


def indent(code: str) -> str:
    """Put code under the main guard, so that blocks may start worker processes."""
    return "".join(f"    {line}" if line.strip() else line for line in code.splitlines(keepends=True))


def run(script: str, page: str) -> None:
    """Run one page's script; on failure show its output and stop."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with tempfile.TemporaryDirectory(prefix="splitedge-docs-") as scratch:
        file = Path(scratch) / "page.py"
        file.write_text(script)
        done = subprocess.run(
            [sys.executable, "-W", "error::DeprecationWarning", str(file)],
            cwd=scratch,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
    if done.returncode:
        sys.exit(f"{page} failed (exit {done.returncode}):\n{done.stdout}\n{done.stderr}")


def main() -> None:
    """Run all pages named on the command line."""
    for name in sys.argv[1:]:
        start = time.perf_counter()
        ran = run_page(Path(name))
        print(f"{name}: {ran} blocks in {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
