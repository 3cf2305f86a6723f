"""Whatever a request holds, the server answers: never a 5xx."""

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from web_requests import TOKEN

from patchclamp.web.app import make_app

pytestmark = pytest.mark.slow


@pytest.fixture
def described(bench):
    bench.works = {name: lambda payload, progress: None for name in bench.works}  # what it would do is not asked here
    return schemathesis.openapi.from_asgi("/openapi.json", make_app(bench, TOKEN), headers={"host": "127.0.0.1"})


schema = schemathesis.pytest.from_fixture("described")


@schema.parametrize()
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_no_request_makes_the_server_fail(case):
    answer = case.call(headers={"host": "127.0.0.1", "x-patchclamp-token": TOKEN})
    assert answer.status_code < 500, answer.text


def test_every_route_is_described(bench):
    paths = make_app(bench, TOKEN).openapi()["paths"]
    wanted = {"/api/ask", "/api/jobs/{name}/events", "/lens", "/lens.json", "/runs/{name}.json", "/tour.json"}
    assert wanted <= set(paths)
