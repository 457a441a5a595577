"""Serving pictures over HTTP: one device thread behind an API that others already speak."""
