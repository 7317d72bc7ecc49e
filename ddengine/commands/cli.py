"""Typed flags from dataclasses (tyro), and one sentence for every mistake of the user."""

import contextlib
import contextvars
import errno
import io
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import tyro

from ddengine.api.outcomes import Outcome
from ddengine.commands.options import Waits
from ddengine.commands.process import is_first
from ddengine.recipe import PARTS
from ddengine.system import claims, dist, files, log, program, signals
from ddengine.system.errors import UserError

TYRO = (tyro.conf.AvoidSubcommands,)
ELSEWHERE = "free space or choose another folder with --out"
GONE = "it, or its folder, was moved or removed meanwhile; put it back and run the command again"
OTHERWISE = "look what lies there, or choose another folder with --out"
# what to do about an error of the file system
ADVICE = {
    errno.ENOSPC: ELSEWHERE,
    errno.EDQUOT: ELSEWHERE,
    errno.EFBIG: "files may not be that large here (ulimit -f); choose another folder with --out",
    errno.EACCES: "choose another folder with --out",
    errno.EPERM: "choose another folder with --out",
    errno.EROFS: "choose another folder with --out",
    errno.ENAMETOOLONG: "choose a shorter name with --out",
    errno.ENOENT: GONE,
    errno.ENOTDIR: GONE,
    errno.ESTALE: GONE,
    errno.EIO: "look after the disk, and ask verify which files are damaged",
    errno.EMFILE: "allow more open files (ulimit -n)",
    errno.ENFILE: "allow more open files (ulimit -n)",
}


def parse(cls: Any, args: list[str], default: Any, command: str) -> Any:
    """An instance of the dataclass `cls` from the flags of a command.

    Raises UserError with tyro's complaint in one sentence.
    """
    prog = f"{program.name()} {command}"
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            options = tyro.cli(
                cls, args=args, default=default, prog=prog, config=TYRO, use_underscores=True
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UserError(sentence(complaint.getvalue(), prog)) from None
    if isinstance(options, Waits) and options.wait:
        claims.wait_for_others()
    return options


def _of_types(wrong: str) -> str:
    """What tyro says of values of a wrong type in words that need no Python."""
    if m := re.match(r"(\S+): no type matching (.*?) could be instantiated from \[(.*?)\]", wrong):
        flag, kinds, values = m.groups()
        kinds = kinds.replace("[INT [INT ...]]", "INT INT ...").replace("}|", " or ")
        given = " ".join(re.findall(r"'(.*?)'", values))
        return f"{flag} takes {kinds.translate(str.maketrans('', '', '{}'))}, and got {given}"
    if m := re.fullmatch(r"(\S+): invalid literal for int\(\) with base 10: '(.*)'", wrong):
        return f"{m[1]} takes a whole number, and got {m[2]}"
    if m := re.fullmatch(r"(\S+): could not convert string to float: '(.*)'", wrong):
        return f"{m[1]} takes a number, and got {m[2]}"
    return wrong


def show_help(cls: Any, command: str, defaults: Any, said: str = "") -> NoReturn:
    """Show the flags of a command and these defaults, below a line that says what they are of."""
    if said:
        log.say(said)
    parse(cls, ["--help"], defaults, command)
    raise SystemExit(0)


def show(outcome: Outcome) -> None:
    """Print a table, and below it what to know beside it."""
    log.console.print(outcome.table())
    for line in outcome.notes:
        log.say(line)


def sentence(complaint: str, prog: str) -> str:
    """Tyro's boxed message as one sentence: what is wrong, the nearest flags, where the help is."""
    # colours on a terminal, boxes of ASCII characters where standard output is not UTF-8
    plain = re.sub(r"\x1b\[[0-9;]*m", "", complaint).translate(str.maketrans("─│", "-|"))
    lines = [line.strip().strip("|").strip() for line in plain.splitlines()[1:-1]]
    body = next((part for part in re.split(r"-{5,}", "\n".join(lines)) if part.strip()), "")
    wrong = " ".join(body.split()).rstrip(".").replace("Error parsing ", "")
    wrong = _of_types(wrong)
    # our own sentences already name the field
    wrong = re.sub(r"^(?:recipe\.)?([\w.]+): (?=\1\b)", "", wrong).removeprefix("recipe.")
    wrong = re.sub(r"\. ([A-Z])", lambda m: f"; {m[1].lower()}", wrong.split(". Got errors")[0])
    advice = _meant(wrong, lines) if "nrecognized" in wrong else ""
    return f"{wrong}{advice} (see {prog} --help)."


def _meant(wrong: str, lines: list[str]) -> str:
    """What may have been meant by flags that there are not: of a part, or of those in `lines`."""
    part = re.search(rf"--({'|'.join(PARTS)})(?![\w.])", wrong)
    if part is not None:
        return f"; take it from another recipe with --take {part[1]}=RECIPE"
    flags = [m for line in lines if (m := re.match(r"--\w[\w.-]*", line)) and "help" not in line]
    near = sorted({m.group() for m in flags} - set(wrong.split()))[:3]
    return f"; did you mean {' or '.join(near)}" if near else ""


def run(command: Callable[[], None]) -> int:
    """Run a command and return its exit code.

    2 and one sentence for a user's mistake, never a traceback for one.
    """
    code = 1  # of what is not caught
    try:
        code = _code_of(command)
    finally:
        code = dist.end(code)
    return code


def _code_of(command: Callable[[], None]) -> int:
    """Run a command and return its exit code; what went wrong is said."""
    try:
        with signals.heard():
            # what a command sets for itself, such as that it waits, ends with it
            contextvars.copy_context().run(command)
    except UserError as error:
        _complain(f"error: {error}")
        return 2
    except dist.Lost as lost:
        if not lost.silent:
            _complain(f"error: {lost}")
        return lost.code
    except BrokenPipeError:  # the reader of the output has gone, as in `run.py recipes | head`
        sys.stdout = None  # type: ignore[assignment]
        return 0
    except signals.Stopped as stop:
        if is_first():
            log.complain(str(stop))
        return stop.code
    except KeyboardInterrupt:
        _complain("interrupted; the same command continues from the last checkpoint.")
        return 130
    except OSError as error:
        if error.errno not in ADVICE and error.filename is None:
            raise  # which is of no file
        _complain(_of_files(error))
        return 2
    return 0


def _of_files(error: OSError) -> str:
    """What is wrong with a file, and what to do."""
    what = files.final_name(error.filename) if error.filename else "a file"
    complaint = f"{what} could not be read or written ({error.strerror or error})"
    return f"error: {complaint}; {ADVICE.get(error.errno or 0, OTHERWISE)}."


def _complain(sentence: str) -> None:
    """Say what went wrong; of several ranks the first does, and another what the first does not."""
    if is_first():
        dist.first_says(sentence)
        log.complain(sentence)
    elif dist.started_here() and not dist.first_has_said(sentence):
        log.complain(f"rank {dist.rank()}: {sentence}")


def needed_folder(out: Path | None, command: str) -> Path:
    """The folder that --out names. Raises UserError where it names none."""
    if out is None:
        raise UserError(f"{program.name()} {command} needs a folder to write; name it with --out.")
    return out
