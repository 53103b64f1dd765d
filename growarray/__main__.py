"""``python -m growarray`` is the command ``growarray``."""

from growarray.cli import main

if __name__ == "__main__":
    main()
