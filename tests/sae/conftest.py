"""Fixtures of the tests that read a corpus."""

from corpus_fixtures import corpus, model_folder  # noqa: F401
