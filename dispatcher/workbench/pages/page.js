// Shows what the server makes of the event in the form; asks again when the form or a template changes.
"use strict";
const by = (id) => document.getElementById(id);
const chosen = (name) => document.querySelector(`input[name="${name}"]:checked`).value;
let proof = null;
let asked = 0;
let waiting = 0;

function show() {
  const view = chosen("view");
  by("seen").hidden = view !== "seen" || !proof || Boolean(proof.error);
  by("words").hidden = view === "seen" || !proof || Boolean(proof.error);
  if (!proof) return;
  const wrong = proof.error ? [proof.error] : proof.problems.map((one) => `would be refused: ${one}`);
  by("problems").textContent = wrong.join("\n");
  by("state").textContent = wrong.length ? "Something is wrong" : "Within the provider's limits";
  by("headline").textContent = proof.headline || "";
  if (proof.error) return;
  by("seen").className = chosen("width");
  const page = proof[chosen("scheme")];
  if (by("seen").srcdoc !== page) by("seen").srcdoc = page;
  by("words").textContent = view === "source" ? proof.source : proof.text;
}

async function ask() {
  const mine = ++asked;
  let event;
  try {
    event = JSON.parse(by("event").value);
  } catch (error) {
    proof = { error: `the event is no JSON: ${error.message}` };
    return show();
  }
  const body = JSON.stringify({ channel: chosen("channel"), recipient: by("recipient").value, event });
  try {
    const answer = await fetch("/proof", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    const made = await answer.json();
    if (mine === asked) proof = made;
  } catch {
    proof = { error: "the server is gone: start dispatcher preview --serve again" };
  }
  show();
}

async function load() {
  const answer = await fetch(`/events/${by("phase").value}`);
  by("event").value = JSON.stringify((await answer.json()).event, null, 2);
  await ask();
}

function soon() {
  clearTimeout(waiting);
  waiting = setTimeout(ask, 200);
}

by("phase").addEventListener("change", load);
by("event").addEventListener("input", soon);
by("recipient").addEventListener("input", soon);
for (const input of document.querySelectorAll("input[type=radio]")) {
  input.addEventListener("change", input.name === "channel" ? ask : show);
}
by("form").addEventListener("submit", (event) => event.preventDefault());
new EventSource("/changes/stream").onmessage = ask;
load();
