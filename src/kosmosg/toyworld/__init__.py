"""The world in which everything can be trained and proved on one machine."""
