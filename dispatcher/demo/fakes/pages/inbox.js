// Adds new arrivals on top. Articles that are already on the page are not replaced, so opened details stay open.
const list = document.getElementById("list");
async function addNew() {
  const answer = await fetch("/list");
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  const articles = [...fresh.querySelectorAll("article")];
  if (articles.length) list.querySelector(".empty")?.remove();
  for (const article of articles.reverse()) {
    if (!list.querySelector(`article[data-id="${CSS.escape(article.dataset.id)}"]`)) list.prepend(article);
  }
}
setInterval(() => addNew().catch(() => {}), 1000);
