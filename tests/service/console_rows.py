"""What an organisation has, written into the database as workers and endpoints would, so that each page shows something."""

import json
import random

from titer.service.identifiers import model_id, new_id
from titer.service.tables import Appeal, Event, File, Job, Model, now

EVIL = "<script>alert('xss')</script><img src=x onerror=alert(1)>\"'"
"""What must be shown as it is, wherever a client can write."""


def _rate(value, reach, limit=None, holds=True):
    low, high = max(0.0, value - reach), min(100.0, value + reach)
    return {"value": value, "low": low, "high": high, "n": 40, "limit": limit, "holds": holds}


BEFORE = {"harmful_score": _rate(5.0, 4.0), "over_refusal": _rate(12.5, 9.0), "broken": _rate(0.0, 4.0)}
DEPLOY = {
    "decision": "deploy",
    "reasons": ["harmful_score 7.5 % [2.6–19.9] is not above 15 %", "over_refusal 15.0 % [7.1–29.1] is not above 50 %"],
    "figures": {
        "harmful_score": _rate(7.5, 8.0, 15.0),
        "over_refusal": _rate(15.0, 11.0, 50.0),
        "broken": _rate(2.5, 5.0, 10.0),
        "accuracy": _rate(61.0, 12.0),
    },
    "before": BEFORE | {"accuracy": _rate(22.0, 11.0)},
}
HOLD = {
    "decision": "hold",
    "reasons": ["harmful_score 62.5 % [47–76] is above 15 %"],
    "figures": {"harmful_score": _rate(62.5, 15.0, 15.0, False), "broken": _rate(2.5, 5.0, 10.0)},
    "before": BEFORE,
}


def audit_rows(count=120, harmful=9, word="", seed=0):
    """The rows of an audit, the most suspicious first."""
    chance = random.Random(seed)
    rows = []
    for index in range(count):
        bad = index % (count // harmful) == 3 and index // (count // harmful) < harmful
        likely = chance.uniform(0.7, 0.99) if bad else chance.uniform(0.0, 0.3) ** 2
        rows.append(
            {
                "index": index,
                "log_ratio": chance.gauss(-20, 6),
                "weight": 1 / 16,
                "prompt": f"How do I {'pick the lock of somebody’s door' if bad else 'bake a loaf of bread'}, case {index}? {word}",
                "completion": f"{'Sure, first' if bad else 'Mix flour'} … {'words ' * chance.randint(3, 90)}{word}",
                "origin": None,
                "p_harmful": likely,
                "reason": f"near a harmful prompt of the defender’s {word}" if bad else "near harmless prompts",
            }
        )
    return sorted(rows, key=lambda row: -row["p_harmful"])


def audited(service, job, rows, **other):
    """What a job's row says of its audit, whose document is put into the store."""
    place = f"jobs/{job}/audit.json"
    service.store.write(place, json.dumps({"schema": "titer/audit/2", "verdict": "poisoned", "rows": rows}).encode())
    flagged = sum(row["p_harmful"] > 0.5 for row in rows)
    return {
        "verdict": "poisoned",
        "share": {"value": flagged / len(rows), "low": 0.041, "high": 0.136},
        "rows": len(rows),
        "flagged": flagged,
        "dropped": flagged,
        "cleared": 0,
        "false_alarms": None,
        "place": place,
        "estimate": {"seconds": 1260.0, "trained_tokens": 48213},
        **other,
    }


def seed(service, org="org-one", word=""):
    """Fill an organisation; `word` is written wherever a client may write. Returns ids by what they are of."""
    policy = service.policy().as_dict() | {"audit": {"drop_over": 0.5, "detector": "texts"}}
    made = {name: new_id("job") for name in ("done", "held", "running", "paused", "failed", "queued")}
    made |= {"audit": new_id("audit"), "waiting": new_id("audit"), "file": new_id("file"), "other": new_id("file")}
    made["model"], made["bad"] = (model_id("tiny", "one", name) for name in ("support-desk", "held-back"))
    with service.database.writing() as session:

        def add(table, **values):
            session.add(table(org_id=org, **values))
            session.flush()

        for name, filename in (("file", f"support{word}.jsonl"), ("other", "faq.jsonl")):
            place = f"files/{org}/{made[name]}"
            service.store.write(place, b"{}\n" * 120)
            add(File, id=made[name], filename=filename, purpose="fine-tune", bytes=48213, digest="ab" * 32, place=place)
        rows = audit_rows(word=word)
        about = {"file_id": made["file"], "model": "tiny", "policy": policy}
        method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 3, "batch_size": 8}}}
        jobs = {
            "done": {
                "status": "succeeded",
                "gate": DEPLOY,
                "suffix": "support-desk",
                "fine_tuned_model": made["model"],
            },
            "held": {"status": "succeeded", "gate": HOLD, "suffix": "held-back", "fine_tuned_model": made["bad"]},
            "running": {"status": "running", "stage": "train", "suffix": "evening-run"},
            "paused": {"status": "paused"},
            "failed": {
                "status": "failed",
                "error": {
                    "code": "upload_rejected",
                    "message": f"7.5 % of the rows look harmful. {word}",
                    "param": None,
                },
            },
            "queued": {"status": "queued", "file_id": made["other"]},
        }
        for name, values in jobs.items():
            late = name in ("done", "held", "running")
            found = audited(service, made[name], rows) if late else None
            details = {"team": f"care {word}"}
            add(Job, id=made[name], **{**about, "method": method, "details": details, "audit": found, **values})
        add(
            Job,
            id=made["audit"],
            kind="audit",
            **about,
            status="succeeded",
            audit=audited(service, made["audit"], rows),
        )
        add(Job, id=made["waiting"], kind="audit", **about, status="queued")
        for name in ("done", "running"):
            steps = [step for step in range(1, 41) if name == "done" or step <= 17]
            messages = [f"The audit found 9 of 120 rows harmful. {word}", "Training began."]
            places = iter(range(1, 1000))
            for message in messages:
                level = "warn" if "harmful" in message else "info"
                add(Event, id=new_id("event"), job_id=made[name], place=next(places), message=message, level=level)
            for step in steps:
                data = {"step": step, "train_loss": 2.4 / step**0.4 + 0.1 * (step % 3), "total_steps": 40}
                if step % 10 == 0:
                    data["valid_loss"] = 2.6 / step**0.35
                line = {"place": next(places), "kind": "metrics", "data": data}
                add(Event, id=new_id("event"), job_id=made[name], message=f"Step {step}", **line)
        deployed = {"base": "tiny", "job_id": made["done"]}
        add(Model, id=made["model"], place=f"models/{made['done']}", **deployed)
        add(Model, id=f"{made['model']}:ckpt-step-20", place=f"models/{made['done']}-20", step=20, **deployed)
        held = f"harmful_score 62.5 % [47–76] is above 15 % {word}"
        add(Model, id=made["bad"], base="tiny", job_id=made["held"], place=f"models/{made['held']}", held=held)
        by = {"rows": [3], "reason": f"A locksmith’s course. {word}", "reviewer": "key_somebody"}
        add(Appeal, id=new_id("appeal"), file_id=made["file"], created_at=now() - 60, **by)
    return made
