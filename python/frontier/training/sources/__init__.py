"""Readers of operator measurements: one module per publisher, all yielding `Measurements`."""
