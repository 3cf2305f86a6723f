"""Does a unit answer to one thing in every form? Units made to, units that do not, a trained model, and bad input."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from seeing import fill, save
from torch import nn

import patchclamp as pc
from patchclamp.cli.app import execute
from patchclamp.errors import FileError, InputError, SiteError, SpecError

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200), "grey": (120, 120, 120)}
SIDE = 8


class Colours(nn.Module):
    """Two layers of units on pictures of one colour. First: redness, the light, a constant. Second: two constants."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)
        weights = [[1.0, -0.5, -0.5], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
        with torch.no_grad():
            self.first.weight.copy_(torch.tensor(weights)[:, :, None, None])
            self.first.bias.zero_()
            self.second.weight.zero_()

    def forward(self, pixels):
        return self.second(self.first(pixels))


@pytest.fixture
def colours():
    return pc.VisionModel(Colours(), size=SIDE, name="colours")


@pytest.fixture
def pictures(tmp_path):
    """Each colour in two forms, light and dark, 14 of each, none quite like another."""
    generator = np.random.default_rng(0)
    for concept, colour in COLOURS.items():
        for form, light in (("light", 1.0), ("dark", 0.5)):
            folder = tmp_path / "pictures" / concept / form
            folder.mkdir(parents=True)
            for number in range(14):
                shade = np.clip(np.array(colour) * light + generator.normal(0, 6, 3), 0, 255).astype(np.uint8)
                Image.fromarray(np.broadcast_to(shade, (SIDE, SIDE, 3)).copy()).save(folder / f"{number}.png")
    return tmp_path / "pictures"


def mean_colour(path):
    return np.asarray(Image.open(path), dtype=float).mean((0, 1))


def redness(path):
    red, green, blue = (mean_colour(path) / 255 - 0.5) / 0.5
    return red - 0.5 * green - 0.5 * blue


def test_the_unit_that_was_built_in_is_found_and_supported(colours, pictures):
    record = pc.image_units(colours, images=str(pictures), concept="red")
    result = record.result
    assert result.unit == "channel.first.0"
    assert {form.form: form.auroc for form in result.forms} == {"light": 1.0, "dark": 1.0}
    assert (result.searched, result.constant) == (2, 3)
    assert (result.pictures, result.chosen_on) == (56, 56)
    assert record.verdict.outcome == "supported"


def test_there_is_no_unit_for_grey(colours, pictures):
    """Neither redness nor light tells grey from the others: the verdict says so, whatever was chosen."""
    record = pc.image_units(colours, images=str(pictures), concept="grey")
    assert min(form.auroc for form in record.result.forms) < 0.7
    assert record.verdict.outcome == "not supported"


def test_activations_are_in_standard_deviations_of_the_rivals(colours, pictures):
    result = pc.image_units(colours, images=str(pictures), concept="red", unit="channel.first.0").result
    rivals = np.array([redness(path) for path in sorted(pictures.rglob("*.png")) if "red" not in path.parts])
    assert (result.mean, result.sd) == (pytest.approx(rivals.mean(), abs=1e-5), pytest.approx(rivals.std(), abs=1e-5))
    assert result.reference == len(rivals) == 84
    light = np.mean([redness(path) for path in (pictures / "red" / "light").iterdir()])
    shown = next(c for c in result.categories if (c.concept, c.form) == ("red", "light"))
    assert shown.activation.mean == pytest.approx((light - rivals.mean()) / rivals.std(), abs=1e-4)
    assert (shown.pictures, shown.role) == (14, "concept")


def test_a_reference_folder_is_the_scale(colours, pictures, tmp_path):
    fill(tmp_path / "others", side=SIDE)
    result = pc.image_units(colours, images=str(pictures), concept="red", unit="channel.first.0",
                            reference=str(tmp_path / "others")).result
    others = sorted((tmp_path / "others").rglob("*.png"))
    noise = colours.read(others, ["channel.first"])["channel.first"][:, 0].double()
    assert result.mean == pytest.approx(float(noise.mean()), abs=1e-5)
    assert result.sd == pytest.approx(float(noise.std(correction=0)), abs=1e-5)


def test_shares_and_top_pictures_are_counted_from_the_same_numbers(colours, pictures):
    result = pc.image_units(colours, images=str(pictures), concept="red", unit="channel.first.0", related=["grey"],
                            thresholds=[-1, 1, 1000], top=200).result
    assert len(result.top) == result.pictures == 112
    assert [t.activation for t in result.top] == sorted((t.activation for t in result.top), reverse=True)
    for threshold in result.thresholds:
        above = [t.concept for t in result.top if t.activation > threshold.above]
        counts = [above.count("red"), above.count("grey"), above.count("green") + above.count("blue")]
        assert [threshold.concept, threshold.related, threshold.rival] == counts
        assert not sum(counts) or threshold.share == counts[0] / sum(counts)
    assert np.isnan(result.thresholds[2].share)
    assert result.base_share == 28 / 112


def test_what_is_related_is_neither_concept_nor_rival(colours, pictures):
    """Nor do they count as reference."""
    result = pc.image_units(colours, images=str(pictures), concept="red", related=["grey"]).result
    assert {role.role: role.pictures for role in result.roles} == {"concept": 14, "related": 14, "rival": 28}
    assert result.reference == 56


def test_a_named_unit_stands_beside_others_of_its_layer(colours, pictures):
    """With one other unit that moves there is no distribution to compare with, and the verdict says so."""
    record = pc.image_units(colours, images=str(pictures), concept="red", unit="channel.first.0")
    assert (record.result.searched, record.result.chosen_on, record.result.pictures) == (1, 0, 112)
    assert record.verdict.outcome == "inconclusive"


def test_one_form_is_compared_with_shuffled_labels(colours, pictures, tmp_path):
    rows = [{"image": str(path), "concept": path.parent.parent.name, "form": "light"}
            for path in sorted(pictures.glob("*/light/*"))]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    record = pc.image_units(colours, images=str(file), concept="red")
    assert "labels shuffled" in record.verdict.reason
    assert record.verdict.outcome == "supported"


def test_few_pictures_decide_nothing(colours, pictures, tmp_path):
    for path in sorted((pictures / "red" / "dark").iterdir())[3:]:
        path.unlink()
    verdict = pc.image_units(colours, images=str(pictures), concept="red").verdict
    assert verdict.outcome == "inconclusive"
    assert "dark has 2 picture(s) of red" in verdict.reason


def test_a_record_is_read_back_and_replayed(colours, pictures):
    record = pc.image_units(colours, images=str(pictures), concept="red", thresholds=[1, 99])
    again = pc.Record.from_json(record.to_json())
    assert again.id == record.id
    assert pc.replay(record, colours).same
    assert list(record.provenance.inputs) == [str(pictures)]
    assert len(record.table()) == 8


# A model trained on digits as objects, outlines and words


@pytest.mark.slow
def test_a_trained_model_has_such_a_unit_and_the_same_model_untrained_has_not(digits, tmp_path):
    from patchclamp.tour.sight import save_model, untrained

    model = pc.load_vision(digits / "digits-vision")
    record = pc.image_units(model, images=str(digits / "digits"), concept="seven")
    assert min(form.auroc for form in record.result.forms) > 0.95
    assert [form.form for form in record.result.forms] == ["drawing", "photo", "text"]
    assert record.verdict.outcome == "supported"
    assert {t.concept for t in record.result.top} == {"seven"}

    save_model(untrained(), tmp_path / "untrained")
    blind = pc.image_units(pc.load_vision(tmp_path / "untrained"), images=str(digits / "digits"), concept="seven")
    assert min(form.auroc for form in blind.result.forms) < 0.7
    assert blind.verdict.outcome == "not supported"


@pytest.mark.slow
def test_a_named_unit_of_the_trained_model_stands_out_from_its_layer(digits):
    model = pc.load_vision(digits / "digits-vision")
    best = pc.image_units(model, images=str(digits / "digits"), concept="three").result.candidates[0].unit
    record = pc.image_units(model, images=str(digits / "digits"), concept="three", unit=best)
    assert record.verdict.outcome == "supported"
    assert "other units of its layer" in record.verdict.reason


# Bad input


def ask(model, folder, **fields):
    return pc.image_units(model, **{"images": str(folder), "concept": "red", **fields})


def test_concepts_that_are_not_there(colours, pictures):
    with pytest.raises(SpecError, match="no pictures of 'mauve'; its concepts are blue, green, grey, red"):
        ask(colours, pictures, concept="mauve")
    with pytest.raises(SpecError, match="no pictures of 'mauve'"):
        ask(colours, pictures, related=["mauve"])
    with pytest.raises(SpecError, match="related to itself"):
        ask(colours, pictures, related=["red"])
    with pytest.raises(SpecError, match="without rivals"):
        ask(colours, pictures, related=["blue", "green", "grey"])


def test_one_concept_alone_has_no_rivals(colours, tmp_path):
    with pytest.raises(SpecError, match="shows only red: without rivals"):
        ask(colours, fill(tmp_path / "one", concepts=("red",)))


def test_constant_units(colours, pictures):
    with pytest.raises(InputError, match="a constant unit tells nothing apart"):
        ask(colours, pictures, unit="channel.first.2")
    with pytest.raises(InputError, match=r"every unit of channel\.second has one value"):
        ask(colours, pictures, layers=["channel.second"])


def test_a_unit_silent_on_all_rivals_has_no_standard_deviations(pictures):
    net = nn.Sequential(Colours().first, nn.Threshold(1.0, 0.0))
    model = pc.VisionModel(net, size=SIDE, layers=["1"])
    assert model.read(sorted(pictures.glob("blue/*/*")), ["channel.1"])["channel.1"][:, 0].eq(0).all()
    for path in (pictures / "grey").glob("*/*"):
        path.unlink()
    with pytest.raises(InputError, match="give --reference"):
        ask(model, pictures, unit="channel.1.0")


def test_units_and_layers_that_are_not_there(colours, pictures):
    with pytest.raises(SiteError, match=r"3 units \(0 to 2\)"):
        ask(colours, pictures, unit="channel.first.3")
    with pytest.raises(SiteError, match=r"no layer 'neuron\.0'; it has channel\.first, channel\.second"):
        ask(colours, pictures, layers=["neuron.0"])
    with pytest.raises(SpecError, match="leave one out"):
        ask(colours, pictures, unit="channel.first.0", layers=["channel.first"])


def test_one_picture_cannot_be_halved(colours, pictures):
    for path in sorted((pictures / "red" / "dark").iterdir())[1:]:
        path.unlink()
    with pytest.raises(SpecError, match="'dark' has one picture"):
        ask(colours, pictures)


def test_values_that_are_not_finite(pictures):
    net = nn.Sequential(nn.Conv2d(3, 2, 1))
    with torch.no_grad():
        net[0].bias[0] = float("nan")
    with pytest.raises(InputError, match="NaN or infinity"):
        ask(pc.VisionModel(net, size=SIDE), pictures)


def test_thresholds_are_numbers(colours, pictures):
    with pytest.raises(SpecError, match="finite numbers"):
        ask(colours, pictures, thresholds=[float("nan")])


def test_the_reference_is_a_folder(colours, pictures):
    with pytest.raises(FileError, match="is not a folder"):
        ask(colours, pictures, reference=str(next(pictures.rglob("*.png"))))


@pytest.fixture
def clip(tmp_path, monkeypatch):
    monkeypatch.setenv("PATCHCLAMP_CACHE", str(tmp_path / "cache"))
    return save("clip", tmp_path / "clip")


def test_the_command_runs_on_a_real_class(clip, tmp_path, capsys):
    folder = fill(tmp_path / "animals")
    code = execute(["neurons", "images", str(folder), "--concept", "cat", "--model", str(clip), "--layers",
                    "neuron.1,neuron.2", "--thresholds", "1,2.5", "--json", "--no-record"])
    out, err = capsys.readouterr()
    assert code == 0, err
    record = json.loads(out)
    assert record["result"]["searched"] == 48
    assert [t["above"] for t in record["result"]["thresholds"]] == [1.0, 2.5]
    assert record["provenance"]["model"] == str(clip)
    assert record["verdict"]["outcome"] in ("not supported", "inconclusive")


def test_the_commands_record_is_replayed_with_the_methods_own_loader(clip, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATCHCLAMP_RUNS", str(tmp_path / "runs"))
    folder = fill(tmp_path / "animals")
    assert execute(["neurons", "images", str(folder), "--concept", "cat", "--model", str(clip)]) == 0
    (stored,) = (tmp_path / "runs").iterdir()
    capsys.readouterr()
    assert execute(["runs", "replay", stored.name, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["same"] is True


def test_bad_input_is_one_sentence_and_exit_code_two(clip, tmp_path, capsys):
    folder = fill(tmp_path / "animals")
    (tmp_path / "empty").mkdir()
    broken = fill(tmp_path / "broken")
    (broken / "cat" / "photo" / "0.png").write_text("no picture")
    flat = fill(tmp_path / "flat")
    (flat / "cat" / "photo" / "0.png").rename(flat / "cat" / "0.png")
    one = fill(tmp_path / "one", concepts=("cat",))
    cases = {
        ("empty", "--concept", "cat"): "holds no picture",
        ("broken", "--concept", "cat"): "0.png cannot be read as a picture",
        ("flat", "--concept", "cat"): "does not lie in",
        ("nowhere", "--concept", "cat"): "does not exist",
        ("one", "--concept", "cat"): "without rivals",
        ("animals", "--concept", "cat", "--unit", "neuron.0.99"): "24 units (0 to 23)",
        ("animals", "--concept", "cat", "--unit", "neuron.7.0"): "no layer 'neuron.7'",
        ("animals", "--concept", "cat", "--layers", "attn.0"): "no layer 'attn.0'",
        ("animals", "--concept", "cat", "--thresholds", "high"): "thresholds",
        ("animals",): "concept",
    }
    assert folder.parent == one.parent == tmp_path
    for (name, *words), said in cases.items():
        code = execute(["neurons", "images", str(tmp_path / name), *words, "--model", str(clip), "--no-record"])
        out, err = capsys.readouterr()
        assert (code, out) == (2, ""), err
        assert said in " ".join(err.split()), err
        assert "Traceback" not in err


def test_a_model_that_sees_nothing(tmp_path, capsys):
    folder = fill(tmp_path / "animals")
    assert execute(["neurons", "images", str(folder), "--concept", "cat", "--no-record"]) == 2
    assert "is a language model and sees no pictures" in " ".join(capsys.readouterr().err.split())
