"""One test for hundreds of cases: a test a case would cost more time and lines of output than what
it checks.
"""

import inspect
import traceback
from collections.abc import Callable, Iterable
from typing import Any

import pytest


def for_each(
    names: str, cases: Iterable[Any]
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """In place of pytest.mark.parametrize: the test runs once, checks all `cases`, and names every
    one that failed, with line and reason.

    `names` are the arguments that a case fills, separated by commas; the others are fixtures, which
    all cases share.
    """
    wanted, cases = [name.strip() for name in names.split(",")], list(cases)
    assert cases, f"no cases of {names}"

    def decorate(check: Callable[..., None]) -> Callable[..., None]:
        def test(**fixtures: Any) -> None:
            failed = []
            for case in cases:
                values = case if len(wanted) > 1 else (case,)
                try:
                    check(**dict(zip(wanted, values, strict=True)), **fixtures)
                except (Exception, pytest.fail.Exception) as error:
                    lines = [
                        frame.lineno
                        for frame in traceback.extract_tb(error.__traceback__)
                        if frame.name == check.__name__
                    ]
                    reason = str(error).strip().splitlines() or ["no reason given"]
                    failed.append(f"{case}: line {lines[-1]}: {type(error).__name__}: {reason[0]}")
            assert not failed, f"{len(failed)} of {len(cases)} failed:\n" + "\n".join(failed)

        signature = inspect.signature(check)
        fixtures = [
            parameter for name, parameter in signature.parameters.items() if name not in wanted
        ]
        test.__signature__ = signature.replace(parameters=fixtures)  # type: ignore[attr-defined]
        test.__name__, test.__doc__, test.__module__ = (
            check.__name__,
            check.__doc__,
            check.__module__,
        )
        return test

    return decorate
