"""Whatever a request holds, the server answers: never a 5xx."""

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from web_requests import TOKEN

from patchclamp.web.app import make_app

pytestmark = pytest.mark.slow


HEADERS = {"host": "127.0.0.1", "x-patchclamp-token": TOKEN}
EXAMPLES = 15
"""Requests to each operation."""


def test_no_request_makes_the_server_fail(bench):
    bench.works = {name: lambda payload, progress: None for name in bench.works}  # what it would do is not asked here
    schema = schemathesis.openapi.from_asgi("/openapi.json", make_app(bench, TOKEN), headers=HEADERS)
    asked = []
    for operation in (found.ok() for found in schema.get_all_operations()):

        @given(case=operation.as_strategy())
        @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        def ask(case):
            answer = case.call(headers=HEADERS)
            assert answer.status_code < 500, (case.method, case.path, answer.text)
            asked.append(answer.status_code)

        ask()
    assert len(asked) > 200 and 200 in asked


def test_every_route_is_described(bench):
    paths = make_app(bench, TOKEN).openapi()["paths"]
    wanted = {"/api/ask", "/api/jobs/{name}", "/lens", "/lens.json", "/runs/{name}.json", "/tour.json"}
    assert wanted <= set(paths)
