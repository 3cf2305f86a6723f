"""Autoencoders in other projects' files. One file a format; `registry.py` knows them all."""
