"""Questions, jobs, models and files through the server's JSON."""

import json
import threading

import pytest
from starlette.testclient import TestClient
from tiny import tiny_model
from web_requests import TOKEN, finished

import patchclamp as pc
from patchclamp.web.api import MOST_LOGGED, thinned
from patchclamp.web.app import make_app
from patchclamp.web.jobs import PER_MINUTE, WAITING_EACH
from patchclamp.web.pages import DICTIONARY_STEPS, STARTS, page_of

PROMPT = "w1 w2 w3"


def test_an_answer_is_the_librarys(ask, client, tiny_folder):
    name = ask("lens.logit", tiny_folder, prompt=PROMPT, watch=["w5", "w6"], controls=3)
    stored = client.get(f"/runs/{name}.json").json()
    own = pc.run("lens.logit", pc.load(str(tiny_folder)), prompt=PROMPT, watch=["w5", "w6"], controls=3).to_dict()
    assert {key: stored[key] for key in ("method", "spec", "result", "verdict")} == {
        key: own[key] for key in ("method", "spec", "result", "verdict")}


def test_the_same_question_is_not_computed_again(ask, client, bench, tiny_folder):
    first = ask("lens.logit", tiny_folder, prompt=PROMPT)
    jobs = len(client.get("/api/jobs").json())
    assert ask("lens.logit", tiny_folder, prompt=PROMPT, top=5) == first  # 5 is the default
    assert len(client.get("/api/jobs").json()) == jobs
    assert ask("lens.logit", tiny_folder, prompt=PROMPT, top=6) != first


def test_a_question_whose_record_is_damaged_is_asked_again(ask, client, bench, tiny_folder):
    name = ask("lens.logit", tiny_folder, prompt=PROMPT, top=7)
    path = bench.store.folder / name / "record.json"
    path.write_text(path.read_text().replace('"prediction"', '"predicted"'))
    assert ask("lens.logit", tiny_folder, prompt=PROMPT, top=7)


def test_a_question_whose_file_has_changed_is_asked_again(ask, client, bench, tiny_folder):
    row = {"prompt": PROMPT, "answer": "w5", "distractor": "w6"}
    client.post("/api/files/text", json={"name": "rows.jsonl", "text": json.dumps(row) + "\n"})
    values = {"method": ["neurons.attribute"], "model": [str(tiny_folder)], "prompts": ["rows.jsonl"],
              "controls": ["2"]}
    first = ask("neurons.attribute", tiny_folder, prompts="rows.jsonl", controls=2)
    assert client.post("/api/ask", json={"values": values}).json()["record"] == first
    (bench.files / "rows.jsonl").write_text(json.dumps({**row, "prompt": "w9 w8"}) + "\n")
    assert client.post("/api/ask", json={"values": values}).json()["record"] is None


def test_an_address_says_the_whole_question(ask, client, tiny_folder):
    name = ask("lens.logit", tiny_folder, prompt=PROMPT, watch=["w5"], position="all")
    view = client.get(f"/api/runs/{name}").json()
    answer = client.get("/api/answer", params=view["query"])
    assert answer.json()["record"] == name
    assert "lens logit 'w1 w2 w3' --watch w5 --position all" in answer.json()["code"]["command"]


@pytest.mark.parametrize("address", [
    *STARTS.values(), *(f"/dictionary?method={method}&{fields}" for method, fields in DICTIONARY_STEPS.items())])
def test_what_the_pages_offer_to_begin_with_are_questions(client, address):
    page, _, query = address.partition("?")
    answer = client.get(f"/api/answer?{query}")
    assert answer.status_code == 200 and answer.json()["code"]["command"].startswith("patchclamp ")
    assert page.strip("/") == page_of(dict(answer.json()["query"])["method"])


def test_a_list_of_records_says_what_was_asked(ask, client, tiny_folder):
    name = ask("lens.logit", tiny_folder, prompt=PROMPT, watch=["w7"])
    assert {run["id"]: run["asked"] for run in client.get("/api/runs").json()["runs"]}[name] == PROMPT


def test_a_view_has_chart_table_and_code(ask, client, tiny_folder):
    view = client.get(f"/api/runs/{ask('lens.logit', tiny_folder, prompt=PROMPT)}").json()
    assert "hconcat" in view["chart"] and view["verdict"]["outcome"]
    assert view["table"]["columns"][:2] == ["layer", "top"]
    assert view["table"]["total"] == len(view["table"]["rows"]) == 4
    assert "pc.run(" in view["code"]["python"]


@pytest.mark.parametrize("kind", ["html", "json", "ipynb", "csv", "svg", "png", "zip"])
def test_a_record_can_be_taken_along(ask, client, tiny_folder, kind):
    name = ask("lens.logit", tiny_folder, prompt=PROMPT)
    answer = client.get(f"/api/runs/{name}/export", params={"kind": kind})
    assert answer.status_code == 200 and f"{name}.{kind}" in answer.headers["content-disposition"]
    if kind == "ipynb":
        cells = json.loads(answer.content)["cells"]
        assert [cell["cell_type"] for cell in cells] == ["markdown", "code", "markdown"]
        compile(cells[1]["source"], "cell", "exec")


