"""Judges: who rates answers, by which rubric, at what price, and how far they agree."""
