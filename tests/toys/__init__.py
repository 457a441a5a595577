"""Real classes at toy size, shared by tests."""
