"""Faults that come when nobody expects them, again and again."""
