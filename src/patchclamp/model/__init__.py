"""Getting a model and knowing its anatomy: loading, embedded models, families, tokens, the proof at load."""
