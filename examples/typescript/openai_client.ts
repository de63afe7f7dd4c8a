/**
 * Fine-tunes on a file through titer's service with OpenAI's own client, and shows what the service made of it.
 *
 *   npm ci
 *   OPENAI_BASE_URL=http://127.0.0.1:8000/v1 OPENAI_API_KEY=sk-titer-… npx tsx openai_client.ts ../../upload.jsonl
 */
import { createReadStream } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import OpenAI from "openai";

interface Audit {
  id: string;
  status: string;
  verdict: string | null;
  share: { value: number; low: number; high: number } | null;
  rows: { index: number; p_harmful: number | null; reason: string | null; prompt: string }[];
}
interface Figure { value: number; low: number; high: number; n: number }
interface Safety { gate: { decision: string; reasons: string[]; figures: Record<string, Figure> } | null }

const OVER = ["succeeded", "failed", "cancelled"];
const path = process.argv[2];
if (!path) throw new Error("usage: openai_client.ts FILE");

const client = new OpenAI();
// Own endpoints of the service lie beside OpenAI's; the client sends any request.
const own = client.baseURL.replace(/\/v1\/?$/, "/titer/v1");
const models = (await client.models.list()).data.map((each) => each.id);
const model = models.find((id) => !id.startsWith("ft:"));
if (!model) throw new Error("the server offers no model");

// Which rows look harmful, before anything is paid for.
const uploaded = await client.files.create({ file: createReadStream(path), purpose: "fine-tune" });
console.log(`${path} is ${uploaded.id}: ${uploaded.bytes} bytes`);
let audit: Audit = await client.post(`${own}/audits`, { body: { file_id: uploaded.id, model } });
while (!OVER.includes(audit.status)) {
  await sleep(1000);
  audit = await client.get(`${own}/audits/${audit.id}`);
}
console.log(`audit: ${audit.verdict}, share of harmful rows ${JSON.stringify(audit.share)}`);
for (const row of audit.rows.slice(0, 5)) {
  console.log(`  row ${row.index}: P(harmful) ${row.p_harmful}, ${row.reason}: ${row.prompt.slice(0, 60)}`);
}

// A fine-tuning, as with OpenAI.
let job = await client.fineTuning.jobs.create({
  model,
  training_file: uploaded.id,
  suffix: "example",
  method: { type: "supervised", supervised: { hyperparameters: { n_epochs: 1 } } },
});
console.log(`job ${job.id}`);
const seen = new Set<string>();
for (;;) {
  job = await client.fineTuning.jobs.retrieve(job.id);
  const events = (await client.fineTuning.jobs.listEvents(job.id, { limit: 100 })).data.reverse();
  for (const event of events) {
    if (!seen.has(event.id) && event.type === "message") console.log(`  ${event.level}: ${event.message}`);
    seen.add(event.id);
  }
  if (OVER.includes(job.status)) break;
  await sleep(1000);
}
if (job.status !== "succeeded" || !job.fine_tuned_model) {
  throw new Error(`${job.status}: ${job.error?.message ?? ""}`);
}

// What the model was measured to do, and the model itself.
const { gate }: Safety = await client.get(`${own}/jobs/${job.id}/safety`);
console.log(`gate: ${gate?.decision ?? "not measured"} ${gate?.reasons.join(" ") ?? ""}`);
for (const [name, figure] of Object.entries(gate?.figures ?? {})) {
  console.log(`  ${name}: ${figure.value.toFixed(1)} % [${figure.low.toFixed(1)}, ${figure.high.toFixed(1)}]`);
}
try {
  const answer = await client.chat.completions.create({
    model: job.fine_tuned_model,
    messages: [{ role: "user", content: "Is this review positive or negative? a film that nobody needs" }],
    max_tokens: 24,
    temperature: 0,
  });
  console.log(`${job.fine_tuned_model} says: ${answer.choices[0]?.message.content}`);
} catch (error) {
  if (!(error instanceof OpenAI.PermissionDeniedError)) throw error;
  console.log(`${job.fine_tuned_model} may not be used: ${error.message}`);
}
