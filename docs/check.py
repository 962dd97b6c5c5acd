"""Run every command and code block of the given Markdown pages, so that no example can rot.

```python blocks of a page run top to bottom in one namespace; ```bash blocks run with
`bash -euo pipefail`, in order, in the page's scratch directory. ```text and the like are only read.
A block after a line `<!-- not run: REASON -->` is skipped, and the reason printed.
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
    ran = 0
    script: list[str] = []
    with tempfile.TemporaryDirectory(prefix="splitedge-docs-") as scratch:
        env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        for match in BLOCK.finditer(text):
            lang, code = match["lang"], match["code"]
            line = text[: match.start()].count("\n") + 1
            if lang not in ("python", "bash"):
                continue
            if match["reason"]:
                print(f"  {page}:{line}: not run: {match['reason']}")
                continue
            if lang == "python":
                # one namespace per page: what earlier blocks defined stays
                script.append(f"# {page}:{line}\n{code}")
                continue
            run(["bash", "-euo", "pipefail", "-c", code], scratch, env, f"{page}:{line}")
            ran += 1
        if script:
            path = Path(scratch) / "page.py"
            path.write_text("if __name__ == '__main__':\n" + indent("\n".join(script)))
            run([sys.executable, "-W", "error::DeprecationWarning", str(path)], scratch, env, str(page))
            ran += len(script)
    return ran


def indent(code: str) -> str:
    """Put code under the main guard, so that blocks may start worker processes."""
    return "".join(f"    {line}" if line.strip() else line for line in code.splitlines(keepends=True))


def run(command: list[str], cwd: str, env: dict[str, str], where: str) -> None:
    """Run one block; on failure show its output and stop."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode:
        sys.exit(f"{where} failed (exit {done.returncode}):\n{done.stdout}\n{done.stderr}")


def main() -> None:
    """Run all pages named on the command line."""
    for name in sys.argv[1:]:
        start = time.perf_counter()
        ran = run_page(Path(name))
        print(f"{name}: {ran} blocks in {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
