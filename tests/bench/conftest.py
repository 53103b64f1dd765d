"""``bench`` is beside the package, not in it: its folder is put on the path."""

import sys

from tests.bench.checkout import ROOT

sys.path.append(str(ROOT))  # last: the package that is tested stays the installed one
