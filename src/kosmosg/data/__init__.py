"""Data: records, how they become prompts, and how sources are mixed."""
