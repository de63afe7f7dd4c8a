"""The chat engine without a server: batches that rows join and leave, adapters that come and go, models that need another way."""

import copy
import json
import random
import shutil
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
import torch
from chatting import make_adapter, until

from titer.data.records import Message, Record
from titer.errors import TiterError
from titer.infer.generation import generate
from titer.jobs.answers import answer
from titer.models import Template, add_adapter, load_model, load_tokenizer
from titer.service.chat.bank import BASE, Bank
from titer.service.chat.batch import Batch, find_way
from titer.service.chat.decoder import Decoder
from titer.service.chat.engine import Engine
from titer.service.chat.pieces import Adapter, Bounds, Done, Piece, Sampling, Ticket
from titer.service.chat.remote import Remote
from titer.service.chat.sampling import choose, likelihood, penalised, probabilities
from titer.service.chat.text import Text
from titer.service.refusals import Refused

PROMPTS = ["what is bread?", "?", "what is the capital of France, please?", "name a lock and a film and salt"]


class Heard:
    """What a listener was told."""

    def __init__(self):
        self.pieces, self.end = [], None
        self._over = threading.Event()

    def __call__(self, what):
        if isinstance(what, Piece):
            self.pieces.append(what)
        else:
            self.end = what
            self._over.set()

    def wait(self, choice=0):
        assert self._over.wait(30)
        if isinstance(self.end, Exception):
            raise self.end
        return "".join(piece.text for piece in self.pieces if piece.choice == choice)


@pytest.fixture
def template(tiny_folder):
    return Template(load_tokenizer(str(tiny_folder)))


@pytest.fixture
def folders(tiny, tmp_path):
    """Four adapters of different ranks and layers."""
    targets = [("q_proj",), ("q_proj", "down_proj"), ("v_proj", "gate_proj"), ("o_proj",)]
    return [
        make_adapter(copy.deepcopy(tiny), tmp_path / f"adapter{place}", place, rank=place + 1, targets=some)
        for place, some in enumerate(targets)
    ]


@pytest.fixture
def engine(folders):
    """An engine whose adapters are named by their place in `folders`."""
    fetched = []

    def fetch(adapter, folder):
        fetched.append(adapter.name)
        return folders[int(adapter.name)]

    gone = []
    made = Engine(fetch, lambda adapters: [one.name for one in adapters if one.name in gone], Bounds())
    made.fetched, made.gone = fetched, gone
    yield made
    made.close()


def request(engine, folder, template, text, adapter=None, choices=1, org="", **settings):
    heard = Heard()
    prompt = template.prompt_ids([{"role": "user", "content": text}])
    named = None if adapter is None else Adapter(str(adapter), "org", f"models/{adapter}")
    sampling = Sampling(**{"max_tokens": 10, "temperature": 0.0, **settings})
    ticket = Ticket(str(folder), template, prompt, sampling, heard, named, choices, org)
    engine.submit(ticket)
    heard.ticket = ticket
    return heard


def alone(folder, adapter, text, tokens=10):
    """What titer's own decoding answers; asked before an engine loads anything, as two threads must not load models at once."""
    record = Record((Message("user", text),), (Message("assistant", "."),))
    return answer(str(folder), adapter, [(record, tokens)])[0]


# --- answers ----------------------------------------------------------------------------------------------------------


def test_rows_of_all_adapters_say_together_what_each_says_alone(engine, tiny_folder, template, folders):
    wanted = [(text, adapter) for text in PROMPTS for adapter in (None, 0, 1, 2, 3)]
    expected = [alone(tiny_folder, None if adapter is None else folders[adapter], text) for text, adapter in wanted]
    heard = [request(engine, tiny_folder, template, text, adapter) for text, adapter in wanted]
    found = [one.wait().strip() for one in heard]
    assert found == expected
    assert len(set(found)) > 10
    assert sorted(engine.fetched) == ["0", "1", "2", "3"]