def test_a_record_is_run_again_compared_and_deleted(ask, client, tiny_folder):
    first, second = (ask("lens.logit", tiny_folder, prompt=PROMPT, top=top) for top in (3, 4))
    assert client.get(f"/api/runs/{first}/replay").json() is None
    assert finished(client, client.post(f"/api/runs/{first}/replay").json()["id"])["state"] == "done"
    assert client.get(f"/api/runs/{first}/replay").json()["same"] is True
    assert client.get("/compare.json", params={"a": first, "b": second}).json()["spec"] == [["top", 3, 4]]
    assert client.delete(f"/api/runs/{first}").json() == {"deleted": first}
    assert client.get(f"/api/runs/{first}").status_code == 422


@pytest.mark.parametrize(("values", "said"), [
    ({"method": ["lens.logits"]}, "did you mean"),
    ({"method": ["lens.logit"], "prompt": ["w1"], "topp": ["3"]}, "did you mean 'top'"),
    ({"method": ["lens.logit"], "prompt": ["w1"], "top": ["many"]}, "valid integer"),
    ({"method": ["lens.logit"]}, "Field required"),
    ({"method": ["lens.logit"], "prompt": ["w1"], "dtype": ["int3"]}, "no number format"),
    ({"method": ["neurons.attribute"], "prompts": ["/etc/passwd"]}, "outside the workbench's folder"),
    ({"method": ["neurons.attribute"], "prompts": ["../../x.jsonl"]}, "outside the workbench's folder"),
    ({"method": ["vectors.find"], "source": ["refusal"], "save": ["/tmp/x.safetensors"]}, "outside"),
    ({"method": ["forward.generate"], "prompts": ["w1"], "edits": ["@/etc/passwd"]}, "outside"),
    ({"method": ["lens.logit"], "prompt": ["w1"], "model": ["/etc"]}, "outside"),
    ({"method": ["lens.logit"], "prompt": ["w1"], "model": ["gpt2+sae=/tmp"]}, "outside"),
])
def test_a_wrong_question_is_said_to_be_wrong(client, values, said):
    answer = client.post("/api/ask", json={"values": values})
    assert answer.status_code == 422 and said in answer.json()["error"]


def test_a_link_that_leads_outside_is_not_followed(client, bench, tmp_path):
    (bench.files / "inside.jsonl").symlink_to("/etc/passwd")
    answer = client.post("/api/ask", json={"values": {"method": ["neurons.attribute"], "prompts": ["inside.jsonl"]}})
    assert answer.status_code == 422 and "outside" in answer.json()["error"]


def test_a_job_that_fails_says_why_and_the_server_lives(client, tiny_folder):
    values = {"method": ["lens.logit"], "model": [str(tiny_folder)], "prompt": ["w1"], "watch": ["no such word"]}
    job = client.post("/api/ask", json={"values": values}).json()["job"]
    ended = finished(client, job["id"])
    assert ended["state"] == "failed" and "token" in ended["error"]
    assert client.get("/api/status").json()["ready"]


