"""Part 2: a layer's directions found automatically, by sparse autoencoders. One file a question."""