def test_rows_that_join_late_and_leave_early_do_not_disturb_in_float64(tiny_folder, template, folders):
    """Logits, not only tokens: rows of three owners join one after the other, and the longest leaves first."""
    bank = Bank(str(tiny_folder), template)
    for model in (bank._base, bank._model):
        model.double()
    owners = [BASE]
    for place in (0, 2):
        layers = {name: (down.double(), up.double(), by) for name, (down, up, by) in bank.read(folders[place]).items()}
        assert bank.add(str(place), layers, 4)
        owners.append(bank.hold(str(place), 1))
    models = [load_model(str(tiny_folder)).double()]
    models += [add_adapter(load_model(str(tiny_folder)), folders[place]).double() for place in (0, 2)]
    rows = {}
    running, names = None, []

    def check(scores):
        for place, name in enumerate(names):
            wanted = models[owners.index(name[1])](input_ids=torch.tensor([rows[name]])).logits[0, -1]
            assert torch.allclose(scores[place], wanted, atol=1e-10, rtol=0)

    def advance(batch, scores):
        tokens = scores.argmax(-1).tolist()
        for name, token in zip(names, tokens, strict=True):
            rows[name].append(token)
        batch.go_on(range(len(batch)), tokens)

    with torch.no_grad():
        for number, text in enumerate(PROMPTS):
            owner = owners[(2 * number) % 3]
            ids = template.prompt_ids([{"role": "user", "content": text}])
            rows[(number, owner)] = list(ids)
            new = Batch.begin(bank, [ids], [owner])
            before, names = names, [(number, owner)]
            scores = new.step()
            check(scores)
            advance(new, scores)
            if running is None:
                running = new
            else:
                order = running.join(new)
                names = [[*before, *names][row] for row in order]
                assert running.owners == sorted(running.owners)
            for _ in range(3):
                scores = running.step()
                check(scores)
                advance(running, scores)
        while len(running) > 1:
            longest = max(range(len(running)), key=lambda row: len(rows[names[row]]))
            keep = [row for row in range(len(running)) if row != longest]
            running.select(keep)
            names = [names[row] for row in keep]
            width = running.mask.shape[1]
            running.trim()
            assert running.mask.shape[1] == max(len(rows[name]) for name in names) <= width
            scores = running.step()
            check(scores)
            advance(running, scores)


def test_a_sampled_answer_does_not_depend_on_its_batch(engine, tiny_folder, template):
    settings = {"temperature": 1.3, "top_p": 0.95, "presence_penalty": 0.3, "max_tokens": 24}
    single = [request(engine, tiny_folder, template, PROMPTS[0], seed=seed, **settings).wait() for seed in range(6)]
    heard = [request(engine, tiny_folder, template, PROMPTS[0], seed=seed, **settings) for seed in range(6)]
    assert [one.wait() for one in heard] == single
    assert len(set(single)) == 6


def test_tokens_are_counted_over_all_choices(engine, tiny_folder, template):
    heard = request(engine, tiny_folder, template, "?", choices=3, temperature=1.0, max_tokens=5)
    heard.wait()
    assert isinstance(heard.end, Done)
    assert heard.end.tokens <= 15
    assert {piece.choice for piece in heard.pieces if piece.finish} == {0, 1, 2}


# --- adapters ---------------------------------------------------------------------------------------------------------


def test_the_adapter_that_was_not_used_for_longest_makes_room(engine, tiny_folder, template):
    engine.bounds = Bounds(adapters=2)
    for adapter in (0, 1, 0, 2, 0, 1):
        request(engine, tiny_folder, template, "?", adapter).wait()
    assert engine.fetched == ["0", "1", "2", "1"]
    assert engine.load["adapters"] == 2


def test_adapters_in_use_keep_their_place_and_others_wait(engine, tiny_folder, template, folders):
    engine.bounds = Bounds(adapters=1)
    expected = [alone(tiny_folder, folders[adapter], PROMPTS[0]) for adapter in (0, 1, 2, 0, 1)]
    heard = [request(engine, tiny_folder, template, PROMPTS[0], adapter) for adapter in (0, 1, 2, 0, 1)]
    assert [one.wait().strip() for one in heard] == expected


