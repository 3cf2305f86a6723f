"""A corpus worked through once: windows of tokens, shards of work, what is kept of each unit, the text around it."""
