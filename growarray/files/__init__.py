"""The bytes of foreign files: where they lie, how much they may ask for, and what their numbers mean."""
