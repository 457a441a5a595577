"""Evaluation: pictures drawn from a benchmark, features of them, and numbers from those."""
