"use strict";
// Draws the figures of report/html/charts.py from the JSON inside them: lines and bars as SVG, maps of points on a canvas.
const DASHES = ["", "7 4", "2 3", "9 3 2 3"];
const round = value => Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
const ticks = (low, high, count) => {
  const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(m => m * power).find(s => s >= raw * 0.999);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-6; at += step) found.push(Number(at.toPrecision(12)));
  return found;
};
const swatch = series => {
  const svg = make("svg", { viewBox: "0 0 22 10", "aria-hidden": "true" });
  svg.append(series.bar ? make("rect", { x: 5, y: 0, width: 12, height: 10, rx: 2, style: `fill:var(--s${series.colour})` })
    : make("path", { d: "M0 5H22", style: `stroke:var(--s${series.colour})`, "stroke-width": 2.5, "stroke-dasharray": DASHES[series.dash] }));
  return svg;
};
const legend = (figure, series, off, draw) => {
  const box = make("div", { class: "chips" });
  series.forEach((one, i) => {
    const button = make("button", { type: "button", "aria-pressed": "true" }, swatch(one), one.name);
    button.addEventListener("click", () => {
      off.has(i) ? off.delete(i) : off.add(i);
      button.setAttribute("aria-pressed", String(!off.has(i)));
      draw();
    });
    box.append(button);
  });
  $(".plot", figure).before(box);
};
const whenSized = (figure, draw) => {
  let last = 0;
  new ResizeObserver(([entry]) => {
    const width = Math.round(entry.contentRect.width);
    if (width && width !== last) { last = width; draw(width); }
  }).observe($(".plot", figure));
};
const frame = (plot, spec, width, height, box, yTicks, title) => {
  const svg = make("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", tabindex: "0", "aria-label": title });
  for (const [at, y] of yTicks) {
    svg.append(make("path", { class: "axis", d: `M${box.left} ${y}H${width - box.right}` }), make("text", { x: box.left - 6, y: y + 4, "text-anchor": "end" }, round(at)));
  }
  svg.append(make("text", { x: width - box.right, y: height - 3, "text-anchor": "end" }, spec.x), make("text", { x: 0, y: 11 }, spec.y));
  plot.replaceChildren(svg);
  return svg;
};

function drawLines(figure, spec) {
  const off = new Set(), plot = $(".plot", figure), title = $("figcaption", figure).textContent;
  let width = 0;
  const draw = size => {
    width = size || width;
    const height = Math.round(Math.min(spec.diagonal ? 380 : 300, Math.max(190, width * (spec.diagonal ? 0.85 : 0.55)))), box = { left: 46, right: 12, top: 22, bottom: 34 };
    const shown = spec.series.filter((_, i) => !off.has(i));
    const xs = shown.flatMap(s => s.x), ys = shown.flatMap(s => s.y).filter(v => v !== null);
    if (!ys.length) { plot.replaceChildren(make("p", { class: "note" }, "nothing to draw")); return; }
    let [x0, x1] = [Math.min(...xs), Math.max(...xs)], [y0, y1] = spec.range || [Math.min(...ys), Math.max(...ys)];
    if (spec.diagonal) [x0, x1] = [0, 1];
    if (spec.zero) [y0, y1] = [Math.min(y0, 0), Math.max(y1, 0)];
    if (x0 === x1) [x0, x1] = [x0 - 1, x1 + 1];
    if (y0 === y1) [y0, y1] = [y0 - (Math.abs(y0) || 1) * 0.1, y1 + (Math.abs(y1) || 1) * 0.1];
    if (!spec.range) { const pad = (y1 - y0) * 0.06; y0 -= pad; y1 += pad; }
    const sx = x => box.left + (x - x0) / (x1 - x0) * (width - box.left - box.right);
    const sy = y => height - box.bottom - (y - y0) / (y1 - y0) * (height - box.top - box.bottom);
    const svg = frame(plot, spec, width, height, box, ticks(y0, y1, 4).map(at => [at, sy(at)]), title);
    for (const at of ticks(x0, x1, Math.max(2, Math.min(6, width / 80)))) svg.append(make("text", { x: sx(at), y: height - 19, "text-anchor": "middle" }, round(at)));
    if (spec.diagonal) svg.append(make("path", { class: "guide", d: `M${sx(0)} ${sy(Math.max(0, y0))}L${sx(1)} ${sy(1)}` }));
    if (spec.zero) svg.append(make("path", { class: "axis zero", d: `M${box.left} ${sy(0)}H${width - box.right}` }));
    for (const s of shown) {
      let d = "", pen = false;
      s.x.forEach((x, i) => {
        if (s.y[i] === null) { pen = false; return; }
        if (s.hollow[i]) {
          svg.append(make("circle", { class: "hollow", cx: sx(x), cy: sy(s.y[i]), r: 2.4, style: `stroke:var(--s${s.colour})` }));
          return;
        }
        d += `${pen ? "L" : "M"}${sx(x).toFixed(1)} ${sy(s.y[i]).toFixed(1)}`;
        pen = true;
        if (s.dots || s.x.length === 1) svg.append(make("circle", { cx: sx(x), cy: sy(s.y[i]), r: 3.2, style: `fill:var(--s${s.colour})` }));
      });
      svg.append(make("path", { class: "path", d, style: `stroke:var(--s${s.colour})`, "stroke-dasharray": DASHES[s.dash] || null }));
    }
    const stops = [...new Set(xs)].sort((a, b) => a - b), cursor = make("path", { class: "cursor" });
    svg.append(cursor);
    let at = -1;
    const show = i => {
      at = Math.max(0, Math.min(stops.length - 1, i));
      const x = stops[at], place = svg.getBoundingClientRect();
      cursor.setAttribute("d", `M${sx(x)} ${box.top}V${height - box.bottom}`);
      const text = shown.map(s => [s, s.x.indexOf(x)]).filter(([s, j]) => j >= 0 && s.y[j] !== null)
        .map(([s, j]) => `${s.name}: ${round(s.y[j])}${s.about[j] ? ` (${s.about[j]})` : ""}`);
      tip([`${spec.x} ${round(x)}`, ...text].join("\n"), place.left + sx(x) / width * place.width, place.top + place.height / 3);
    };
    const hide = () => { at = -1; cursor.setAttribute("d", ""); tip(""); };
    svg.addEventListener("pointermove", event => {
      const place = svg.getBoundingClientRect(), x = (event.clientX - place.left) / place.width * width;
      show(stops.reduce((best, stop, i) => Math.abs(sx(stop) - x) < Math.abs(sx(stops[best]) - x) ? i : best, 0));
    });
    svg.addEventListener("pointerleave", hide);
    svg.addEventListener("blur", hide);
    svg.addEventListener("keydown", event => {
      const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (move) { event.preventDefault(); show(at < 0 ? (move > 0 ? 0 : stops.length - 1) : at + move); }
    });
  };
  if (spec.series.length > 1) legend(figure, spec.series, off, () => draw());
  whenSized(figure, draw);
}

