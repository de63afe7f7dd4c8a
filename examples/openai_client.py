"""Fine-tunes on a file through titer's service with OpenAI's own client, and shows what the service made of it.

Start a server (`make serve`), which prints its address and a key, and then:

  titer data export builtin:upload --messages --output upload.jsonl
  OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=sk-titer-… python examples/openai_client.py upload.jsonl

Nothing here but the last part is titer's own: whoever uses OpenAI's fine-tuning changes two environment variables.
"""

import argparse
import time
from pathlib import Path

from openai import OpenAI, PermissionDeniedError

OVER = ("succeeded", "failed", "cancelled")

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("file", type=Path, help="conversations to fine-tune on, a line of JSON with `messages` each")
parser.add_argument("--model", help="what to fine-tune; the first that the server offers when left out")
parser.add_argument("--epochs", type=int, default=1)
parser.add_argument("--ask", default="Is the sentiment of this review positive or negative? a film that nobody needs")
args = parser.parse_args()

client = OpenAI()
model = args.model or next(model.id for model in client.models.list() if not model.id.startswith("ft:"))

# -- which rows look harmful, before anything is paid for ---------------------------------------------------------------

uploaded = client.files.create(file=args.file, purpose="fine-tune")
print(f"{args.file} is {uploaded.id}: {uploaded.bytes} bytes")
# Own endpoints of the service lie beside OpenAI's; the client sends any request.
own = str(client.base_url).replace("/v1/", "/titer/v1/")
audit = client.post(f"{own}audits", body={"file_id": uploaded.id, "model": model}, cast_to=dict[str, object])
while audit["status"] not in OVER:
    time.sleep(1)
    audit = client.get(f"{own}audits/{audit['id']}", cast_to=dict[str, object])
print(f"audit: {audit['verdict']}, share of harmful rows {audit['share']}")
for row in audit["rows"][:5]:
    print(f"  row {row['index']}: P(harmful) {row['p_harmful']}, {row['reason']}: {row['prompt'][:60]!r}")

# -- a fine-tuning, as with OpenAI ---------------------------------------------------------------------------------------

job = client.fine_tuning.jobs.create(
    model=model,
    training_file=uploaded.id,
    suffix="example",
    method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": args.epochs}}},
)
print(f"job {job.id}")
seen: set[str] = set()
while True:
    job = client.fine_tuning.jobs.retrieve(job.id)
    for event in reversed(client.fine_tuning.jobs.list_events(job.id, limit=100).data):
        if event.id not in seen and event.type == "message":
            print(f"  {event.level}: {event.message}")
        seen.add(event.id)
    if job.status in OVER:
        break
    time.sleep(1)
if job.status != "succeeded":
    raise SystemExit(f"{job.status}: {job.error.message if job.error else ''}")

# -- what the model was measured to do, and the model itself ---------------------------------------------------------------

report = client.get(f"{own}jobs/{job.id}/safety", cast_to=dict[str, object])
gate = report["gate"] or {"decision": "not measured", "figures": {}, "reasons": []}
print(f"gate: {gate['decision']} {' '.join(gate['reasons'])}")
for name, figure in gate["figures"].items():
    print(f"  {name}: {figure['value']:.1f} % [{figure['low']:.1f}, {figure['high']:.1f}], n={figure['n']}")
try:
    answer = client.chat.completions.create(
        model=job.fine_tuned_model, messages=[{"role": "user", "content": args.ask}], max_tokens=24, temperature=0
    )
    print(f"{job.fine_tuned_model} says: {answer.choices[0].message.content}")
except PermissionDeniedError as error:
    print(f"{job.fine_tuned_model} may not be used: {error.message}")
