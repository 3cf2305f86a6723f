"""One function for each kind of result, from the result to an Altair chart."""
