"""What only someone who means harm, or a slip, sends: the server says no, and goes on."""

import asyncio
import hmac
import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
from starlette.testclient import TestClient
from tiny import tiny, tiny_model
from web_requests import PATIENCE, TOKEN, finished

import patchclamp as pc
from patchclamp.errors import FileError
from patchclamp.forward.turns import interrupted_by
from patchclamp.tasks.files import opening_only
from patchclamp.tasks.images import read_images
from patchclamp.web.app import make_app
from patchclamp.web.bench import MOST_STREAMS
from patchclamp.web.jobs import WAITING_EACH, BusyError
from patchclamp.web.live import lines_of
from patchclamp.web.question import LONGEST


@pytest.mark.parametrize("prompt", ["\ud800", json.dumps([{"role": "user", "content": "\ud800"}])],
                         ids=["text", "messages"])
def test_half_a_character_is_refused_and_the_queue_goes_on(client, ask, tiny_folder, prompt):
    body = json.dumps({"values": {"method": ["lens.logit"], "model": [str(tiny_folder)], "prompt": [prompt]}})
    answer = client.post("/api/ask", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422 and "half of a character" in answer.json()["error"]
    assert ask("lens.logit", tiny_folder, prompt="w1 w2")
    assert client.get("/api/jobs").status_code == 200


def test_a_long_field_costs_no_time(client):
    for text in ("," * LONGEST, '",' * (LONGEST // 2), "[" * LONGEST):
        for name, method in (("sites", "circuits.patch"), ("edits", "forward.generate")):
            began = time.monotonic()
            answer = client.post("/api/ask", json={"values": {"method": [method], name: [text]}})
            assert answer.status_code == 422 and time.monotonic() - began < 2 * PATIENCE
    answer = client.post("/api/ask", json={"values": {"method": ["lens.logit"], "prompt": ["x" * (LONGEST + 1)]}})
    assert answer.status_code == 422 and "put them into a file" in answer.json()["error"]


@pytest.mark.parametrize("name", ["hf:/etc", "hf:../../etc", "hf:~/x", "hf:a/../b", "hf:a/b/c", "hf:"])
def test_a_dataset_of_the_hub_is_no_folder(client, name):
    answer = client.post("/api/ask", json={"values": {"method": ["neurons.index"], "corpus": [name], "save": ["i"]}})
    assert answer.status_code == 422 and "no dataset of the Hub" in answer.json()["error"]


def test_a_list_of_pictures_may_not_name_one_outside(bench, tmp_path):
    outside = tmp_path / "secret.png"
    outside.write_bytes(b"x")
    rows = bench.files / "rows.jsonl"
    for name in (str(outside), "../../secret.png", str(tmp_path / "nothing.png")):
        rows.write_text(json.dumps({"image": name, "concept": "a", "form": "photo"}))
        with opening_only(bench.check_opened), pytest.raises(FileError, match="outside the workbench"):
            read_images(rows)


def test_shipped_files_may_be_opened(bench):
    from patchclamp.tasks import ChoiceRow, read_rows

    with opening_only(bench.check_opened):
        assert read_rows("example:agreement", ChoiceRow)


def test_a_page_of_another_site_is_told_nothing(client):
    foreign = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"}
    assert client.get("/api/models", headers=foreign).status_code == 403
    assert client.get("/api/models", headers=foreign | {"sec-fetch-mode": "navigate"}).status_code == 200
    assert client.get("/api/models", headers={"sec-fetch-site": "same-origin"}).status_code == 200


def test_who_brings_no_name_of_ours_is_one_client_with_all_others(bench):
    release = threading.Event()
    bench.works["ask"] = lambda payload, progress: release.wait(20) and None
    with TestClient(make_app(bench, TOKEN), base_url="http://127.0.0.1:8765",
                    headers={"x-patchclamp-token": TOKEN}) as nameless:
        statuses = []
        for i in range(WAITING_EACH + 2):
            nameless.cookies.clear()
            proof = hmac.new(TOKEN.encode(), f"made-up-{i}".encode(), "sha256").hexdigest()[:32]  # what pages carry
            nameless.cookies.set("patchclamp-client", f"made-up-{i}.{proof}")
            values = {"method": ["sae.plan"], "latents": [str(100 + i)], "width": ["8"], "tokens": ["9"], "gpus": ["1"]}
            statuses.append(nameless.post("/api/ask", json={"values": values}).status_code)
        assert statuses[0] == 200 and statuses[-1] == 429
        nameless.cookies.clear()
        nameless.get("/models")  # a browser gets a name with its first page
        values["latents"] = ["999"]
        assert nameless.post("/api/ask", json={"values": values}).status_code == 200
    release.set()


def test_few_answers_are_streamed_at_once(bench):
    stops = [bench.only_stream(str(i)) for i in range(MOST_STREAMS)]
    with pytest.raises(BusyError):
        bench.only_stream("one more")
    again = bench.only_stream("0")
    assert stops[0].is_set() and not again.is_set()
    bench.end_stream("0", stops[0])
    with pytest.raises(BusyError):
        bench.only_stream("one more")
    bench.end_stream("0", again)
    assert bench.only_stream("one more")


def test_a_stream_that_nobody_reads_takes_no_place(bench):
    def lines(client):
        return lines_of(lambda stop: iter(()), partial(bench.only_stream, client), partial(bench.end_stream, client))

    async def read_all(stream):
        return [line async for line in stream]

    def read(stream):  # in a thread of its own: this one may have a browser's loop
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(asyncio.run, read_all(stream)).result()

    unread = [lines(str(i)) for i in range(MOST_STREAMS + 1)]
    assert read(lines("read")) == []
    for i in range(MOST_STREAMS):
        bench.only_stream(f"held {i}")
    [refused] = read(unread[0])
    assert "are being written for others" in json.loads(refused)["error"]


def test_a_generation_ends_when_it_is_interrupted():
    class Enough(BaseException):
        pass

    model, seen = tiny_model("llama"), []

    def check():
        seen.append(1)
        if len(seen) > 5:
            raise Enough

    with interrupted_by(check), pytest.raises(Enough):
        model.generate("w1 w2", max_new_tokens=60)
    assert len(seen) == 6
    assert model.generate("w1 w2", max_new_tokens=3).tokens


def test_a_job_that_generates_is_cancelled(client, bench, tiny_folder):
    began = threading.Event()

    def work(payload, progress):
        began.set()
        while True:
            pc.load(str(tiny_folder)).generate("w1 w2", max_new_tokens=50)

    bench.works["ask"] = work
    job = bench.queue.submit("ask", "", {}, "me")
    assert began.wait(20)
    client.post(f"/api/jobs/{job.id}/cancel")
    assert finished(client, job.id)["state"] == "cancelled"


def test_an_error_that_quotes_half_a_character_is_told(client, bench):
    def work(payload, progress):
        raise ValueError("\ud800 is no token")

    bench.works["ask"] = work
    assert finished(client, bench.queue.submit("ask", "", {}, "me").id)["error"] == "ValueError: ? is no token"
    assert client.get("/api/jobs").status_code == 200


def test_a_library_that_exits_ends_its_job_and_not_the_queue(client, bench):
    def leave(payload, progress):
        raise SystemExit(1)

    bench.works["ask"] = leave
    assert finished(client, bench.queue.submit("ask", "", {}, "me").id)["state"] == "failed"
    bench.works["ask"] = lambda payload, progress: None
    assert finished(client, bench.queue.submit("ask", "", {"x": 1}, "me").id)["state"] == "done"


def test_a_job_being_cancelled_is_not_the_answer_to_the_same_question(bench):
    release = threading.Event()
    bench.works["ask"] = lambda payload, progress: release.wait(20) and None
    first = bench.queue.submit("ask", "", {}, "me")
    while first.state != "running":
        time.sleep(0.01)
    assert bench.queue.submit("ask", "", {}, "me") is first
    bench.queue.cancel(first.id)
    assert bench.queue.submit("ask", "", {}, "me") is not first
    release.set()


def test_a_model_whose_files_have_changed_is_asked_anew(client, ask, bench, tiny_folder):
    import torch

    shutil.copytree(tiny_folder, bench.files / "own")
    values = {"method": ["lens.logit"], "model": ["own"], "prompt": ["w1 w2"]}
    first = ask("lens.logit", "own", prompt="w1 w2")
    ref = str(bench.files / "own")
    client.post("/api/models/unload", json={"ref": ref})
    assert client.post("/api/ask", json={"values": values}).json()["record"] == first
    torch.manual_seed(5)
    changed = tiny("llama")
    with torch.no_grad():
        changed.lm_head.weight.add_(torch.randn_like(changed.lm_head.weight))
    changed.save_pretrained(bench.files / "own")
    assert ask("lens.logit", "own", prompt="w1 w2") != first
