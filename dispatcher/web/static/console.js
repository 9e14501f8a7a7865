// Live updates: relative times, copy buttons and new activity. Every page works without this script.
"use strict";

const units = [[86400, "day"], [3600, "hour"], [60, "minute"], [1, "second"]];
const relative = new Intl.RelativeTimeFormat("en", { numeric: "always" });

function ago(time) {
  const seconds = (Date.now() - Date.parse(time.dateTime)) / 1000;
  if (Math.abs(seconds) < 5) return "just now";
  const [size, unit] = units.find(([length]) => Math.abs(seconds) >= length);
  return relative.format(-Math.trunc(seconds / size), unit);
}

function updateTimes() {
  for (const time of document.querySelectorAll("time[datetime]")) time.textContent = ago(time);
}

function addCopyButtons() {
  if (!navigator.clipboard) return;
  for (const text of document.querySelectorAll("[data-copy]")) {
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
  const button = document.querySelector("button[name=selected]");
  const update = () => {
    const selected = boxes.filter((box) => box.checked).length;
    button.textContent = selected ? `Redrive ${selected} selected…` : "Redrive selected…";
    all.checked = selected === boxes.length;
    all.indeterminate = selected > 0 && selected < boxes.length;
  };
  all.closest("label").hidden = false;
  all.addEventListener("change", () => { boxes.forEach((box) => { box.checked = all.checked; }); update(); });
  boxes.forEach((box) => box.addEventListener("change", update));
  update();
}

function followActivity() {
  const list = document.getElementById("activity");
  if (!list) return;
  const state = document.getElementById("live");
  const source = new EventSource(list.dataset.stream);
  const show = (text, kind) => { if (state.textContent !== text) { state.textContent = text; state.className = `live ${kind}`; } };
  const add = (event) => {
    const holder = document.createElement("template");
    holder.innerHTML = event.data;  // rendered and escaped by the server
    const row = holder.content.firstElementChild;
    if (!row || document.getElementById(row.id)) return;
    row.classList.add("fresh");
    list.prepend(row);
    document.getElementById("no-activity")?.remove();
    while (list.children.length > 100) list.lastElementChild.remove();
  };
  source.onopen = () => show("live", "on");
  source.onerror = () => show(source.readyState === EventSource.CLOSED ? "not live: reload the page" : "reconnecting", "off");
  for (const kind of ["event", "attempt", "rejected"]) source.addEventListener(kind, add);
}

addCopyButtons();
enableSelectAll();
followActivity();
setInterval(updateTimes, 15000);
