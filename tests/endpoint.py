"""A small server that speaks the chat-completions API, for what asks a language model elsewhere."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SCORES = '{"concept": 2, "instruction": 1, "fluency": 2}'


class Endpoint(ThreadingHTTPServer):
    """`reply` maps what was asked to the answer's text; `status` and `body` replace the whole answer."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.reply = lambda asked: SCORES
        self.status, self.body = 200, None
        self.requests: list[dict] = []
        self.keys: set[str] = set()
        self.busy = self.busiest = 0
        self.lock = threading.Lock()

    @property
    def asked(self) -> list[str]:
        return [request["messages"][-1]["content"] for request in self.requests]

    def handle_error(self, request, client_address):
        """A client that stopped waiting is part of a test."""


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        endpoint = self.server
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with endpoint.lock:
            endpoint.requests.append(request)
            endpoint.keys.add(self.headers["Authorization"])
            endpoint.busy += 1
            endpoint.busiest = max(endpoint.busiest, endpoint.busy)
        message = {"role": "assistant", "content": endpoint.reply(request["messages"][-1]["content"])}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        completion = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": choices}
        body = endpoint.body if endpoint.body is not None else json.dumps(completion)
        found = self.path == "/v1/chat/completions"
        with endpoint.lock:
            endpoint.busy -= 1
        self.send_response(endpoint.status if found else 404)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body.encode() if found else b'{"detail": "Not Found"}')

    def log_message(self, *args):
        pass
