"""A small server that speaks chat completions, and fails in every way that servers do."""

import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

GOOD = {
    "id": "1",
    "object": "chat.completion",
    "created": 0,
    "model": "stub-1",
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hello"}}],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
}


def answer(text="hello", reason="stop"):
    """A good answer with another text."""
    message = {"role": "assistant", "content": text}
    return {**GOOD, "choices": [{"index": 0, "finish_reason": reason, "message": message}]}


def send(handler, status, body, kind="application/json", headers=()):
    """Answer whole."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    handler.send_response(status)
    handler.send_header("Content-Type", kind)
    handler.send_header("Content-Length", str(len(data)))
    for name, value in headers:
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(data)


def status(code, headers=()):
    """Answer with an error."""
    return lambda h: send(h, code, {"error": {"message": f"stub says {code}"}}, headers=headers)


def good(body=None):
    """Answer well."""
    return lambda h: send(h, 200, body or GOOD)


def html(h):
    """Answer like a proxy's login page."""
    send(h, 200, b"<html><body>please log in</body></html>", "text/html")


def broken_json(h):
    """Answer with half a JSON text, whole as far as HTTP can tell."""
    send(h, 200, b'{"id": "1", "choices": [')


def torn(h):
    """Promise more than is sent."""
    h.send_response(200)
    h.send_header("Content-Type", "application/json")
    h.send_header("Content-Length", "5000")
    h.end_headers()
    h.wfile.write(b'{"id": ')
    h.wfile.flush()
    h.close_connection = True


def slow(h):
    """Send a byte now and then, for ever."""
    h.send_response(200)
    h.send_header("Content-Type", "application/json")
    h.send_header("Content-Length", "100000")
    h.end_headers()
    try:
        for _ in range(600):
            h.wfile.write(b" ")
            h.wfile.flush()
            time.sleep(0.05)
    except OSError:
        pass  # the client gave up, as it should


class Server(ThreadingHTTPServer):
    """Plays its acts in turn, the last one again and again; keeps what it was asked."""

    daemon_threads = True

    def __init__(self, acts):
        super().__init__(("127.0.0.1", 0), Handler)
        self.acts = list(acts)
        self.seen = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        length = int(self.headers.get("Content-Length", "0"))
        body = json.loads(self.rfile.read(length) or b"{}")
        self.server.seen.append({"path": self.path, "body": body, "authorization": self.headers.get("Authorization")})
        act = self.server.acts.pop(0) if len(self.server.acts) > 1 else self.server.acts[0]
        act(self)

    def log_message(self, *_):
        pass


@contextmanager
def serving(*acts):
    """Run a server on the loopback interface."""
    server = Server(acts)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
