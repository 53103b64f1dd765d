"""``growarray.compress`` is the function, whatever was imported before."""

import subprocess
import sys

import pytest

from tests.cli.test_extra import ENVIRONMENT

IMPORTS = {
    "the library alone": "import growarray",
    "the package first": "import growarray.compression.search, growarray",
    "the package afterwards": "import growarray; growarray.compress; import growarray.compression.report",
    "the networks first": "import growarray.networks, growarray",
    "every module": "import growarray, pkgutil, importlib, growarray.compression as found\n"
    "for each in pkgutil.walk_packages(found.__path__, 'growarray.compression.'): importlib.import_module(each.name)",
}
PROGRAM = """
import types
from growarray import compress
from growarray.compression import compress as own
from growarray.networks import compress as old
assert isinstance(growarray.compress, types.FunctionType)
assert growarray.compress is compress is own is old
assert isinstance(growarray.compression, types.ModuleType)
"""


@pytest.mark.parametrize("lines", IMPORTS.values(), ids=IMPORTS)
def test_compress_is_the_function_in_every_order_of_imports(lines):
    program = [sys.executable, "-c", f"{lines}\n{PROGRAM}"]
    done = subprocess.run(program, env=ENVIRONMENT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