def test_a_model_that_was_deleted_or_held_leaves_the_memory(engine, tiny_folder, template, monkeypatch):
    for adapter in (0, 1):
        request(engine, tiny_folder, template, "?", adapter).wait()
    engine.forget("0")
    until(lambda: engine.load["adapters"] == 1)
    monkeypatch.setattr("titer.service.chat.engine.LOOK", 0)
    engine.gone.append("1")
    request(engine, tiny_folder, template, "?").wait()
    until(lambda: engine.load["adapters"] == 0)
    layers = [module for module in engine._now.bank._model.modules() if hasattr(module, "adapters")]
    assert layers
    assert not any(layer.adapters for layer in layers)


def test_an_adapter_that_is_more_than_lora_is_refused(tiny, tiny_folder, template, tmp_path):
    from peft import LoraConfig, get_peft_model

    bank = Bank(str(tiny_folder), template)
    dora = LoraConfig(r=2, target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM")
    get_peft_model(copy.deepcopy(tiny), dora).save_pretrained(tmp_path / "dora")
    whole = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["norm"], task_type="CAUSAL_LM")
    get_peft_model(copy.deepcopy(tiny), whole).save_pretrained(tmp_path / "whole")
    for name in ("dora", "whole"):
        with pytest.raises(TiterError, match="more than LoRA"):
            bank.read(tmp_path / name)


def test_another_base_waits_for_its_turn_and_the_first_leaves_the_memory(
    engine, tiny, tiny_folder, template, tmp_path, tokenizer
):
    other = copy.deepcopy(tiny)
    with torch.no_grad():
        other.model.layers[0].mlp.down_proj.weight.mul_(-1)
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    bases = [tiny_folder, tmp_path / "other", tiny_folder, tmp_path / "other"]
    expected = [alone(base, None, PROMPTS[0]) for base in bases]
    heard = [request(engine, base, template, PROMPTS[0]) for base in bases]
    assert [one.wait().strip() for one in heard] == expected
    assert engine.load["bases"] == 1
    assert heard[0].wait() != heard[1].wait()


def test_a_base_that_cannot_be_loaded_fails_its_requests_alone(engine, tiny_folder, template, caplog):
    with pytest.raises(Refused, match="could not answer"):
        request(engine, "/nowhere", template, "?").wait()
    assert "/nowhere" in caplog.text
    request(engine, tiny_folder, template, "?").wait()


def test_weights_that_ran_away_fail_their_own_rows(engine, tiny, tiny_folder, template, folders, monkeypatch):
    step = Batch.step

    def broken(self):
        scores = step(self)
        for row, owner in enumerate(self.owners):
            if owner != BASE:
                scores[row] = torch.nan
        return scores

    monkeypatch.setattr(Batch, "step", broken)
    heard = [request(engine, tiny_folder, template, "?", adapter) for adapter in (None, 0, None)]
    with pytest.raises(Refused, match="could not answer"):
        heard[1].wait()
    assert heard[0].wait() == heard[2].wait()
    engine.forget("0")
    until(lambda: engine.load["adapters"] == 0)  # which it does not while answers hold it


def test_what_nobody_waits_for_stops(engine, tiny_folder, template, monkeypatch):
    step = Decoder.step
    monkeypatch.setattr(Decoder, "step", lambda self: (time.sleep(0.02), step(self))[1])
    gone = request(engine, tiny_folder, template, PROMPTS[0], 0, temperature=2.0, max_tokens=400)
    stays = request(engine, tiny_folder, template, PROMPTS[1], 1, max_tokens=30)
    until(lambda: gone.pieces)
    gone.ticket.cancel()
    stays.wait()
    assert len(gone.pieces) < 60
    assert engine.load["answers"] == 0
    engine.forget("0")
    until(lambda: engine.load["adapters"] == 1)


