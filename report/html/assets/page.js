"use strict";
// What every page of the kit has: the theme, sorting and filtering of tables, copying of commands, the tooltip, the place in the navigation.
const $ = (selector, within = document) => within.querySelector(selector);
const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];
const make = (name, attributes = {}, ...children) => {      // text is always set as text, never as markup
  const svg = ["svg", "g", "path", "line", "text", "rect", "circle"].includes(name);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value);
  element.append(...children);
  return element;
};
const redraws = new Set();          // what must be drawn anew when the theme changes: canvases

const remembered = (() => { try { return localStorage.getItem("coview-theme"); } catch { return null; } })();
if (remembered === "light" || remembered === "dark") document.documentElement.dataset.theme = remembered;
const isDark = () => (document.documentElement.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
$("#theme").addEventListener("click", () => {
  const theme = document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  try { localStorage.setItem("coview-theme", theme); } catch { /* a private window remembers nothing */ }
  redraws.forEach(draw => draw());
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraws.forEach(draw => draw()));

const tip = (text, x, y) => {
  const box = $("#tip");
  box.hidden = !text;
  if (!text) return;
  box.textContent = text;
  const { width, height } = box.getBoundingClientRect();
  box.style.left = `${Math.max(4, Math.min(x + 14, innerWidth - width - 8))}px`;
  box.style.top = `${y + 16 + height > innerHeight ? y - height - 10 : y + 16}px`;
};
addEventListener("scroll", () => tip(""), { passive: true });

const key = cell => {
  const value = cell.dataset.v ?? cell.textContent.trim();
  return value === "" ? null : Number.isNaN(Number(value)) ? value : Number(value);
};
const compare = (a, b) => a === null || b === null ? (a === null) - (b === null) : typeof a === "number" && typeof b === "number" ? a - b
  : String(a).localeCompare(String(b), undefined, { numeric: true });
for (const table of $$("table.sortable")) {
  $$("thead th", table).forEach((head, column) => $("button", head)?.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "descending" || (!head.hasAttribute("aria-sort") && !head.classList.contains("number"));
    $$("thead th", table).forEach(other => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "ascending" : "descending");
    const rows = [...table.tBodies[0].rows].map(row => [key(row.cells[column]), row]);
    rows.sort(([a], [b]) => a === null || b === null ? compare(a, b) : down ? compare(a, b) : compare(b, a));   // what has no value stays last
    table.tBodies[0].append(...rows.map(([, row]) => row));
  }));
}
for (const field of $$("input.filter")) {
  const table = $("table", field.closest(".tabled"));
  if (!table) continue;
  field.addEventListener("input", () => {
    const wanted = field.value.trim().toLowerCase();
    let left = 0;
    for (const row of table.tBodies[0].rows) {
      row.hidden = !row.textContent.toLowerCase().includes(wanted);
      left += !row.hidden;
    }
    $(".count", field.closest(".tabled")).textContent = wanted ? `${left} of ${table.tBodies[0].rows.length}` : "";
  });
}
for (const button of $$(".copy")) {
  button.addEventListener("click", () => {
    const code = $("code", button.parentElement);
    getSelection().selectAllChildren(code);                 // where a file:// page may not write to the clipboard, Ctrl-C does
    navigator.clipboard?.writeText(code.textContent).then(() => { button.textContent = "copied"; }, () => {});
  });
}
const links = new Map($$("nav a").map(link => [link.hash.slice(1), link]));
const seen = new IntersectionObserver(entries => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    links.forEach(link => link.classList.remove("here"));
    links.get(entry.target.id)?.classList.add("here");
  }
}, { rootMargin: "-15% 0px -75% 0px" });
$$("section").forEach(section => seen.observe(section));
