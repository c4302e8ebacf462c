"use strict";
// A run's report: the confusion matrix (a grid of cells, or a map of many classes to zoom into) and the gallery of errors that a cell filters.
const errors = (() => {
  const list = $("#errors"), told = $("#errors-told"), all = $("#errors-all"), more = $("#errors-more");
  if (!list) return { filter: () => "" };
  const cards = $$("li", list);
  let limit = Number(list.dataset.shown), wanted = null;
  const draw = () => {
    let left = 0;
    cards.forEach((card, i) => {
      card.hidden = wanted ? !wanted.match(Number(card.dataset.t), Number(card.dataset.p)) : i >= limit;
      left += !card.hidden;
    });
    told.textContent = wanted ? `${wanted.text}: ${left} of ${cards.length} pictured errors` : `${left} of ${cards.length}`;
    all.hidden = !wanted;
    more.hidden = Boolean(wanted) || limit >= cards.length;
    return left;
  };
  all.addEventListener("click", () => { wanted = null; draw(); });
  more.addEventListener("click", () => { limit += 48; draw(); });
  draw();
  return { filter: (text, match) => { wanted = text ? { text, match } : null; return draw(); } };
})();

const matrix = (() => {
  const source = $("#confusion-data");
  if (!source) return null;
  const spec = JSON.parse(source.textContent), view = $("#confusion-view"), told = $("#confusion-told"), whole = $("#confusion-whole");
  const n = spec.classes.length, many = n > 30, WINDOW = 20;
  let order = [...Array(n).keys()], cells = new Map(), totals = new Map(), set = null, shown = null, at = [0, 0];
  const count = value => Number((value / set.seeds).toFixed(1)).toLocaleString("en");
  const say = (t, p) => {
    const value = cells.get(t * n + p) || 0, total = totals.get(t) || 0;
    const share = total ? ` (${(100 * value / total).toFixed(1)} % of ${count(total)})` : "";
    return t === p ? `${spec.classes[t]}: ${count(value)} right${share}` : `${spec.classes[t]} called ${spec.classes[p]}: ${count(value)}${share}`;
  };
  const pick = (t, p) => {
    const left = t === p ? errors.filter(`${spec.classes[t]} called anything else`, a => a === t)
      : errors.filter(`${spec.classes[t]} called ${spec.classes[p]}`, (a, b) => a === t && b === p);
    $$("[aria-selected]", view).forEach(cell => cell.removeAttribute("aria-selected"));
    $(`td[data-t="${t}"][data-p="${p}"]`, view)?.setAttribute("aria-selected", "true");
    told.textContent = say(t, p) + (left === "" ? "" : left ? `; ${left} pictured below` : "; none is pictured below");
  };
  const clear = () => { errors.filter(""); $$("[aria-selected]", view).forEach(cell => cell.removeAttribute("aria-selected")); told.textContent = ""; };

  const grid = (rows, columns) => {
    shown = [rows, columns];
    whole.hidden = !many;
    const table = make("table", { class: columns.length > 12 ? "cells" : "cells few", role: "grid", "aria-label": "confusion matrix" });
    const longest = Math.max(...columns.map(c => spec.classes[c].length));
    const label = c => make("th", { scope: "col", title: spec.classes[c] }, make("span", { class: longest > 3 ? "steep" : "" }, spec.classes[c]));
    table.append(make("thead", {}, make("tr", {}, make("td"), ...columns.map(label))), make("tbody"));
    rows.forEach(t => {
      const line = make("tr", {}, make("th", { scope: "row", title: spec.classes[t] }, make("span", {}, spec.classes[t])));
      columns.forEach(p => {
        const value = cells.get(t * n + p) || 0, share = value / (totals.get(t) || 1);
        const tint = Math.round(100 * (t === p ? share : Math.sqrt(share)));
        const cell = make("td", { role: "gridcell", tabindex: "-1", "data-t": t, "data-p": p, class: `${t === p ? "right" : value ? "wrong" : ""}${tint > 60 ? " deep" : ""}`,
          style: `--p:${tint}%`, title: say(t, p) }, value ? count(value) : "");
        line.append(cell);
      });
      table.tBodies[0].append(line);
    });
    view.replaceChildren(make("div", { class: "scroll" }, table));
    $("td[role]", table).tabIndex = 0;
    table.addEventListener("click", event => { const cell = event.target.closest("td[data-t]"); if (cell) { focus(cell); pick(Number(cell.dataset.t), Number(cell.dataset.p)); } });
    table.addEventListener("keydown", event => {
      const cell = event.target.closest("td[data-t]");
      if (!cell) return;
      const row = cell.parentElement, move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (move) {
        event.preventDefault();
        const next = table.tBodies[0].rows[row.sectionRowIndex + move[0]]?.cells[cell.cellIndex + move[1]];
        if (next?.dataset.t) { focus(next); told.textContent = say(Number(next.dataset.t), Number(next.dataset.p)); }
      } else if (event.key === "Enter" || event.key === " ") { event.preventDefault(); pick(Number(cell.dataset.t), Number(cell.dataset.p)); }
      else if (event.key === "Escape") clear();
    });
    const focus = cell => { $$('[tabindex="0"]', table).forEach(other => { other.tabIndex = -1; }); cell.tabIndex = 0; cell.focus({ preventScroll: false }); };
  };

  const map = () => {
    shown = null;
    whole.hidden = true;
    const canvas = make("canvas", { class: "matrix", role: "application", tabindex: "0", "aria-label": `confusion of ${n} classes: arrow keys move, Enter zooms` });
    view.replaceChildren(canvas);
    const side = Math.max(200, Math.min(560, view.clientWidth || 560)), ratio = devicePixelRatio || 1, place = new Map(order.map((c, i) => [c, i]));
    Object.assign(canvas, { width: side * ratio, height: side * ratio });
    canvas.style.width = canvas.style.height = `${side}px`;
    const draw = () => {
      const c = canvas.getContext("2d"), style = getComputedStyle(document.documentElement), step = side / n;
      c.setTransform(ratio, 0, 0, ratio, 0, 0);
      c.globalAlpha = 1;
      c.fillStyle = style.getPropertyValue("--soft");
      c.fillRect(0, 0, side, side);
      for (const right of [true, false]) {
        c.fillStyle = style.getPropertyValue(right ? "--heat" : "--s1");
        for (const [both, value] of cells) {
          const t = Math.floor(both / n), p = both % n;
          if ((t === p) !== right) continue;
          c.globalAlpha = Math.min(1, 0.25 + (right ? 0.75 * value / totals.get(t) : Math.sqrt(value / totals.get(t))));
          const size = Math.max(step, right ? 1.6 : 3.2), [x, y] = [p, t].map(i => (place.get(i) + 0.5) * step - size / 2);     // errors stay visible among a million cells
          c.fillRect(x, y, size, size);
        }
      }
      c.globalAlpha = 1;
      c.strokeStyle = style.getPropertyValue("--text");
      const half = WINDOW / 2;
      c.strokeRect((at[1] - half) * step, (at[0] - half) * step, WINDOW * step, WINDOW * step);
    };
    const zoom = () => {
      const slice = middle => { const first = Math.max(0, Math.min(n - WINDOW, middle - WINDOW / 2)); return order.slice(first, first + WINDOW); };
      grid(slice(at[0]), slice(at[1]));
      const [t, p] = [order[at[0]], order[at[1]]];
      $(`td[data-t="${t}"][data-p="${p}"]`, view)?.focus({ preventScroll: true });
      told.textContent = say(t, p);
    };
    const move = (row, column) => {
      at = [row, column].map(i => Math.max(0, Math.min(n - 1, i)));
      draw();
    };
    const where = event => {
      const bounds = canvas.getBoundingClientRect();
      return [Math.floor((event.clientY - bounds.top) / bounds.height * n), Math.floor((event.clientX - bounds.left) / bounds.width * n)];
    };
    canvas.addEventListener("pointermove", event => {
      move(...where(event));
      let best = at;                    // the nearest cell with something in it, a few pixels around
      const near = Math.ceil(n / 120);
      for (let r = -near, most = 0; r <= near; r++) for (let q = -near; q <= near; q++) {
        const [a, b] = [at[0] + r, at[1] + q], value = order[a] === undefined || order[b] === undefined ? 0 : cells.get(order[a] * n + order[b]) || 0;
        if (value > most) { most = value; best = [a, b]; }
      }
      tip(say(order[best[0]], order[best[1]]), event.clientX, event.clientY);
    });
    canvas.addEventListener("pointerleave", () => tip(""));
    canvas.addEventListener("click", event => { tip(""); move(...where(event)); zoom(); });
    canvas.addEventListener("keydown", event => {
      const way = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key], far = Math.max(1, Math.round(n / 60));
      if (way) { event.preventDefault(); move(at[0] + way[0] * far, at[1] + way[1] * far); told.textContent = say(order[at[0]], order[at[1]]); }
      else if (event.key === "Enter") { event.preventDefault(); zoom(); }
      else if (event.key === "Escape") clear();
    });
    again = draw;
    draw();
  };
  let again = () => {};                 // of the canvas that is shown
  redraws.add(() => { if (!shown) again(); });

  const show = () => (many ? shown ? grid(...shown) : map() : grid(order, order));
  const choose = number => {
    set = spec.sets[number];
    cells = new Map(set.cells.map(([t, p, value]) => [t * n + p, value]));
    totals = new Map();
    set.totals.forEach((value, t) => totals.set(t, value));
    show();
  };
  const around = c => {                 // a class and those that it is confused with, either way, the most confused first
    const with_ = new Map();
    for (const [both, value] of cells) {
      const t = Math.floor(both / n), p = both % n;
      if (t !== p && (t === c || p === c)) with_.set(t === c ? p : t, (with_.get(t === c ? p : t) || 0) + value);
    }
    return [c, ...[...with_].sort((a, b) => b[1] - a[1]).slice(0, WINDOW - 1).map(([other]) => other)];
  };
  const goTo = (t, p) => {
    if (!many) return;
    const both = [...new Set([t, p, ...around(t), ...around(p)])].slice(0, WINDOW);
    grid(both, both);
  };
  $("#confusion-set").addEventListener("change", event => { choose(Number(event.target.value)); clear(); });
  whole.addEventListener("click", () => { clear(); map(); });
  $("#confusion-order")?.addEventListener("change", event => { order = event.target.value === "alike" ? spec.order : [...Array(n).keys()]; map(); });
  $("#confusion-class")?.addEventListener("input", event => {
    const wanted = event.target.value.trim().toLowerCase();
    if (!wanted) { clear(); map(); return; }
    const exact = spec.classes.findIndex(name => name.toLowerCase() === wanted), found = exact >= 0 ? exact : spec.classes.findIndex(name => name.toLowerCase().includes(wanted));
    if (found < 0) { told.textContent = "no such class"; return; }
    const near = around(found);
    grid(near, near);
    pick(found, found);
  });
  for (const button of $$("button.show")) {
    button.addEventListener("click", () => {
      const [t, p] = [Number(button.dataset.t), Number(button.dataset.p)];
      goTo(t, p);
      pick(t, p);
    });
  }
  choose(0);
  let wide = innerWidth;
  addEventListener("resize", () => { if (many && !shown && innerWidth !== wide) { wide = innerWidth; map(); } });
  return { pick };
})();
