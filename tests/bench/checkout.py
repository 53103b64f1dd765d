"""The checkout, in which ``bench`` lies beside the package."""

import os
from pathlib import Path

from tests.cli.test_extra import ENVIRONMENT as INSTALLED

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**INSTALLED, "PYTHONPATH": os.pathsep.join([INSTALLED["PYTHONPATH"], str(ROOT)])}
"""For a process that runs ``bench``: the package that is tested goes first."""
