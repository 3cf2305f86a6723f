"""A layer's directions found by hand: found, chosen, proved, used."""
