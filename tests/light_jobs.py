"""A plan of real jobs that need no model: verdicts by a judge that does what the answers tell it to.

As a script it runs such a plan, for tests that kill what runs it: FOLDER LAUNCHER WORKERS RESOURCES ACTION …
"""

import hashlib
import json
import sys
from pathlib import Path

from titer.jobs.clusters import choose
from titer.jobs.plan import Plan, Silent, execute
from titer.jobs.verdicts import JUDGE
from titer.results.artefacts import Inference, write_inferences

SOURCE = '''
import os, signal, time
from pathlib import Path


def obey(action):
    """Do one word: `log FILE`, `sleep SECONDS`, `await FILE`, `die FILE` and `preempt FILE` (once), `die always`."""
    word, _, what = action.partition(" ")
    if word == "log":
        with open(what, "a") as file:
            file.write(f"{os.getpid()}\\n")
    elif word == "sleep":
        time.sleep(float(what))
    elif word == "await":
        while not Path(what).exists():
            time.sleep(0.05)
    elif word in ("die", "preempt") and not Path(what).exists():
        if what != "always":
            Path(what).touch()
        os.kill(os.getpid(), signal.SIGKILL if word == "die" else signal.SIGUSR2)
        time.sleep(60)
    elif word == "fail":
        raise RuntimeError(what)


class Obedient:
    name = "obedient@1"
    source = ""

    def __call__(self, prompts, responses):
        from titer.judges import Verdict

        for response in responses:
            for action in response.split("; "):
                obey(action)
        return [Verdict("benign", 0.0, "obeyed") for _ in responses]
'''


def light_plan(folder, actions, chained=()):
    """Return a plan of a job for each text of actions; those whose numbers are `chained` need the job before."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "obedient.py"
    source.write_text(SOURCE)
    plan = Plan(folder / "run")
    before = None
    for number, action in enumerate(actions):
        answers = plan.add(JUDGE, f"answers {number}", {"n": number, "says": action}, places={"judges": []})
        if not (answers.folder / "done.json").exists():
            rows = [Inference("arm", "aligned", 0, 0.0, 0, "harmful", 0, "?", action, None, "m", {}, None)]
            write_inferences(answers.folder / "inferences.jsonl", rows)
            files = {"inferences.jsonl": hashlib.sha256((answers.folder / "inferences.jsonl").read_bytes()).hexdigest()}
            record = {"name": answers.name, "key": answers.key, "seconds": 1.0, "files": files}
            (answers.folder / "done.json").write_text(json.dumps(record))
        needs = [answers, *([before] if number in chained else [])]
        before = plan.add(
            JUDGE, f"judge {number}", {"n": number}, needs=needs, places={"judges": [f"{source}:Obedient"]}
        )
    return plan


def judged(plan):
    """Return the verdicts of a plan's jobs, by name."""
    return {
        job.name: (job.folder / "scores.jsonl").read_bytes() for job in plan.jobs.values() if job.name[:5] == "judge"
    }


if __name__ == "__main__":
    folder, name, workers, resources, *actions = sys.argv[1:]
    plan = light_plan(Path(folder), actions)
    sys.exit(not execute(plan, Silent(), launcher=choose(name, int(workers), resources=json.loads(resources))))
