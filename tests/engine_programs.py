"""Small programs in the place of an engine: what an environment's interpreter runs, whatever it is told to run.

They say what a real engine says in its log, and take as long as a test wants.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

# Serves once the file GO exists in its environment's folder; until then it answers 503, as llama.cpp does.
SLOW = """
import http.server, json, os, pathlib, sys
given = json.loads(os.environ["BYZERLLM_ENGINE"])
go = pathlib.Path(__file__).with_name("GO")

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200 if go.exists() else 503)
        self.send_header("content-length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_POST

    def log_message(self, *args):
        pass

print("srv  load_model: loading model 'tiny.gguf'", flush=True)
print("srv  init: initializing, n_slots = 1", end="\\r", flush=True)
http.server.ThreadingHTTPServer((given["host"], given["port"]), Handler).serve_forever()
"""

# Answers 500 to a request that says "odd", and writes a line into the file ASKED for each.
MOODY = SLOW.replace(
    """        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(200 if go.exists() else 503)
""",
    """        odd = b"odd" in self.rfile.read(int(self.headers.get("content-length", 0)))
        if odd:
            with go.with_name("ASKED").open("a") as asked:
                asked.write("once\\n")
        self.send_response(500 if odd else 200)
""",
)

# Removes a file, by a child of its own, once it is gone.
CLEANING = """
import os, signal, sys, time
leader = os.getpid()
if os.fork():
    signal.pause()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("watching", flush=True)
while os.getppid() == leader:
    time.sleep(0.05)
time.sleep(0.3)
os.unlink(sys.argv[1])
"""

# Ends as a program does whose error nobody has caught.
BROKEN = """
for number in range(100):
    print("llama_model_loader: line", number)
print("error loading model: unknown model architecture: 'novel'", flush=True)

def load(depth):
    if depth:
        load(depth - 1)
    raise RuntimeError("cannot load")

load(30)
"""


def install(home: Path, engine: str, program: str) -> Path:
    """An environment for ``engine`` in ``home`` that runs ``program``; returns its folder."""
    folder = home / "engines" / engine
    (folder / "bin").mkdir(parents=True)
    (folder / "program.py").write_text(program)
    python = folder / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{folder}/program.py" "$@"\n')
    python.chmod(0o755)
    said = {"version": "0", "device": "cpu", "pip": [], "packages": {}}
    (folder / "installed.json").write_text(json.dumps(said))
    return folder
