from datetime import UTC, datetime, timedelta

import torch

from patchclamp.evidence.provenance import Provenance, provenance_of


def test_provenance_names_model_software_and_machine(model):
    provenance = provenance_of(model, seed=3, duration=2.0)
    assert (provenance.model, provenance.name, provenance.revision) == ("some/model", "model", None)
    assert (provenance.dtype, provenance.device, provenance.seed) == ("float32", "cpu", 3)
    assert provenance.weights_hash == model.weights_hash
    assert set(provenance.versions) == {"python", "patchclamp", "torch", "transformers", "numpy"}
    assert provenance.versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert provenance.threads == torch.get_num_threads()


def test_run_started_its_duration_ago(model):
    provenance = provenance_of(model, seed=0, duration=60.0)
    age = datetime.now(UTC) - provenance.started
    assert timedelta(seconds=60) <= age < timedelta(seconds=90)


def test_json_holds_utc_and_reads_back(model):
    provenance = provenance_of(model, seed=0, duration=0.5)
    text = provenance.model_dump_json()
    assert f'"started":"{provenance.started:%Y-%m-%dT%H:%M:%S}' in text and 'Z"' in text
    assert Provenance.model_validate_json(text) == provenance


def test_missing_package_is_said_not_guessed(model, monkeypatch):
    monkeypatch.setattr("patchclamp.evidence.provenance.PACKAGES", ("no-such-package",))
    assert provenance_of(model, seed=0, duration=0.0).versions["no-such-package"] == "not installed"