@pytest.mark.parametrize("error", [MemoryError("no room"),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …")])
def test_a_job_for_which_memory_is_short_says_so(client, bench, error):
    def work(payload, progress):
        raise error

    bench.works["ask"] = work
    job = bench.queue.submit("ask", "large", {}, "me")
    assert "memory is short" in finished(client, job.id)["error"]


def test_a_job_is_cancelled_while_it_runs_and_while_it_waits(client, bench):
    running = threading.Event()

    def work(payload, progress):
        for _ in progress.track(range(10**9), "counting"):
            running.set()

    bench.works["ask"] = work
    first, second = (bench.queue.submit("ask", str(i), {"i": i}, "me") for i in range(2))
    assert running.wait(10)
    assert client.post(f"/api/jobs/{second.id}/cancel").json()["state"] == "cancelled"
    client.post(f"/api/jobs/{first.id}/cancel")
    assert finished(client, first.id)["state"] == "cancelled"


def test_answers_are_streamed_word_by_word(client, tiny_folder):
    edits = json.dumps([{"op": "zero", "site": "mlp.1"}])
    values = {"method": ["forward.generate"], "model": [str(tiny_folder)], "prompts": [PROMPT], "edits": [edits],
              "max-new-tokens": ["5"]}
    pieces = [json.loads(line) for line in client.post("/api/live", json={"values": values}).text.splitlines()]
    said = {name: "".join(p.get("text", "") for p in pieces if p["condition"] == name) for name in ("edited", "base")}
    model = pc.load(str(tiny_folder))
    assert said == {"base": model.generate(PROMPT, max_new_tokens=5).text,
                    "edited": model.generate(PROMPT, [pc.Edit.zero("mlp.1")], 5).text}
    assert [p["condition"] for p in pieces if "end" in p] == ["edited", "base"]


def test_a_log_that_is_cut_keeps_every_autoencoder_and_its_last_step():
    lines = [{"name": name, "step": step} for step in range(700) for name in ("a", "b", "c")]
    kept = thinned(lines)
    assert 300 < len(kept) <= MOST_LOGGED + 3
    for name in ("a", "b", "c"):
        steps = [line["step"] for line in kept if line["name"] == name]
        assert steps[-1] == 699 and steps == sorted(steps) and len(steps) > 100
    assert thinned(lines[:9]) == sorted(lines[:9], key=lambda line: line["name"])


def test_models_are_told_about_and_let_go(client, bench, tiny_folder):
    job = client.post("/api/models/load", json={"ref": str(tiny_folder)}).json()
    finished(client, job["id"])
    (told,) = client.get("/api/models").json()["loaded"]
    model = tiny_model("llama")
    assert told["anatomy"]["blocks"] == model.n_layers and told["anatomy"]["width"] == model.d_model
    assert told["identities"] and told["weights_hash"]
    assert client.post("/api/models/unload", json={"ref": str(tiny_folder)}).json() == {"unloaded": True}
    assert client.get("/api/models").json()["loaded"] == []


def test_a_number_format_is_let_go_alone(client, bench, tiny_folder):
    for dtype in ("float32", "bfloat16"):
        finished(client, client.post("/api/models/load", json={"ref": str(tiny_folder), "dtype": dtype}).json()["id"])
    client.post("/api/models/unload", json={"ref": str(tiny_folder), "dtype": "bfloat16"})
    assert [one["dtype"] for one in client.get("/api/models").json()["loaded"]] == ["float32"]


def test_files_are_kept_under_plain_names(client, bench):
    assert client.post("/api/files", files={"file": ("../../evil.txt", b"one\n")}).json() == {"name": "evil.txt"}
    assert (bench.files / "evil.txt").read_text() == "one\n"
    assert "evil.txt" in client.get("/api/files").json()["files"]
    for text, name in ((b"one\n", "evil.txt"), (b"two\n", "evil-2.txt"), (b"two\n", "evil-2.txt")):
        assert client.post("/api/files", files={"file": ("evil.txt", text)}).json() == {"name": name}
    for name in ("x.pt", ".hidden", "", "hf:x", "example:x", "@x.json", "-rf", "a,b.txt"):
        assert client.post("/api/files", files={"file": (name, b"x")}).status_code == 422
    large = client.post("/api/files", files={"file": ("large.txt", b"x" * 21_000_000)})
    assert large.status_code == 422 and "larger than 20 MB" in large.json()["error"]


def test_one_client_may_not_flood_the_queue(client, bench):
    release = threading.Event()
    bench.works["ask"] = lambda payload, progress: release.wait(20) and None
    statuses = []
    for i in range(WAITING_EACH + 2):
        values = {"method": ["sae.plan"], "latents": [str(100 + i)], "width": ["8"], "tokens": ["100"], "gpus": ["1"]}
        statuses.append(client.post("/api/ask", json={"values": values}).status_code)
    assert statuses[0] == 200 and statuses[-1] == 429
    release.set()
    assert PER_MINUTE > WAITING_EACH


def test_clients_take_turns(bench):
    order, release = [], threading.Event()

    def work(payload, progress):
        release.wait(20)
        order.append(payload["who"])

    bench.works["ask"] = work
    jobs = [bench.queue.submit("ask", "", {"who": who, "i": i}, who) for who, i in
            [("a", 0), ("a", 1), ("a", 2), ("b", 0), ("c", 0)]]
    release.set()
    for job in jobs:
        while not job.is_over:
            threading.Event().wait(0.01)
    assert order == ["a", "b", "c", "a", "a"]


def test_a_restart_knows_what_was_interrupted(bench, tmp_path):
    from patchclamp.web.jobs import Queue

    began = threading.Event()

    def work(payload, progress):
        began.set()
        threading.Event().wait(30)

    bench.works["ask"] = work
    job = bench.queue.submit("ask", "long", {"x": 1}, "me")
    assert began.wait(10)
    done = []
    again = Queue(bench.queue.folder, lambda job, progress: done.append(job.payload))
    assert again.get(job.id).state == "interrupted"
    resumed = again.resume(job.id, "me")
    while not resumed.is_over:
        threading.Event().wait(0.01)
    assert done == [{"x": 1}]


def test_what_was_not_foreseen_is_an_error_not_an_end(bench, client):
    assert client.get("/api/jobs/nothing").status_code == 422
    assert client.get("/runs/nothing.json").status_code == 422
    with TestClient(make_app(bench, TOKEN), base_url="http://127.0.0.1", raise_server_exceptions=False) as other:
        assert other.post("/api/ask", json={"values": {}}).status_code == 403


def test_what_is_not_there_is_said_to_people_and_to_programs(client):
    page = client.get("/nothing", headers={"accept": "text/html"})
    assert page.status_code == 404 and "There is no such page" in page.text and "/lens" in page.text
    assert client.get("/nothing.json").json() == {"error": "there is nothing at /nothing.json"}
