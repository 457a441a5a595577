"""Training: one loop, and a stage for each part of the paper's recipe."""
