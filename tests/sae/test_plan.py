"""What is planned is what tensors take and processes send, to the byte where it can be."""

import json

import pytest
import torch

import patchclamp as pc
from patchclamp.cli.app import execute
from patchclamp.errors import SpecError
from patchclamp.evidence.method import NoModel
from patchclamp.evidence.record import Record
from patchclamp.sae.cost import Machine, Shape
from patchclamp.sae.learner import Learner
from patchclamp.sae.parameters import Recipe, Scaling
from patchclamp.sae.plan import plan_training
from patchclamp.sae.ranks import Ranks

KINDS = ["topk", "batchtopk", "relu", "jumprelu", "gated", "matryoshka"]
L, D, B, K = 4096, 24, 64, 6
BIG = {"latents": 34_000_000, "width": 4096, "tokens": 8e9, "gpus": 64}


class Counting(Ranks):
    """One process that believes it is of several, and counts what they would send it."""

    got: list = []  # noqa: RUF012 (one test at a time)

    def _reduced(self, tensor, axis):
        n = getattr(self, axis)
        self.got.append(2 * (n - 1) * tensor.nbytes // n)
        return tensor

    def gathered(self, tensor, data=False):
        n = self.latents * self.data if data else self.latents
        self.got.append((n - 1) * tensor.nbytes)
        return tensor.expand(n, *tensor.shape)


def shape(kind, latents=1, data=1, aux_k=0):
    return Shape(kind, L, D, B, K, latents, data, aux_k)


def learner(kind, ranks, aux_k=0, dead_after=10**9):
    recipe = Recipe(kind, L, K, 2.0, 1e-3, dead_after, aux_k, 1.0, 0.1, (256, 1024, L), False, True, 0)
    torch.manual_seed(0)
    return Learner(recipe, Scaling.of((torch.randn(500, D),)), True, ranks)


def stepped(made):
    made.ranks.got.clear() if isinstance(made.ranks, Counting) else None
    made.step((torch.randn(B // made.ranks.data, D),))
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shares", [1, 4])
def test_memory_is_what_the_tensors_take(kind, shares):
    made = stepped(learner(kind, Counting(latents=shares)))
    planned = shape(kind, shares).memory()

    assert sum(tensor.nbytes for tensor in made.parameters.values()) == planned["weights"]
    assert sum(tensor.grad.nbytes for tensor in made.parameters.values()) == planned["gradients"]
    assert made.losses.room.nbytes == planned["pre-activations"]
    kept = sum(planned[name] for name in ("weights", "Adam's moments", "idle counts"))
    assert sum(tensor.nbytes for tensor in made.state().values()) == kept


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_and_the_finished_file_are_as_large_as_planned(kind):
    made = stepped(learner(kind, Ranks()))
    assert sum(tensor.nbytes for tensor in made.state().values()) == shape(kind).state()
    assert sum(tensor.nbytes for tensor in made.folded().values()) == shape(kind).autoencoder()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("latents", "data"), [(4, 1), (1, 2), (4, 2)])
def test_traffic_is_what_processes_send(kind, latents, data):
    stepped(learner(kind, Counting(latents=latents, data=data)))
    small = 4 * D + 200  # the batch's mean, norms and single numbers of a step
    planned = sum(shape(kind, latents, data).traffic().values())

    assert planned <= sum(Counting.got) <= planned + 2 * small


def test_dead_latents_cost_what_is_planned_on_top():
    made = learner("topk", Counting(latents=4), aux_k=12, dead_after=B)
    stepped(made)
    usual = sum(Counting.got)
    assert stepped(made).buffers["idle"].max() > B
    assert sum(Counting.got) - usual == shape("topk", 4, aux_k=12).traffic_while_dead()


def test_a_step_takes_as_long_as_its_operations_and_bytes():
    seconds = shape("topk", 4).seconds(Machine(flops=1e9, bandwidth=1e9, link=1e6, slower=2))

    assert seconds["encoder's product"] == pytest.approx(2 * 2 * B * L / 4 * D / 1e9)
    assert seconds["traffic"] == pytest.approx(sum(shape("topk", 4).traffic().values()) / 1e6)


def planned(**changed):
    return plan_training(NoModel(), **{**BIG, **changed}).result


def test_memory_of_a_gpu_falls_as_latents_are_shared_out():
    one, other = planned(gpus=64), planned(gpus=128)
    shared = {cost.item: cost.value for cost in one.costs if cost.group == "memory"}

    assert one.latents_per_gpu == 531_250 == 2 * other.latents_per_gpu
    assert shared["weights"] == pytest.approx(2 * 531_250 * 4096 * 4 / 1e9, rel=1e-3)
    assert 0.49 < other.memory_gb / one.memory_gb < 0.52


def test_a_plan_says_how_many_gpus_would_do():
    tight = planned(gpus=40)
    assert not tight.fits and tight.gpus_that_fit > 40
    assert planned(gpus=tight.gpus_that_fit).fits
    assert planned(gpus=tight.gpus_that_fit).gpus_that_fit == tight.gpus_that_fit
    assert "does not fit" in tight.table().to_string()


def test_data_shares_trade_memory_for_gradients():
    sharded, divided = planned(), planned(data_parallel=2)
    assert divided.memory_gb > 1.8 * sharded.memory_gb
    gradients = [cost.value for cost in divided.costs if cost.item == "gradients of data shares"]
    assert gradients == [pytest.approx(2 * 34e6 / 32 * 4096 * 4 / 1e9, rel=1e-3)]


@pytest.mark.parametrize(("changed", "says"), [
    ({"gpus": 48}, "34,000,000 latents cannot be divided among 48 processes; ask for 33,999,984 or 34,000,032"),
    ({"gpus": 64, "data_parallel": 3}, "64 GPUs cannot be divided into 3 data shares"),
    ({"batch": 2047, "data_parallel": 2}, "2,047 rows of a batch"), ({"k": 34_000_001}, "k is 1 to 34000000"),
])
def test_what_cannot_be_is_refused(changed, says):
    with pytest.raises(SpecError, match=says):
        planned(**changed)


def test_the_command_prints_a_plan_without_a_model(capsys):
    words = "sae plan --latents 34000000 --width 4096 --tokens 8e9 --gpus 64 --no-record"
    assert execute(words.split()) == 0
    table = capsys.readouterr().out
    assert all(word in table for word in ("weights", "reconstructions", "encoder's product", "activations", "hours"))
    assert execute([*words.split(), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["latent_shares"] == 64


def test_it_is_drawn_and_comes_back_from_json(tmp_path):
    for gpus in (1, 64):
        record = pc.plan_training(NoModel(), **{**BIG, "gpus": gpus})
        assert record.save(tmp_path / "chart.svg").read_text().startswith("<svg")
        assert Record.from_json(record.to_json()).to_json() == record.to_json()
