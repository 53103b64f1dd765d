"""``growarray grow``: train a network that grows, and keep it."""