function drawBars(figure, spec) {
  const off = new Set(), plot = $(".plot", figure), title = $("figcaption", figure).textContent;
  let width = 0;
  const draw = size => {
    width = size || width;
    const height = Math.round(Math.min(260, Math.max(170, width * 0.45))), box = { left: 46, right: 12, top: 22, bottom: 34 };
    const shown = spec.series.filter((_, i) => !off.has(i)), values = shown.flatMap(s => s.y).filter(v => v !== null);
    const y0 = Math.min(0, ...values), y1 = Math.max(0, ...values) || 1;
    const sy = y => height - box.bottom - (y - y0) / (y1 - y0) * (height - box.top - box.bottom);
    const svg = frame(plot, spec, width, height, box, ticks(y0, y1, 4).map(at => [at, sy(at)]), title);
    const slot = (width - box.left - box.right) / spec.labels.length, thick = Math.max(1, Math.min(36, slot * 0.86 / Math.max(1, shown.length)));
    const every = Math.ceil(spec.labels.length / Math.max(1, Math.floor((width - box.left) / (8 + 6.5 * Math.max(...spec.labels.map(l => Math.min(l.length, 14)))))));
    spec.labels.forEach((label, i) => {
      const middle = box.left + slot * (i + 0.5);
      if (i % every === 0) svg.append(make("text", { x: middle, y: height - 19, "text-anchor": "middle" }, label.length > 14 ? `${label.slice(0, 13)}…` : label));
      shown.forEach((s, j) => {
        if (s.y[i] === null) return;
        const left = middle + (j - shown.length / 2) * thick, top = Math.min(sy(s.y[i]), sy(0));
        svg.append(make("rect", { x: left + 0.5, y: top, width: Math.max(1, thick - 1), height: Math.max(Math.abs(sy(s.y[i]) - sy(0)), s.y[i] ? 1 : 0), rx: Math.min(2, thick / 3), style: `fill:var(--s${s.colour})` }));
      });
      const zone = make("rect", { x: middle - slot / 2, y: box.top, width: slot, height: height - box.top - box.bottom, fill: "transparent" });
      zone.addEventListener("pointermove", event => tip([label, ...shown.map(s => `${s.name}: ${s.y[i] === null ? "–" : round(s.y[i])}`)].join("\n"), event.clientX, event.clientY));
      zone.addEventListener("pointerleave", () => tip(""));
      svg.append(zone);
    });
    svg.append(make("path", { class: "axis zero", d: `M${box.left} ${sy(0)}H${width - box.right}` }));
  };
  if (spec.series.length > 1) legend(figure, spec.series.map(s => ({ ...s, bar: true })), off, () => draw());
  whenSized(figure, draw);
}

