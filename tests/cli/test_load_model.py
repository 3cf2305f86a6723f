"""The options reach whatever loads a method's model."""

from patchclamp.cli.build import RunOptions
from patchclamp.cli.run import load_model
from patchclamp.evidence.method import Method, Result, Spec, load_language_model


def echo(ref, **options):
    return ref, options


def test_a_methods_loader_gets_the_options():
    options = RunOptions(model="eyes", device="cpu", dtype="bfloat16")
    assert load_model(options, echo) == ("eyes", {"device": "cpu", "dtype": "bfloat16", "trust_remote_code": False})


def test_auto_spreads_the_model():
    ref, options = load_model(RunOptions(model="eyes", device="auto"), echo)
    assert (ref, options["device_map"]) == ("eyes", "auto")
    assert "device" not in options


def test_a_method_asks_a_language_model_unless_it_says_otherwise():
    method = Method("a.b", "", "", Spec, Result, lambda model, spec, progress: (Result(), None))
    assert method.load is load_language_model
