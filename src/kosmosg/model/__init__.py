"""The model: paper section 2."""
