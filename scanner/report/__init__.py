"""Verdicts as people and programs see them."""
