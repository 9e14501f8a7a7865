// Shows the message that the server renders from the form. Requests it again when the form or a template changes.
"use strict";
const element = (id) => document.getElementById(id);
const selected = (name) => document.querySelector(`input[name="${name}"]:checked`).value;
let sample = null;
let latestRequest = 0;
let timer = 0;

function show() {
  const view = selected("view");
  element("rendered").hidden = view !== "rendered" || !sample || Boolean(sample.error);
  element("plain").hidden = view === "rendered" || !sample || Boolean(sample.error);
  if (!sample) return;
  const problems = sample.error ? [sample.error] : sample.problems.map((problem) => `would be refused: ${problem}`);
  element("problems").textContent = problems.join("\n");
  element("state").textContent = problems.length ? "Problems found" : "Within the provider's limits";
  element("headline").textContent = sample.headline || "";
  if (sample.error) return;
  element("rendered").className = selected("width");
  const page = sample[selected("scheme")];
  if (element("rendered").srcdoc !== page) element("rendered").srcdoc = page;
  element("plain").textContent = view === "source" ? sample.source : sample.text;
}

async function request() {
  const thisRequest = ++latestRequest;
  let event;
  try {
    event = JSON.parse(element("event").value);
  } catch (error) {
    sample = { error: `the event is no JSON: ${error.message}` };
    return show();
  }
  const body = JSON.stringify({ channel: selected("channel"), recipient: element("recipient").value, event });
  try {
    const response = await fetch("/sample", { method: "POST", headers: { "Content-Type": "application/json" }, body });
    const rendered = await response.json();
    if (thisRequest === latestRequest) sample = rendered;
  } catch {
    sample = { error: "the server does not answer: start dispatcher preview --serve again" };
  }
  show();
}

async function load() {
  const response = await fetch(`/events/${element("phase").value}`);
  element("event").value = JSON.stringify((await response.json()).event, null, 2);
  await request();
}

function requestSoon() {
  clearTimeout(timer);
  timer = setTimeout(request, 200);
}

element("phase").addEventListener("change", load);
element("event").addEventListener("input", requestSoon);
element("recipient").addEventListener("input", requestSoon);
for (const input of document.querySelectorAll("input[type=radio]")) {
  input.addEventListener("change", input.name === "channel" ? request : show);
}
document.querySelector("input[name=channel]").checked = true;
element("form").addEventListener("submit", (event) => event.preventDefault());
new EventSource("/changes/stream").onmessage = request;
load();
