"""Every rule of the command trains the digits well: one that is numerically broken does not."""

from __future__ import annotations

import pytest

from growarray.cli.grow.options import options_from
from growarray.cli.grow.run import Run


@pytest.mark.parametrize("rule", ["tiny", "gradmax", "fisher"])
def test_every_rule_reaches_96_percent_of_the_test_digits(rule):
    run = Run(options_from({"rule": rule, "epochs": 30, "seed": 1, "max_parameters": 5000}))
    run.train()
    assert run.finish()["test_accuracy"] >= 0.96
