"""Part 4: the model in its own words. One file a lens."""
