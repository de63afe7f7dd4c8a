"use strict";
// Everything works without this script except the chat; it keeps pages up to date and saves keystrokes.

const headers = { "X-Titer-Part": "1" };

// A page that changes by itself: those of its parts that have changed are replaced, so that focus and selection stay.
for (const live of document.querySelectorAll("[data-live]")) {
  const tick = async () => {
    let over = Boolean(live.querySelector("[data-over]"));
    if (over) return;
    if (!document.hidden) {
      const answer = await fetch(live.dataset.live, { headers }).catch(() => null);
      if (answer && [401, 403, 404].includes(answer.status)) return location.reload();
      if (answer && answer.ok) show(live, await answer.text());
    }
    setTimeout(tick, 2000);
  };
  setTimeout(tick, 2000);
}

function show(live, text) {
  const fresh = new DOMParser().parseFromString(text, "text/html");
  if (fresh.querySelector("[data-reload]")) return location.reload();
  for (const part of fresh.querySelectorAll("[data-part]")) {
    const old = document.getElementById(part.id);
    if (!old || old.innerHTML === part.innerHTML) continue;
    const focused = old.contains(document.activeElement) ? document.activeElement.id : null;
    old.replaceChildren(...part.childNodes);
    // What had the focus may be gone: a job that is over has no buttons. The focus then stays near.
    if (focused !== null) (document.getElementById(focused) || document.getElementById("content")).focus();
  }
  const over = fresh.querySelector("[data-over]");
  if (over) live.append(over);
}

// A form is sent once, however often its button is pressed.
document.addEventListener("submit", (event) => {
  const form = event.target;
  if (event.defaultPrevented || form.method !== "post") return;
  setTimeout(() => form.querySelectorAll("button").forEach((button) => (button.disabled = true)));
});
// A page that the browser took out of its memory has its buttons again.
addEventListener("pageshow", () => document.querySelectorAll("button:disabled").forEach((button) => (button.disabled = false)));

// A field that a file is dragged over says so; taking the file is the browser's own doing.
for (const input of document.querySelectorAll("input[type=file]")) {
  for (const [name, over] of [["dragenter", true], ["dragleave", false], ["drop", false]])
    input.addEventListener(name, () => input.classList.toggle("over", over));
  // One that is too large is not sent first.
  input.addEventListener("change", () => {
    const large = [...input.files].some((file) => file.size > Number(input.dataset.most));
    input.setCustomValidity(large ? input.dataset.said : "");
    if (large) input.reportValidity();
  });
}

// Rows of an audit: arrows go from mark to mark.
for (const form of document.querySelectorAll("[data-rows]")) {
  form.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || event.target.name !== "row") return;
    const marks = [...form.querySelectorAll("input[name=row]")];
    const next = marks[marks.indexOf(event.target) + step];
    if (next) next.focus();
    event.preventDefault();
  });
}

// The first field that is wrong has the focus.
document.querySelector("[aria-invalid]")?.focus();

// The chat.
const chat = document.getElementById("chat");
if (chat) {
  const talk = document.getElementById("talk");
  const field = document.getElementById("message");
  const problem = document.getElementById("chat-problem");
  let messages = [];

  const say = (role, text) => {
    const line = document.createElement("div");
    line.className = role;
    line.textContent = text;
    talk.append(line);
    line.scrollIntoView({ block: "nearest" });
    return line;
  };

  // What the server sends as `data:` lines, as it comes.
  async function* events(answer) {
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      const lines = (rest + part.value).split("\n");
      rest = lines.pop();
      for (const text of lines) if (text.startsWith("data: {")) yield JSON.parse(text.slice(6));
    }
  }

  // A refusal is a page; what it says stands in its alert.
  const refusal = async (answer) => {
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    return page.querySelector("[role=alert]")?.textContent.trim() || `The server answered ${answer.status}.`;
  };

  chat.addEventListener("submit", async (event) => {
    event.preventDefault();
    const text = field.value.trim();
    if (!text) return field.focus();
    problem.hidden = true;
    const asked = [...messages, { role: "user", content: text }];
    const button = chat.querySelector("button");
    button.disabled = true;
    const question = say("user", text);
    const line = say("assistant", "…");
    field.value = "";
    try {
      const form = new FormData(chat);
      form.delete("message");
      form.set("messages", JSON.stringify(asked));
      const answer = await fetch(chat.action, { method: "POST", headers, body: form });
      if (answer.status === 401) return location.reload();
      if (!answer.ok) throw new Error(await refusal(answer));
      let said = "";
      for await (const event of events(answer)) {
        if (event.error) throw new Error(event.error.message);
        said += event.choices[0]?.delta.content ?? "";
        line.textContent = said || "…";
        line.scrollIntoView({ block: "nearest" });
      }
      if (!said) line.textContent = "(empty)";
      messages = [...asked, { role: "assistant", content: said }];
    } catch (error) {
      line.remove();
      question.remove();
      field.value = text;
      problem.textContent = error.message;
      problem.hidden = false;
    }
    button.disabled = false;
    field.focus();
  });

  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) chat.requestSubmit();
  });
  document.getElementById("anew").addEventListener("click", () => {
    messages = [];
    talk.replaceChildren();
    problem.hidden = true;
    field.focus();
  });
}
