"""CI tests the installed package; a checkout on the path would hide what the wheel lacks."""

import os
import sysconfig
from importlib.metadata import version
from pathlib import Path

import pytest

import growarray


@pytest.mark.skipif(os.environ.get("GROWARRAY_CI") != "1", reason="only in CI, where the wheel is installed")
def test_growarray_comes_from_site_packages():
    assert Path(growarray.__file__).is_relative_to(Path(sysconfig.get_path("purelib")))
    assert version("growarray") == growarray.__version__
