"""The runtime: where the neurons sit in a model, the tables that steer them, and ``load_personality``."""
