// What a page must keep to, as a list of what is wrong. Images are there by then; sizes in px.
() => {
  const all = (selector, from = document) => [...from.querySelectorAll(selector)], wrong = [];
  const seen = (selector) => all(selector).filter((node) => node.offsetParent);
  const column = document.querySelector(".bd-article")?.clientWidth;
  seen(".bd-article table").forEach((table) => {
    const name = (table.caption?.innerText || "a table").slice(0, 60), own = table.closest(".cell_output");
    const columns = Math.max(...[...table.rows].map((row) => [...row.cells].reduce((sum, cell) => sum + cell.colSpan, 0)));
    if (columns > 7) wrong.push(`${name}: ${columns} columns`);
    if (own && innerWidth > 1000 && table.offsetWidth > column) wrong.push(`${name}: wider than its column`);
    if (all("th", table).some((cell) => !cell.textContent.trim())) wrong.push(`${name}: a name of a column is empty`);
  });
  seen("summary").filter((one) => !one.textContent.trim() && !one.ariaLabel).forEach(() => wrong.push("a summary without a name"));
  const levels = all(".bd-article :is(h1, h2, h3, h4)").map((heading) => +heading.tagName[1]);
  if (levels.some((level, k) => level > (k ? levels[k - 1] + 1 : 1))) wrong.push(`headings ${levels}`);
  seen(".bd-article .cell_output img:not(.touch img)")  // text of 9 pt is 8 pt or more down to this scale
    .filter((image) => image.naturalWidth > 1.15 * image.clientWidth && !image.parentNode.parentNode.querySelector("button.whole"))
    .forEach((image) => wrong.push(`${image.alt.slice(0, 40)}: shown small, and no way to see it large`));
  const size = (node) => parseFloat(getComputedStyle(node).fontSize);  // 0: what screen readers alone read
  seen(".bd-article :not(sup, sub, svg *, mjx-container *)").filter((node) => size(node) && size(node) < 10.6)
    .filter((node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim()))
    .forEach((node) => wrong.push(`${node.textContent.slice(0, 40)}: smaller than 8 pt`));
  const main = innerWidth > 1000 && seen(".one-minute")[0] && seen(".bd-article figure img")[0];
  if (main && main.getBoundingClientRect().top + scrollY > 900) wrong.push("the main figure begins below the first screen");
  if (document.documentElement.scrollWidth > innerWidth) wrong.push("scrolls sideways");
  return wrong;
}
