"""Readers of other people's formats: each yields our records, and skips what is bad by name."""
