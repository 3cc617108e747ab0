"""Tables of costs: their rows, and their text."""
