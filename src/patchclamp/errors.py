"""The exception tree. Every message says what is wrong, where, and what would be right.

    PatchclampError
    ├── InputError               the caller's input is wrong (command line: exit code 2)
    │   ├── ModelError           a model cannot be found, fetched or read
    │   │   └── UnsupportedModel its anatomy is unknown, or an identity does not hold
    │   ├── SiteError            a site string is malformed, or the model has no such site
    │   ├── EditError            an edit is malformed, does not fit, or did not fire
    │   ├── PromptError          an empty prompt, one longer than the context, no chat template
    │   ├── TokenError           a watched string is not one token
    │   ├── FileError            a data file is missing, malformed (line, field) or not UTF-8
    │   └── SpecError            a method's specification is wrong, or no method has that name
    └── RunError                 the input was right and the run failed all the same (exit code 1)
        └── StoreError           a record cannot be written or read
"""


class PatchclampError(Exception):
    """Base of every error this package raises on purpose."""


class InputError(PatchclampError):
    """The caller's input is wrong."""


class ModelError(InputError):
    """A model cannot be found, fetched or read."""


class UnsupportedModel(ModelError):
    """The model's anatomy is unknown, or one of the identities that prove it does not hold."""


class SiteError(InputError):
    """A site string is malformed, or the model has no such site."""


class EditError(InputError):
    """An edit is malformed, does not fit its site, or did not fire."""


class PromptError(InputError):
    """A prompt is empty, too long, or needs a chat template the tokenizer lacks."""


class TokenError(InputError):
    """A string that has to be one token of the model is not."""


class FileError(InputError):
    """A data file is missing, malformed or not UTF-8; the message gives line and field."""


class SpecError(InputError):
    """A method's specification is wrong, or no method has that name."""


class RunError(PatchclampError):
    """The input was right and the run failed all the same."""


class StoreError(RunError):
    """A record cannot be written to or read from the store."""
