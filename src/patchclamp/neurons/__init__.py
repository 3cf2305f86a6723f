"""Part 1: one neuron. One file a question."""
