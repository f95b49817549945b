"""The short form of every suite of faults; the long one with `-m soak`."""

from pathlib import Path

import pytest

from tests.faults.case import Case, NotPossible
from tests.faults.suites import SUITES, Suite

SHORT = [
    pytest.param(case, id=f"{suite.key}-{case.name}")
    for suite in SUITES.values()
    for case in suite.cases(full=False)
]


@pytest.mark.parametrize("case", SHORT)
def test_fault(case: Case, tmp_path: Path) -> None:
    try:
        case.handle(tmp_path)
    except NotPossible as reason:
        pytest.skip(str(reason))


@pytest.mark.soak
@pytest.mark.parametrize("suite", SUITES.values(), ids=list(SUITES))
def test_every_fault(suite: Suite, tmp_path: Path) -> None:
    failed = []
    for number, case in enumerate(suite.cases(full=True)):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            case.handle(folder)
        except NotPossible:
            continue
        except Exception as error:
            failed.append(f"{case.name}: {error!r}")
    assert not failed, "\n".join(failed)
