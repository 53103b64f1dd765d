"""``bench`` is beside the package, not in it: its folder is put on the path."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))  # last: the package that is tested stays the installed one
