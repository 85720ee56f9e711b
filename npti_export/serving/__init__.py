"""Personalities in production: the vLLM plugin, and what of it is the same for any server."""
