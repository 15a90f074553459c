"""A server and a hub made here: no test leaves the machine."""

import contextlib
import hashlib
import http.server
import json
import threading

REPO, COMMIT = "org/toy", "0" * 40


class Server:
    """Serves `bodies` by path; `cut` ends each answer after so many bytes of the body."""

    def __init__(self, bodies, *, cut=None, ranges=True):
        self.bodies, self.cut, self.ranges = bodies, cut, ranges
        self.asked = []  # (path, Range header)
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self, body=True)

            def do_HEAD(self):
                outer.answer(self, body=False)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(
            target=self.server.serve_forever, args=(0.01,), daemon=True
        ).start()

    def answer(self, handler, body):
        wanted = handler.headers.get("Range")
        self.asked.append((handler.path, wanted))
        if handler.path not in self.bodies:
            handler.send_error(404)
            return
        data, status = self.bodies[handler.path], 200
        if wanted and self.ranges:
            data, status = data[int(wanted[6:-1]) :], 206
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(data)))
        handler.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        handler.send_header("X-Repo-Commit", "0" * 40)
        handler.end_headers()
        if body:
            handler.wfile.write(data[: self.cut])

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@contextlib.contextmanager
def serving(bodies, **options):
    server = Server(bodies, **options)
    try:
        yield server
    finally:
        server.close()


def hub_bodies(content):
    info = {
        "id": REPO,
        "sha": COMMIT,
        "siblings": [{"rfilename": name} for name in content],
    }
    bodies = {f"/{REPO}/resolve/main/{name}": data for name, data in content.items()}
    bodies |= {f"/{REPO}/resolve/{COMMIT}/{name}": data for name, data in content.items()}
    listing = json.dumps(info).encode()
    listings = (f"/api/models/{REPO}", f"/api/models/{REPO}/revision/{COMMIT}")
    return {**bodies, **dict.fromkeys(listings, listing)}


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}
