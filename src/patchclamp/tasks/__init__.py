"""Small datasets written for this project, and the one reader for the user's own. See `docs/formats.md`."""

from patchclamp.tasks.examples import example_file, example_names
from patchclamp.tasks.images import read_images
from patchclamp.tasks.neutral import neutral_texts
from patchclamp.tasks.read import read_behaviours, read_corpus, read_relation, read_rows, read_task
from patchclamp.tasks.rows import (
    BehaviourRow,
    ChoiceRow,
    HopRow,
    ImageRow,
    LabelledRow,
    Message,
    PairRow,
    PromptRow,
    RelationFile,
    RelationSample,
    Row,
    TaskRow,
    TextRow,
    WordRow,
)

__all__ = [
    "BehaviourRow",
    "ChoiceRow",
    "HopRow",
    "ImageRow",
    "LabelledRow",
    "Message",
    "PairRow",
    "PromptRow",
    "RelationFile",
    "RelationSample",
    "Row",
    "TaskRow",
    "TextRow",
    "WordRow",
    "example_file",
    "example_names",
    "neutral_texts",
    "read_behaviours",
    "read_corpus",
    "read_images",
    "read_relation",
    "read_rows",
    "read_task",
]
