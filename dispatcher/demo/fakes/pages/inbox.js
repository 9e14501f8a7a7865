// Puts new arrivals on top; what is there already stays as it is, so that nothing jumps or closes under the reader.
const list = document.getElementById("list");
async function look() {
  const answer = await fetch("/list");
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  const articles = [...fresh.querySelectorAll("article")];
  if (articles.length) list.querySelector(".empty")?.remove();
  for (const article of articles.reverse()) {
    if (!list.querySelector(`article[data-id="${CSS.escape(article.dataset.id)}"]`)) list.prepend(article);
  }
}
setInterval(() => look().catch(() => {}), 1000);
