"""Part 3: which parts of the model do one task. One file a question."""