# --- turns ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def blocked(engine, tiny_folder, template, monkeypatch):
    """An engine with room for one answer, which is being given until the event is set; later ones are told in order."""
    engine.bounds = Bounds(answers=1, waiting=4)
    go, order, step, begin = threading.Event(), [], Decoder.step, Decoder.begin

    def waiting(self):
        go.wait(10)
        step(self)

    def noting(self, tickets):
        order.extend(ticket.org for ticket, _ in tickets)
        begin(self, tickets)

    monkeypatch.setattr(Decoder, "step", waiting)
    monkeypatch.setattr(Decoder, "begin", noting)
    first = request(engine, tiny_folder, template, PROMPTS[0], org="large")
    until(lambda: order)
    return SimpleNamespace(go=go, order=order, first=first)


def test_organisations_take_turns(engine, tiny_folder, template, blocked):
    heard = [request(engine, tiny_folder, template, "?", org=org) for org in ("large", "large", "large", "small")]
    blocked.go.set()
    for one in heard:
        one.wait()
    assert blocked.order == ["large", "small", "large", "large", "large"]


def test_an_organisation_that_fills_the_line_gives_way(engine, tiny_folder, template, blocked):
    heard = [request(engine, tiny_folder, template, "?", org="large") for _ in range(4)]
    with pytest.raises(Refused) as caught:
        request(engine, tiny_folder, template, "?", org="large")
    assert caught.value.status == 429
    small = request(engine, tiny_folder, template, "?", org="small")
    with pytest.raises(Refused):
        heard[-1].wait()
    blocked.go.set()
    for one in (*heard[:-1], small, blocked.first):
        one.wait()


# --- models that need another way -------------------------------------------------------------------------------------


