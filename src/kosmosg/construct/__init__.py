"""Construction of training data: picture, caption, entities, masks, records (paper section 3.1)."""
