"""Personalities in production: the vLLM plugin, an OpenAI-compatible server on transformers, and what both share."""
