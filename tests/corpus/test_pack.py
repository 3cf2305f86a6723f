"""A corpus as sequences of one length: no token lost or read twice, and never read further than asked."""

from itertools import islice

import pytest
from tiny import tiny_model

from patchclamp.corpus import pack as module
from patchclamp.corpus.pack import pack, packed
from patchclamp.errors import SpecError

TEXTS = [" ".join(f"w{(7 * text + word) % 97}" for word in range(20)) for text in range(6)]


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "c.txt"
    path.write_text("\n\n".join(TEXTS))
    return str(path)


def test_the_sequences_are_the_texts_tokens_one_after_another(corpus):
    model = tiny_model("llama")
    sequences = pack(model, corpus, 9, 100)
    joined = [token for ids in sequences for token in ids]
    assert {len(ids) for ids in sequences} == {9}
    assert joined == [model.token(word) for text in TEXTS for word in text.split()][: len(joined)]
    assert len(joined) > 6 * 20 - 9


def test_every_sequence_begins_as_the_tokenizer_begins_a_text(corpus, monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr(module, "_lead", lambda _: (1,))
    with_lead = pack(model, corpus, 10, 100)
    assert all(ids[0] == 1 for ids in with_lead)
    monkeypatch.undo()
    assert [ids[1:] for ids in with_lead] == pack(model, corpus, 9, 100)


def test_no_more_of_the_corpus_is_read_than_asked_for(monkeypatch):
    read = []

    def texts(_):
        for text in TEXTS:
            read.append(text)
            yield text

    monkeypatch.setattr(module, "read_corpus", texts)
    assert len(list(islice(packed(tiny_model("llama"), "any", 9), 3))) == 3
    assert len(read) == 2


@pytest.mark.parametrize(("length", "said"), [(129, "context is 128"), (1, "no room")])
def test_a_length_that_cannot_be_is_said_before_anything_is_read(length, said):
    with pytest.raises(SpecError, match=said):
        packed(tiny_model("llama"), "nowhere.txt", length)
