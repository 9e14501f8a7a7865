// Live updates: times in the reader's zone, copy buttons, lists and activity. Every page works without this script.
"use strict";

const units = [[3600, "hour"], [60, "minute"], [1, "second"]];
const relative = new Intl.RelativeTimeFormat("en", { numeric: "always" });
const clock = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
const day = { day: "numeric", month: "short" };
const local = (time, format) => new Intl.DateTimeFormat("en-GB", format).format(time);

function inZone(time) {
  const now = new Date();
  if (time.toDateString() === now.toDateString()) return local(time, clock);
  return local(time, { ...clock, ...day, ...(time.getFullYear() === now.getFullYear() ? {} : { year: "numeric" }) });
}

// A time within an hour as its age, which is what a reader wants to know of it; others as the local time.
function shown(time) {
  const seconds = (Date.now() - time) / 1000;
  if (Math.abs(seconds) < 5) return "just now";
  if (Math.abs(seconds) >= 3600) return inZone(time);
  const [size, unit] = units.find(([length]) => Math.abs(seconds) >= length);
  return relative.format(-Math.trunc(seconds / size), unit);
}

function updateTimes(part = document) {
  for (const time of part.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    time.textContent = time.dataset.format === "clock" ? local(at, { ...clock, ...day }) : shown(at);
  }
  for (const label of part.querySelectorAll("text[data-time]")) {
    label.textContent = local(new Date(label.dataset.time), label.dataset.format === "day" ? day : clock);
  }
}

function nameZone() {
  const name = document.getElementById("zone");
  if (name) name.textContent = `times are in ${Intl.DateTimeFormat().resolvedOptions().timeZone}, in UTC on hover`;
}

// The server writes and reads the fields in UTC; a reader sees them in their own zone.
function useZoneInFields() {
  const fields = [...document.querySelectorAll("input[type=datetime-local]")];
  for (const field of fields) {
    const at = new Date(`${field.value}Z`);
    if (field.value) field.value = new Date(at - at.getTimezoneOffset() * 60000).toISOString().slice(0, 16);
    field.labels[0].textContent = field.labels[0].textContent.replace(" (UTC)", "");
    field.form.addEventListener("formdata", ({ formData }) => {
      if (field.value) formData.set(field.name, `${new Date(field.value).toISOString().slice(0, 16)}Z`);
    });
  }
}

function addCopyButtons(part = document) {
  if (!navigator.clipboard) return;
  for (const text of part.querySelectorAll("[data-copy]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy-button";
    button.textContent = "Copy";
    button.setAttribute("aria-label", `Copy the ${text.dataset.copy}`);
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
      setTimeout(() => { button.textContent = "Copy"; }, 2000);
    });
    text.after(button);
  }
}

function enableSelectAll() {
  const all = document.getElementById("all");
  if (!all) return;
  const boxes = [...document.querySelectorAll("input[name=key]")];
  const buttons = document.querySelectorAll("button[name=selected]");
  const update = () => {
    const selected = boxes.filter((box) => box.checked).length;
    for (const button of buttons) {
      button.textContent = `${button.dataset.verb} ${selected ? `${selected} ` : ""}selected…`;
    }
    all.checked = selected === boxes.length;
    all.indeterminate = selected > 0 && selected < boxes.length;
  };
  all.closest("label").hidden = false;
  all.addEventListener("change", () => { boxes.forEach((box) => { box.checked = all.checked; }); update(); });
  boxes.forEach((box) => box.addEventListener("change", update));
  update();
}

function showState(text, kind) {
  const state = document.getElementById("live");
  if (!state || state.textContent === text) return;
  if (kind === "off") state.role = "status";  // screen readers then say it
  state.textContent = text;
  state.className = `live ${kind}`;
}

function followActivity() {
  const list = document.getElementById("activity");
  if (!list) return;
  const source = new EventSource(list.dataset.stream);
  const add = (event) => {
    const holder = document.createElement("template");
    holder.innerHTML = event.data;  // rendered and escaped by the server
    const row = holder.content.firstElementChild;
    if (!row || document.getElementById(row.id)) return;
    row.classList.add("fresh");
    updateTimes(row);
    list.prepend(row);
    document.getElementById("no-activity")?.remove();
    while (list.children.length > 100) list.lastElementChild.remove();
  };
  source.onopen = () => showState("live", "on");
  source.onerror = () => showState(source.readyState === EventSource.CLOSED ? "not live: reload the page" : "reconnecting", "off");
  for (const kind of ["event", "attempt", "rejected"]) source.addEventListener(kind, add);
}

// Replaces a part of the page by its state of now. Rows that were not there before are marked for a moment.
function replacePart(part, fresh) {
  const known = new Set([...part.querySelectorAll("li a")].map((link) => link.getAttribute("href")));
  const focused = part.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  part.replaceChildren(...fresh.childNodes);
  for (const row of part.querySelectorAll(".rows > li")) {
    const link = row.querySelector("a");
    if (link && !known.has(link.getAttribute("href"))) row.classList.add("fresh");
  }
  updateTimes(part);
  addCopyButtons(part);
  if (focused) part.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
}

// Parts with `data-refresh` are loaded again after that number of seconds, unless the reader is at work in them.
function refreshParts() {
  const parts = [...document.querySelectorAll("[data-refresh]")];
  if (!parts.length) return;
  const inUse = () => document.hidden || !getSelection().isCollapsed
    || parts.some((part) => part.querySelector("input:checked, :is(input, button):focus"));
  const report = document.getElementById("activity") ? () => {} : showState;  // there the stream reports
  const load = async () => {
    if (inUse()) return;
    try {
      const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
      if (!answer.ok || answer.redirected) throw new Error(answer.statusText);
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      if (inUse()) return;
      for (const part of parts) replacePart(part, page.getElementById(part.id));
      enableSelectAll();
      report("live", "on");
      if (!page.querySelector("[data-refresh]")) clearInterval(timer);
    } catch {
      report("not live: reload the page", "off");
    }
  };
  const timer = setInterval(load, 1000 * parts[0].dataset.refresh);
  report("live", "on");
}

updateTimes();
nameZone();
useZoneInFields();
addCopyButtons();
enableSelectAll();
refreshParts();
followActivity();
setInterval(() => updateTimes(), 15000);
