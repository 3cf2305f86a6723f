"""The engine's own two questions as methods: what is the value here, and what does the model answer."""
