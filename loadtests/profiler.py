"""A flame graph of a running process, by py-spy or by perf, whichever is there.

py-spy sees Python's functions; perf sees the interpreter, the libraries and the kernel, and of Python
only what the interpreter tells it. Both give collapsed stacks ("a;b;c 12"), drawn here as an SVG
after Brendan Gregg's flame graphs: width is time, the root is at the bottom.
"""

import html
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from loadtests.rig import RigError

WIDTH, ROW = 1600, 17
Stacks = Counter[tuple[str, ...]]


def record(pid: int, seconds: float, path: Path) -> str:
    """Write the flame graph of ``seconds`` of ``pid``; one sentence about how it was made."""
    spy = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    perf = shutil.which("perf")
    if spy is None and perf is None:
        raise RigError("neither py-spy (pip install py-spy) nor perf (apt install linux-perf)")
    stacks = by_spy(spy, pid, seconds) if spy else by_perf(perf or "", pid, seconds)
    path.write_text(svg(stacks))
    missing = ""
    if spy is None:
        missing = "; py-spy is missing, so Python's own functions are not told apart"
    elif perf is None:
        missing = "; perf is missing, so the kernel is not seen"
    hot = Counter[str]()
    for stack, count in stacks.items():
        hot[stack[-1]] += count
    total = sum(hot.values()) or 1
    own = "\n".join(f"{100 * count / total:5.1f}%  {name}" for name, count in hot.most_common(40))
    return f"{own}\n{path}: {total} samples by {'py-spy' if spy else 'perf'}{missing}"


def by_spy(spy: str, pid: int, seconds: float) -> Stacks:
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        command = [spy, "record", "--pid", str(pid), "--duration", str(max(1, round(seconds))),
                   "--rate", "500", "--format", "raw", "--output", str(raw), "--nonblocking"]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if not raw.exists():
            raise RigError(f"py-spy failed: {done.stderr.strip()[-300:]}")
        return collapsed(raw.read_text())


def by_perf(perf: str, pid: int, seconds: float) -> Stacks:
    with tempfile.TemporaryDirectory() as folder:
        data = str(Path(folder) / "data")
        command = [perf, "record", "-q", "-F", "997", "-g", "-p", str(pid), "-o", data, "--", "sleep",
                   str(seconds)]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RigError(f"perf failed: {done.stderr.strip()[-300:]}")
        script = subprocess.run([perf, "script", "-i", data, "-F", "comm,ip,sym"],
                                capture_output=True, text=True, check=False)  # fmt: skip
        return of_perf(script.stdout)


def collapsed(text: str) -> Stacks:
    stacks: Stacks = Counter()
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        if count.isdigit():
            stacks[tuple(stack.split(";"))] += int(count)
    return stacks


def of_perf(text: str) -> Stacks:
    """``perf script``: a line with the command, then a frame a line, innermost first."""
    stacks: Stacks = Counter()
    for block in text.split("\n\n"):
        lines = block.strip("\n").splitlines()
        if len(lines) > 1:
            frames = [line.split(None, 1)[1] for line in lines[1:] if len(line.split(None, 1)) == 2]
            stacks[lines[0].strip(), *reversed(frames)] += 1
    return stacks


def svg(stacks: Stacks) -> str:
    total = sum(stacks.values()) or 1
    depth = max((len(stack) for stack in stacks), default=1)
    height = (depth + 2) * ROW
    boxes = [(f'<rect x="0" y="{height - ROW}" width="{WIDTH}" height="{ROW - 1}" fill="#ddd"/>'
             f'<text x="3" y="{height - 5}">all: {total} samples</text>')]  # fmt: skip
    for start, width, level, name in layout(stacks):
        if width * WIDTH < total * 0.5:
            continue
        x, w = start * WIDTH / total, width * WIDTH / total
        y = height - (level + 2) * ROW
        label = html.escape(name[: int(w / 6.5)]) if w > 30 else ""
        title = html.escape(f"{name}: {100 * width / total:.2f} %")
        colour = f"hsl({20 + hash(name) % 35}, 85%, {60 + hash(name) % 15}%)"
        boxes.append(f'<g><title>{title}</title><rect x="{x:.1f}" y="{y}" width="{w:.1f}" '
                     f'height="{ROW - 1}" fill="{colour}"/>'
                     f'<text x="{x + 2:.1f}" y="{y + ROW - 5}">{label}</text></g>')  # fmt: skip
    return (f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" '
            f'font-family="monospace" font-size="11">{"".join(boxes)}</svg>')  # fmt: skip


def layout(stacks: Stacks) -> list[tuple[int, int, int, str]]:
    """(start, width, level, name) of every box; equal neighbours are one."""
    boxes: list[tuple[int, int, int, str]] = []
    open_at: list[tuple[int, str]] = []
    at = 0
    for stack, count in [*sorted(stacks.items()), ((), 0)]:
        shared = 0
        while (shared < len(open_at) and shared < len(stack)
               and open_at[shared][1] == stack[shared]):  # fmt: skip
            shared += 1
        while len(open_at) > shared:
            start, name = open_at.pop()
            boxes.append((start, at - start, len(open_at), name))
        open_at += [(at, name) for name in stack[shared:]]
        at += count
    return boxes