def windowed(tokenizer, folder):
    """A random Mistral whose layers see 8 tokens."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    more = {"num_key_value_heads": 2, "max_position_embeddings": 512, "sliding_window": 8, "initializer_range": 0.3}
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": None}
    config = MistralConfig(vocab_size=len(tokenizer), **sizes, **more, **ends)
    MistralForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_a_model_with_windows_is_decoded_row_by_row(engine, tokenizer, template, tmp_path):
    folder = windowed(tokenizer, tmp_path / "windowed")
    assert find_way(Bank(str(folder), template)) == "alone"
    expected = [alone(folder, None, text) for text in PROMPTS]
    heard = [request(engine, folder, template, text, choices=2) for text in PROMPTS]
    assert [one.wait().strip() for one in heard] == expected
    assert [one.wait(1).strip() for one in heard] == expected
    assert engine.load["answers"] == 0


def test_a_model_whose_cache_is_wrong_is_decoded_without_one(engine, tiny_folder, template, monkeypatch):
    forward = Bank.forward

    def forgetful(self, owners, **inputs):
        if inputs.get("past_key_values") is not None:
            inputs |= {"past_key_values": None, "attention_mask": None}
        return forward(self, owners, **inputs)

    monkeypatch.setattr(Bank, "forward", forgetful)
    expected = [alone(tiny_folder, None, text) for text in PROMPTS]
    heard = [request(engine, tiny_folder, template, text) for text in PROMPTS]
    assert [one.wait().strip() for one in heard] == expected
    assert engine._now.way == "plain"


def test_the_tiny_model_is_decoded_together(tiny_folder, template):
    assert find_way(Bank(str(tiny_folder), template)) == "together"


# --- text and numbers -------------------------------------------------------------------------------------------------


def test_text_comes_in_whole_characters(tokenizer):
    whole = "naïve 日本 🙂 – ok"
    ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert len(ids) > len(whole.split())
    text, found = Text(lambda some: tokenizer.decode(some)), ""
    told = []
    for token in ids:
        text.add(token)
        piece, some = text.take()
        assert "\ufffd" not in piece
        found += piece
        told += some
        assert whole.startswith(found)
    text.close()
    piece, some = text.take()
    assert found + piece == whole
    assert [*told, *some] == list(range(len(ids)))


def test_half_a_character_at_the_end_stays_what_it_is(tokenizer):
    ids = tokenizer("ok 🙂", add_special_tokens=False)["input_ids"][:-1]
    text = Text(lambda some: tokenizer.decode(some))
    for token in ids:
        assert not text.add(token)
    assert text.take()[0] == "ok "
    text.close()
    assert text.take()[0] == tokenizer.decode(ids).removeprefix("ok ")


@pytest.mark.parametrize("stop", [["cd"], ["bcde"], ["zz", "d"], ["abx", "ef"], ["f"], ["abcdefg"]])
def test_stop_texts_are_found_across_tokens_and_never_said(stop):
    letters = "abcdef"
    text, found, told = Text(lambda some: "".join(letters[one] for one in some), stop), "", []
    for token in range(len(letters)):
        ended = text.add(token)
        if ended:
            break
        piece, some = text.take()
        found += piece
        told += some
    text.close()
    piece, some = text.take()
    found, told = found + piece, [*told, *some]
    places = [letters.find(one) for one in stop if one in letters]
    wanted = letters[: min(places)] if places else letters
    assert found == wanted
    assert text.stopped == bool(places)
    assert told == list(range(len(wanted)))


def test_penalties_and_top_p_are_openais():
    scores = torch.tensor([2.0, 1.0, 0.0, -1.0], dtype=torch.float64)
    settings = Sampling(1, frequency_penalty=0.5, presence_penalty=1.0)
    assert penalised(scores, settings, {0: 2, 3: 1}).tolist() == [0.0, 1.0, 0.0, -2.5]
    plain = scores.softmax(-1)
    assert torch.allclose(probabilities(scores, 1.0, 1.0), plain)
    assert probabilities(scores, 1.0, 0.7).nonzero().flatten().tolist() == [0, 1]
    assert probabilities(scores, 1.0, 1e-9).nonzero().flatten().tolist() == [0]
    assert probabilities(scores, 1e-320, 1.0).tolist() == [1, 0, 0, 0]
    found = likelihood(scores, 2, 2, lambda ids: f"<{ids[0]}>")
    assert found.logprob == pytest.approx(float(plain.log()[2]))
    assert [text for text, _ in found.top] == ["<0>", "<1>"]


def test_tokens_are_drawn_as_often_as_they_are_likely():
    scores, numbers = torch.tensor([1.0, 0.0, 2.0]), random.Random(0)
    counts = Counter(choose(scores, Sampling(1), numbers, {}) for _ in range(4000))
    for token, share in enumerate(scores.softmax(-1).tolist()):
        assert counts[token] / 4000 == pytest.approx(share, abs=0.03)


# --- another server ---------------------------------------------------------------------------------------------------


class StandIn(ThreadingHTTPServer):
    """Stands in for vLLM: loads adapters by name, and decodes the token ids it is given with the tiny model."""

    daemon_threads = True

    def __init__(self, folder):
        super().__init__(("127.0.0.1", 0), Handler)
        self.base, self.template = load_model(str(folder)), Template(load_tokenizer(str(folder)))
        self.loras, self.calls, self.lock = {}, [], threading.Lock()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *words):
        pass

    def reply(self, status, text, kind="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server.calls.append((self.path, body))
        if self.path == "/v1/load_lora_adapter":
            if body["lora_name"] in server.loras:
                return self.reply(400, json.dumps({"message": "The lora adapter has already been loaded."}))
            server.loras[body["lora_name"]] = add_adapter(copy.deepcopy(server.base), body["lora_path"])
            return self.reply(200, "Success")
        if self.path == "/v1/unload_lora_adapter":
            server.loras.pop(body["lora_name"])
            return self.reply(200, "Success")
        model = {"tiny": server.base, **server.loras}.get(body["model"])
        if model is None:
            return self.reply(404, json.dumps({"error": {"message": "The model does not exist."}}))
        with server.lock:
            text = generate(model, server.template, [body["prompt"]], body["max_tokens"])[0]
        logprobs = {"tokens": [text], "token_logprobs": [-0.5], "top_logprobs": [{text: -0.5, "no": -2.0}]}
        events = [
            {
                "choices": [
                    {"index": place, "text": part, "logprobs": logprobs if "logprobs" in body and not place else None}
                ]
            }
            for place in range(body["n"])
            for part in (text[:2], text[2:])
        ]
        events += [{"choices": [{"index": place, "text": "", "finish_reason": "stop"}]} for place in range(body["n"])]
        events += [{"choices": [], "usage": {"completion_tokens": 7}}]
        lines = [f"data: {json.dumps(event)}\n\n" for event in events]
        return self.reply(200, "".join([*lines, "data: [DONE]\n\n"]), "text/event-stream")


@pytest.fixture
def other_server(tiny_folder):
    server = StandIn(tiny_folder)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def remote(other_server, folders, tmp_path):
    def fetch(adapter, folder):
        shutil.copytree(folders[int(adapter.name)], folder, dirs_exist_ok=True)
        return folder

    host, port = other_server.server_address
    made = Remote(f"http://{host}:{port}", tmp_path / "shared", fetch, lambda adapters: [], Bounds(adapters=2))
    yield made
    made.close()


def test_another_server_answers_from_token_ids_with_adapters_it_is_handed(
    remote, other_server, tiny_folder, template, folders, tmp_path
):
    wanted = [None, 0, 1, 0, 2]
    for adapter in wanted:
        heard = request(remote, "tiny", template, "hello <|im_end|>", adapter, choices=2, top_logprobs=2)
        folder = None if adapter is None else folders[adapter]
        assert heard.wait().strip() == alone(tiny_folder, folder, "hello <|im_end|>")
        assert heard.wait(1) == heard.wait(0)
        assert heard.end.tokens == 7
        assert [one.top[0][1] for piece in heard.pieces for one in piece.likelihoods] == [-0.5, -0.5]
    loads = [body["lora_name"] for path, body in other_server.calls if path == "/v1/load_lora_adapter"]
    assert loads == ["0", "1", "2"]
    assert sorted(other_server.loras) == ["0", "2"]
    assert sorted(path.name for path in (tmp_path / "shared").iterdir()) == ["0", "2"]
    remote.forget("0")
    assert sorted(other_server.loras) == ["2"]


def test_a_server_that_was_started_anew_is_handed_the_adapter_again(remote, other_server, template):
    first = request(remote, "tiny", template, "?", 1).wait()
    other_server.loras.clear()
    assert request(remote, "tiny", template, "?", 1).wait() == first


def test_a_server_that_is_away_fails_requests_and_tells_nothing_of_it(remote, other_server, template, caplog):
    other_server.shutdown()
    other_server.server_close()
    with pytest.raises(Refused, match="could not answer") as caught:
        request(remote, "tiny", template, "?").wait()
    assert caught.value.status == 500
    assert "127.0.0.1" not in str(caught.value)
    until(lambda: remote.load["answers"] == 0)


def test_a_server_that_breaks_off_fails_the_request(remote, other_server, template, monkeypatch):
    def broken(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.reply(200, 'data: {"choices": [{"index": 0, "text": "a"}]}\n\n', "text/event-stream")

    monkeypatch.setattr(Handler, "do_POST", broken)
    heard = request(remote, "tiny", template, "?")
    with pytest.raises(Refused):
        heard.wait()
    assert [piece.text for piece in heard.pieces] == ["a"]


def test_chats_are_forwarded_by_the_policy(client, service, other_server, tiny_folder, tmp_path):
    from titer.service import policy

    host, port = other_server.server_address
    text = f"models: {{tiny: {tiny_folder}}}\nchat: {{forward: 'http://{host}:{port}', forward_folder: {tmp_path}}}"
    with service.database.writing() as session:
        policy.replace(session, text, "test")
    body = {"model": "tiny", "messages": [{"role": "user", "content": "what is bread?"}], "max_tokens": 10}
    found = client.post("/v1/chat/completions", json=body).json()
    assert found["choices"][0]["message"]["content"].strip() == alone(tiny_folder, None, "what is bread?")
    assert found["usage"]["completion_tokens"] == 7
    assert [path for path, _ in other_server.calls] == ["/v1/completions"]


@pytest.mark.parametrize("chat", ["{forward: 'ftp://x', forward_folder: /x}", "{forward: 'http://x:1'}"])
def test_a_policy_that_forwards_nowhere_is_refused(chat):
    from titer.service import policy

    with pytest.raises(TiterError, match=r"chat\.forward"):
        policy.parse(f"chat: {chat}")
