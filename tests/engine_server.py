"""A server that speaks the protocols of vLLM and SGLang, as far as titer uses them, over a tiny model in this process.

It decodes one prompt at a time, without a cache: what titer's batches are compared with. Its errors are worded as in the sources
of both engines.
"""

import copy
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import torch

from titer.models import Template, add_adapter, load_model, load_tokenizer


class EngineServer:
    """Serves a folder.

    Attributes:
        faults: What happens to the next completions, in order: a status, or a function of the true answer that returns another
            one or raises; `None` is nothing.
        always: The same for every completion that has none of its own.
        calls: Paths and bodies of all that was posted.
        loras: The adapters that are loaded.
        most: Completions that were asked for at the same time.
    """

    def __init__(
        self, folder, dialect="vllm", port=0, max_rank=16, updating=True, precision="float32", version="1.2.3"
    ):
        self.dialect, self.folder, self.max_rank, self.updating = dialect, str(folder), max_rank, updating
        self.precision, self.version, self.context, self.root = precision, version, 512, str(folder)
        self.base, self.template = load_model(str(folder)), Template(load_tokenizer(str(folder)))
        self.faults, self.always, self.calls, self.loras = [], None, [], {}
        self.slow, self.now, self.most, self.lock = 0.0, 0, 0, threading.Lock()
        outer = self

        class Handler(_Handler):
            server_side = outer

        self.http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.http.daemon_threads = True
        self.port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.up = True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        """End it; a further time does nothing."""
        if self.up:
            self.up = False
            self.http.shutdown()
            self.http.server_close()

    def posted(self, path):
        """What was posted to a path."""
        return [body for where, body in self.calls if where == path]

    # -- what it says ------------------------------------------------------------------------------------------------

    def get(self, path):
        if path == "/v1/models":
            name = "served" if self.dialect == "vllm" else self.root
            card = {
                "id": name,
                "owned_by": self.dialect,
                "root": self.root,
                "parent": None,
                "max_model_len": self.context,
            }
            loras = [{"id": lora, "owned_by": self.dialect, "root": "?", "parent": name} for lora in self.loras]
            return 200, {"data": [card, *loras]}
        if path == "/version" and self.dialect == "vllm":
            return 200, {"version": self.version}
        if path == "/server_info" and self.dialect == "sglang":
            told = {"version": self.version, "model_path": self.root, "dtype": self.precision, "api_key": "sk-secret"}
            return 200, {**told, "max_lora_rank": self.max_rank}
        return 404, {"detail": "Not Found"}

    def post(self, path, body):
        prefix = "/v1" if self.dialect == "vllm" else ""
        if path == f"{prefix}/load_lora_adapter" and self.updating:
            return self.load(body["lora_name"], Path(body["lora_path"]))
        if path == f"{prefix}/unload_lora_adapter" and self.updating:
            found = self.loras.pop(body["lora_name"], None)
            return (404, {"message": "cannot be found"}) if found is None else (200, "Success")
        if path == "/v1/completions" or (path == "/generate" and self.dialect == "sglang"):
            return self.answer(body)
        return 404, {"detail": "Not Found"}

    def load(self, name, folder):
        if name in self.loras:
            return 400, {"message": f"The lora adapter '{name}' has already been loaded."}
        if not (folder / "adapter_config.json").is_file():
            return 404, {"message": f"Loading lora {name} failed: No adapter found for {folder}"}
        rank = json.loads((folder / "adapter_config.json").read_text())["r"]
        if rank > self.max_rank:
            return 400, {"message": f"LoRA rank {rank} is greater than max_lora_rank {self.max_rank}."}
        self.loras[name] = add_adapter(copy.deepcopy(self.base), folder)
        return 200, "Success" if self.dialect == "vllm" else {"success": True}

    def answer(self, body):
        name = body["model"] if self.dialect == "vllm" else body.get("lora_path")
        model = self.base if name in (None, "served") else self.loras.get(name)
        if model is None and self.dialect == "vllm":
            return 404, {"error": {"message": f"The model `{name}` does not exist."}}
        if model is None:
            return 400, {"message": f"Got LoRA adapter that has never been loaded: {name}"}
        if "prompt_logprobs" in body:
            found = likelihoods(model, body["prompt"])
            told = [
                None,
                *({str(token): {"logprob": value}} for token, value in zip(body["prompt"][1:], found, strict=True)),
            ]
            return 200, {"choices": [{"prompt_logprobs": told}]}
        if "return_logprob" in body:
            ids = body["input_ids"]
            return 200, {
                "meta_info": {
                    "input_token_logprobs": [
                        [value, token, None] for value, token in zip([None, *likelihoods(model, ids)], ids, strict=True)
                    ]
                }
            }
        with self.lock:
            fault = self.faults.pop(0) if self.faults else self.always
            tokens, finish = decode(model, body["prompt"], body["max_tokens"], body["stop_token_ids"])
        time.sleep(self.slow)
        if isinstance(fault, int):
            return fault, {"message": f"status {fault}"}
        text = self.template.tokenizer.decode(tokens, skip_special_tokens=True)
        choice = {
            "index": 0,
            "text": text,
            "token_ids": tokens,
            "prompt_token_ids": body["prompt"],
            "finish_reason": finish,
        }
        answer = {
            "choices": [choice],
            "usage": {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(tokens)},
        }
        return 200, answer if fault is None else fault(answer)


class _Handler(BaseHTTPRequestHandler):
    server_side: EngineServer

    def log_message(self, *words):
        pass

    def do_GET(self):
        self.reply(*self.server_side.get(self.path))

    def do_POST(self):
        side = self.server_side
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with side.lock:
            side.calls.append((self.path, body))
            side.now += 1
            side.most = max(side.most, side.now)
        try:
            answer = side.post(self.path, body)
        except ConnectionError:  # what a fault raises to hang up
            self.close_connection = True
            return
        finally:
            with side.lock:  # before the answer is out, which a client may follow up at once
                side.now -= 1
        self.reply(*answer)

    def reply(self, status, content):
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@torch.no_grad()
def decode(model, prompt, limit, stops):
    """The greedy tokens behind a prompt, with the one that ends them, and why they end."""
    tokens = []
    while len(tokens) < limit:
        tokens.append(int(model.eval()(input_ids=torch.tensor([[*prompt, *tokens]])).logits[0, -1].argmax()))
        if tokens[-1] in stops:
            return tokens, "stop"
    return tokens, "length"


@torch.no_grad()
def likelihoods(model, ids):
    """The logarithm of the probability of each token but the first."""
    scores = model.eval()(input_ids=torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return [float(row[token]) for row, token in zip(scores, ids[1:], strict=True)]