const SHAPES = [
  (c, x, y, r) => c.arc(x, y, r, 0, 7),
  (c, x, y, r) => c.rect(x - r * 0.9, y - r * 0.9, r * 1.8, r * 1.8),
  (c, x, y, r) => { c.moveTo(x, y - r * 1.25); c.lineTo(x + r * 1.15, y + r * 0.85); c.lineTo(x - r * 1.15, y + r * 0.85); c.closePath(); },
  (c, x, y, r) => { c.moveTo(x, y - r * 1.35); c.lineTo(x + r * 1.35, y); c.lineTo(x, y + r * 1.35); c.lineTo(x - r * 1.35, y); c.closePath(); },
];
function drawScatter(figure, spec) {
  const plot = $(".plot", figure), canvas = make("canvas", { role: "img", tabindex: "0", "aria-label": $("figcaption", figure).textContent }), many = spec.groups.length > 28;
  const ring = new Set(spec.ring);
  let width = 0, height = 0, only = null;
  plot.append(canvas);
  const order = [...spec.px.keys()].sort((a, b) => ring.has(a) - ring.has(b));
  const place = i => [10 + spec.px[i] / 1000 * (width - 20), height - 10 - spec.py[i] / 1000 * (height - 20)];
  const draw = size => {
    width = size || width;
    height = Math.round(Math.min(420, width * 0.85));
    const ratio = devicePixelRatio || 1, style = getComputedStyle(document.documentElement);
    Object.assign(canvas, { width: width * ratio, height: height * ratio });
    canvas.style.height = `${height}px`;
    const c = canvas.getContext("2d"), colours = [0, 1, 2, 3, 4, 5, 6].map(i => style.getPropertyValue(`--s${i}`)), faint = style.getPropertyValue("--line");
    c.scale(ratio, ratio);
    const radius = spec.px.length > 2500 ? 2 : spec.px.length > 800 ? 2.6 : 3.4;
    const one = (i, colour, alpha) => {
      const [x, y] = place(i), group = spec.group[i];
      c.globalAlpha = alpha;
      c.beginPath();
      SHAPES[Math.floor(group / 7) % 4](c, x, y, radius);
      c.fillStyle = colour;
      c.fill();
      if (ring.has(i)) { c.globalAlpha = 1; c.beginPath(); c.arc(x, y, radius + 2.5, 0, 7); c.lineWidth = 1.6; c.strokeStyle = style.getPropertyValue("--text"); c.stroke(); }
    };
    if (only !== null) order.filter(i => spec.group[i] !== only).forEach(i => one(i, faint, 1));
    order.filter(i => only === null || spec.group[i] === only).forEach(i => one(i, colours[spec.group[i] % 7], 0.78));
  };
  const choose = group => {
    only = group;
    $$(".chips button", figure).forEach((button, i) => button.setAttribute("aria-pressed", String(group === null || i === group)));
    draw();
  };
  if (many) {
    const field = make("input", { type: "search", placeholder: "highlight a class", "aria-label": "highlight a class" });
    field.addEventListener("input", () => {
      const wanted = field.value.trim().toLowerCase(), found = spec.groups.findIndex(g => g.toLowerCase() === wanted);
      const near = found >= 0 ? found : spec.groups.findIndex(g => g.toLowerCase().includes(wanted));
      choose(wanted && near >= 0 ? near : null);
    });
    plot.before(make("p", { class: "controls" }, field));
  } else {
    const box = make("div", { class: "chips" });
    spec.groups.forEach((name, i) => {
      const icon = make("canvas", { width: 20, height: 20, style: "width:10px;height:10px", "aria-hidden": "true" });
      const paint = () => {
        const c = icon.getContext("2d");
        c.clearRect(0, 0, 20, 20);
        c.beginPath();
        SHAPES[Math.floor(i / 7) % 4](c, 10, 10, 7);
        c.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(`--s${i % 7}`);
        c.fill();
      };
      paint();
      redraws.add(paint);
      const button = make("button", { type: "button", "aria-pressed": "true" }, icon, name);
      button.addEventListener("click", () => choose(only === i ? null : i));
      box.append(button);
    });
    plot.before(box);
  }
  canvas.addEventListener("pointermove", event => {
    const bounds = canvas.getBoundingClientRect(), x = event.clientX - bounds.left, y = event.clientY - bounds.top;
    let best = -1, least = 144;
    order.forEach(i => { const [a, b] = place(i), far = (a - x) ** 2 + (b - y) ** 2; if (far <= least) { least = far; best = i; } });
    tip(best < 0 ? "" : spec.groups[spec.group[best]] + (ring.has(best) ? `\n${spec.ringed}` : ""), event.clientX, event.clientY);
  });
  canvas.addEventListener("pointerleave", () => tip(""));
  redraws.add(() => draw());
  whenSized(figure, draw);
}

for (const figure of $$("figure.chart")) {
  const source = $('script[type="application/json"]', figure);
  if (!source) continue;
  const spec = JSON.parse(source.textContent);
  ({ lines: drawLines, bars: drawBars, scatter: drawScatter })[spec.kind](figure, spec);
}
