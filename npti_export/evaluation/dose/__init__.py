"""The dose: how strongly each pole is steered, found by measurement under a budget."""
