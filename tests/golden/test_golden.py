"""Every golden case, by kind, against the numbers of the originals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.golden import check_conv, check_factorized, check_graph, check_growth, check_statistics, check_torch
from tests.golden.case import Case, all_cases

CHECKS: dict[str, Callable[[Case], None]] = {
    **check_torch.CHECKS,
    **check_statistics.CHECKS,
    **check_growth.CHECKS,
    **check_conv.CHECKS,
    **check_graph.CHECKS,
    **check_factorized.CHECKS,
}


@pytest.mark.filterwarnings("ignore:.*is singular or indefinite")  # the original warns too, or returns noise
@pytest.mark.parametrize("entry", list(all_cases()), ids=lambda entry: f"{entry['kind']}-{entry['name']}")
def test_golden(entry: dict[str, Any]) -> None:
    assert entry["kind"] in CHECKS, f"no check for kind {entry['kind']!r}"
    case = Case(entry)
    CHECKS[entry["kind"]](case)
    case.finish()
