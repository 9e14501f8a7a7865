// What is live: times that stay true, keys that can be copied, rows that come by themselves. Every page works without it.
"use strict";

const spans = [[86400, "day"], [3600, "hour"], [60, "minute"], [1, "second"]];
const words = new Intl.RelativeTimeFormat("en", { numeric: "always" });

function ago(time) {
  const seconds = (Date.now() - Date.parse(time.dateTime)) / 1000;
  if (Math.abs(seconds) < 5) return "just now";
  const [size, unit] = spans.find(([length]) => Math.abs(seconds) >= length);
  return words.format(-Math.trunc(seconds / size), unit);
}

function keepTimes() {
  for (const time of document.querySelectorAll("time[datetime]")) time.textContent = ago(time);
}

function offerCopies() {
  if (!navigator.clipboard) return;
  for (const text of document.querySelectorAll("[data-copy]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copied";
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

function chooseAll() {
  const all = document.getElementById("all");
  if (!all) return;
  const boxes = [...document.querySelectorAll("input[name=key]")];
  const button = document.querySelector("button[name=selected]");
  const count = () => {
    const chosen = boxes.filter((box) => box.checked).length;
    button.textContent = chosen ? `Redrive ${chosen} selected…` : "Redrive selected…";
    all.checked = chosen === boxes.length;
    all.indeterminate = chosen > 0 && chosen < boxes.length;
  };
  all.closest("label").hidden = false;
  all.addEventListener("change", () => { boxes.forEach((box) => { box.checked = all.checked; }); count(); });
  boxes.forEach((box) => box.addEventListener("change", count));
  count();
}

function follow() {
  const list = document.getElementById("happenings");
  if (!list) return;
  const state = document.getElementById("live");
  const source = new EventSource(list.dataset.stream);
  const show = (text, kind) => { if (state.textContent !== text) { state.textContent = text; state.className = `live ${kind}`; } };
  const add = (event) => {
    const holder = document.createElement("template");
    holder.innerHTML = event.data;  // drawn by the server, escaped there
    const row = holder.content.firstElementChild;
    if (!row || document.getElementById(row.id)) return;
    row.classList.add("fresh");
    list.prepend(row);
    document.getElementById("nothing")?.remove();
    while (list.children.length > 100) list.lastElementChild.remove();
  };
  source.onopen = () => show("live", "on");
  source.onerror = () => show(source.readyState === EventSource.CLOSED ? "not live: reload the page" : "connecting again", "off");
  for (const kind of ["event", "attempt", "rejected"]) source.addEventListener(kind, add);
}

offerCopies();
chooseAll();
follow();
setInterval(keepTimes, 15000);
