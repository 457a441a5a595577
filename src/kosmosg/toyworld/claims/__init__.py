"""The paper's claims as experiments in the toy world."""
