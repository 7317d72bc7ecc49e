"""Processes of a test, as /proc tells of them (Linux)."""

from pathlib import Path


def workers_of(parent: int, module: str) -> list[int]:
    """Workers that a process started, which run the `main` of a module."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            words = (folder / "cmdline").read_bytes().decode()
            parent_of = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
        if module in words and parent_of == parent:
            found.append(int(folder.name))
    return found


def running(pid: int) -> bool:
    """Whether a process still runs; one that nobody waits for has ended too."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
