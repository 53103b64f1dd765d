"""Side by side with the peers, in one process: ``python -m bench``. ``RESULTS.md`` says what was measured."""
