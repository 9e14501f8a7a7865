// Shows the message that the server renders from the form. Requests it again when the form or a template changes.
// The part of the page's address after # has the form's state, so a link restores it.
"use strict";
const element = (id) => document.getElementById(id);
const selected = (name) => document.querySelector(`input[name="${name}"]:checked`).value;
// The phases for which the page shows a message about several events.
const SUMMARIES = ["digest", "window", "silence"];
const CHOICES = ["channel", "view", "width", "scheme"];
let sample = null;
let loadedEvent = "";
let latestRequest = 0;
let timer = 0;

function show() {
  saveState();
  const view = selected("view");
  element("rendered").hidden = view !== "rendered" || !sample || Boolean(sample.error);
  element("plain").hidden = view === "rendered" || !sample || Boolean(sample.error);
  if (!sample) return;
  const problems = sample.error ? [sample.error] : sample.problems.map((problem) => `would be refused: ${problem}`);
  element("problems").textContent = problems.join("\n");
  element("state").textContent = problems.length ? "Problems found" : "Within the provider's limits";
  element("headline").textContent = sample.headline || "";
  if (sample.variables) element("variables").replaceChildren(...sample.variables.flatMap(variableRow));
  if (sample.error) return;
  element("rendered").className = selected("width");
  const page = sample[selected("scheme")];
  if (element("rendered").srcdoc !== page) element("rendered").srcdoc = page;
  element("plain").textContent = view === "source" ? sample.source : sample.text;
}

function variableRow({ name, type, meaning, example }) {
  const [term, value, about] = ["dt", "dd", "dd"].map((tag) => document.createElement(tag));
  term.textContent = name;
  value.textContent = example || "empty";
  value.className = example ? "value" : "none";
  about.textContent = meaning.replaceAll("`", "");
  return type === "parts" ? [term, about] : [term, value, about];
}

function saveState() {
  const state = new URLSearchParams({ phase: element("phase").value });
  for (const name of CHOICES) state.set(name, selected(name));
  if (element("recipient").value) state.set("recipient", element("recipient").value);
  if (element("event").value !== loadedEvent) state.set("event", element("event").value);
  history.replaceState(null, "", `#${state}`);
  element("link").href = location.href;
}

async function restoreState() {
  const state = new URLSearchParams(location.hash.slice(1));
  for (const input of document.querySelectorAll("input[type=radio]")) {
    if (state.get(input.name) === input.value) input.checked = true;
  }
  const known = [...element("phase").options].some((option) => option.value === state.get("phase"));
  if (known) element("phase").value = state.get("phase");
  element("recipient").value = state.get("recipient") || "";
  element("me").value = remembered();
  await load(state.get("event"));
}

function form() {
  const event = JSON.parse(element("event").value);
  const phase = element("phase").value;
  const summary = SUMMARIES.includes(phase) ? phase : null;
  return {
    channel: selected("channel"), recipient: element("recipient").value, resolved: phase === "resolved", summary, event,
  };
}

async function post(path, data) {
  const headers = { "Content-Type": "application/json" };
  try {
    const response = await fetch(path, { method: "POST", headers, body: JSON.stringify(data) });
    return await response.json();
  } catch {
    const message = "the server does not answer: start dispatcher preview --serve again";
    return { error: message, message };
  }
}

async function request() {
  const thisRequest = ++latestRequest;
  let data;
  try {
    data = form();
  } catch (error) {
    sample = { error: `the event is no JSON: ${error.message}` };
    return show();
  }
  const rendered = await post("/sample", data);
  if (thisRequest !== latestRequest) return;
  sample = rendered;
  show();
}

async function load(edited) {
  const phase = element("phase").value;
  element("event").disabled = SUMMARIES.includes(phase);
  const sampled = phase === "resolved" ? "succeeded" : SUMMARIES.includes(phase) ? "failed" : phase;
  const response = await fetch(`/events/${sampled}`);
  loadedEvent = JSON.stringify((await response.json()).event, null, 2);
  element("event").value = edited || loadedEvent;
  await request();
}

function requestSoon() {
  clearTimeout(timer);
  timer = setTimeout(request, 200);
}

// Each browser remembers who its user is on each channel.
const remembered = () => localStorage.getItem(`me on ${selected("channel")}`) || "";

async function send(event) {
  event.preventDefault();
  const to = element("me").value;
  localStorage.setItem(`me on ${selected("channel")}`, to);
  element("sent").textContent = "Sending";
  let data;
  try {
    data = { ...form(), to };
  } catch {
    element("sent").textContent = "not sent: the event is no JSON";
    return;
  }
  const result = await post("/send", data);
  element("sent").textContent = result.accepted ? `sent: ${result.message}` : result.message;
}

async function chooseChannel() {
  element("me").value = remembered();
  element("sent").textContent = "";
  await request();
}

element("phase").addEventListener("change", () => load());
element("event").addEventListener("input", requestSoon);
element("recipient").addEventListener("input", requestSoon);
for (const input of document.querySelectorAll("input[type=radio]")) {
  input.addEventListener("change", input.name === "channel" ? chooseChannel : show);
}
document.querySelector("input[name=channel]").checked = true;
element("form").addEventListener("submit", (event) => event.preventDefault());
element("send").addEventListener("submit", send);
window.addEventListener("hashchange", restoreState);
new EventSource("/changes/stream").onmessage = request;
restoreState();
