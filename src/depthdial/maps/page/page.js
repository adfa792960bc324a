"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const card = document.getElementById("card");
  const colour = getComputedStyle(document.documentElement);
  const bytes = (text) => (text === null ? null : Uint8Array.from(atob(text), (c) => c.charCodeAt(0)));
  const stride = Math.ceil(data.layers / 8);
  const texts = data.texts.map((maps) => maps.map((m) => ({ ...m, mask: bytes(m.mask), scores: bytes(m.scores) })));
  const ran = (m, t, layer) => (m.mask[t * stride + (layer >> 3)] >> (layer & 7)) & 1;
  const rootStyle = document.createElement("span");
  rootStyle.hidden = true;
  document.body.append(rootStyle);
  const shades = Array.from({ length: data.layers + 1 }, (_, d) => {
    rootStyle.className = `d${d}`;
    return getComputedStyle(rootStyle).getPropertyValue("--c");
  });

  const make = (tag, name, ...inside) => {
    const made = document.createElement(tag);
    if (name) made.className = name;
    made.append(...inside);
    return made;
  };

  // ------------------------------------------------------------ strips
  const ROW = 4;
  const paint = (pane) => {
    const m = texts[pane.closest("article").dataset.n][pane.dataset.m];
    const strip = pane.querySelector(".strip"), canvas = strip.firstElementChild;
    if (!m.mask) { strip.hidden = true; return; }
    const count = m.depth.length;
    const column = Math.max(3, Math.min(12, Math.floor(strip.clientWidth / count)));
    const scale = window.devicePixelRatio || 1;
    canvas.width = count * column * scale;
    canvas.height = data.layers * ROW * scale;
    canvas.style.width = `${count * column}px`;
    canvas.style.height = `${data.layers * ROW}px`;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.fillStyle = colour.getPropertyValue("--hole");
    pen.fillRect(0, 0, count * column, data.layers * ROW);
    const gap = column > 5 ? 1 : 0;
    for (let t = 0; t < count; t++) {
      pen.fillStyle = shades[m.depth[t]];
      for (let layer = 0; layer < data.layers && m.depth[t]; layer++) {
        if (ran(m, t, layer)) pen.fillRect(t * column, (data.layers - 1 - layer) * ROW, column - gap, ROW);
      }
    }
    pen.fillStyle = colour.getPropertyValue("--ink");
    for (const t of m.borders) pen.fillRect(t * column - 1, 0, 1, data.layers * ROW);
    if (pane.dataset.at !== undefined) {
      pen.strokeStyle = colour.getPropertyValue("--focus");
      pen.lineWidth = 2;
      pen.strokeRect(Number(pane.dataset.at) * column, 1, column, data.layers * ROW - 2);
    }
    pane.dataset.column = column;
  };
  const panes = [...document.querySelectorAll(".pane")];
  const paintAll = () => panes.forEach(paint);

  // ------------------------------------------------------------ the card
  const visible = (text) => (text === "" ? "(part of a character)" : `“${text.replaceAll("\n", "↵").replaceAll("\t", "⇥")}”`);
  const bits = (nats) => `${(nats / Math.LN2).toFixed(1)} bits`;
  const percent = (p) => `${(100 * p).toFixed(p >= 0.0995 || p === 0 ? 0 : p >= 0.001 ? 1 : 3)} %`;

  const maskOf = (m, t, which) => {
    const row = make("div", "mask"), routed = data.routed[which];
    for (let layer = 0; layer < data.layers; layer++) {
      const cell = make("i", ran(m, t, layer) ? `ran d${m.depth[t]}` : "");
      const place = routed.indexOf(layer), bar = make("b");
      if (place >= 0 && m.scores) bar.style.height = `${(100 * m.scores[t * routed.length + place]) / 255}%`;
      else if (!ran(m, t, layer)) bar.style.height = "0";
      cell.append(bar);
      row.append(cell);
    }
    const axis = make("div", "axis", make("span", "", "layer 1"), make("span", "", String(data.layers)));
    return [row, axis];
  };

  const describe = (n, which, t) => {
    const m = texts[n][which];
    const parts = [make("div", "word", visible(m.pieces[t]), " ", make("span", "kind", m.class[t]))];
    texts[n].forEach((other, i) => {
      if (i !== which && other.pieces[t] !== m.pieces[t]) return;
      if (texts[n].length > 1) parts.push(make("p", "name", data.names[i]));
      parts.push(make("p", "depth", other.depth[t] ? `${other.depth[t]} of ${data.layers} layers` : "no pass"));
      if (other.mask && other.depth[t]) parts.push(...maskOf(other, t, i));
    });
    const facts = make("dl", "");
    const tell = (name, value) => facts.append(make("dt", "", name), make("dd", "", value));
    const s = m.surprisal && m.surprisal[t], e = m.entropy && m.entropy[t];
    if (s !== null && s !== undefined) tell(`${data.asked} gave it`, `${percent(Math.exp(-s))} (surprisal ${bits(s)})`);
    if (e !== null && e !== undefined) tell("entropy in its place", bits(e));
    if (facts.childElementCount) parts.push(facts);
    const others = m.alternatives && m.alternatives[t];
    if (others && others.length) {
      const table = make("table", "");
      for (const [text, p] of others) {
        const bar = make("i");
        bar.style.width = `${100 * p}%`;
        table.append(make("tr", "", make("td", "", visible(text)), make("td", "bar", bar), make("td", "share", percent(p))));
      }
      parts.push(table);
    }
    return parts;
  };

  let at = null;
  const tokensOf = (n, which) => panes.find((p) => p.closest("article").dataset.n === String(n) && p.dataset.m === String(which)).querySelector(".tokens").children;
  const tokenAt = (n, which, t) => tokensOf(n, which)[t];

  const mark = (n, t, on) => {
    texts[n].forEach((_, i) => {
      const token = tokenAt(n, i, t);
      if (!token) return;
      token.classList.toggle("at", on);
      const pane = token.closest(".pane");
      if (on) pane.dataset.at = t; else delete pane.dataset.at;
      paint(pane);
    });
  };
  const hide = () => {
    if (at) mark(at.n, at.t, false);
    at = null;
    card.hidden = true;
  };
  const show = (token) => {
    const pane = token.closest(".pane");
    const next = { n: Number(pane.closest("article").dataset.n), which: Number(pane.dataset.m), t: Number(token.dataset.i) };
    if (at) mark(at.n, at.t, false);
    at = next;
    mark(at.n, at.t, true);
    card.replaceChildren(...describe(at.n, at.which, at.t));
    card.hidden = false;
    const box = token.getClientRects()[0] || token.getBoundingClientRect(), own = card.getBoundingClientRect();
    const left = Math.max(8, Math.min(box.left, document.documentElement.clientWidth - own.width - 8));
    const below = box.bottom + 10 + own.height <= window.innerHeight || box.top < own.height + 10;
    card.style.left = `${left + window.scrollX}px`;
    card.style.top = `${(below ? box.bottom + 10 : box.top - own.height - 10) + window.scrollY}px`;
  };

  // ------------------------------------------------------------ pointer and keys
  const main = document.querySelector("main");
  main.addEventListener("pointerover", (event) => {
    const token = event.target.closest(".t");
    if (token) show(token);
  });
  main.addEventListener("pointerleave", () => {
    if (document.activeElement && document.activeElement.classList.contains("t")) show(document.activeElement);
    else hide();
  });
  main.addEventListener("pointermove", (event) => {
    if (event.target.tagName !== "CANVAS") return;
    const pane = event.target.closest(".pane");
    const t = Math.floor(event.offsetX / Number(pane.dataset.column));
    const token = pane.querySelector(".tokens").children[t];
    if (token) show(token);
  });
  main.addEventListener("focusin", (event) => {
    if (event.target.classList.contains("t")) show(event.target);
  });
  main.addEventListener("focusout", hide);
  const go = (from, to) => {
    if (!to) return;
    from.tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  };
  // the token above or below: on the nearest other line, nearest sideways
  const beside = (token, step) => {
    const here = token.getClientRects()[0], all = [...token.parentElement.children];
    const places = all.map((t) => t.getClientRects()[0]).map((r, i) => ({ r, i })).filter(({ r }) => r);
    const lines = places.filter(({ r }) => (r.top - here.top) * step > here.height / 2);
    if (!lines.length) return null;
    const line = lines.reduce((a, b) => (Math.abs(b.r.top - here.top) < Math.abs(a.r.top - here.top) ? b : a)).r.top;
    const best = lines.filter(({ r }) => Math.abs(r.top - line) < here.height / 2)
      .reduce((a, b) => (Math.abs(b.r.left - here.left) < Math.abs(a.r.left - here.left) ? b : a));
    return all[best.i];
  };
  main.addEventListener("keydown", (event) => {
    const token = event.target;
    if (!token.classList.contains("t")) return;
    const steps = {
      ArrowRight: () => token.nextElementSibling, ArrowLeft: () => token.previousElementSibling,
      ArrowDown: () => beside(token, 1), ArrowUp: () => beside(token, -1),
      Home: () => token.parentElement.firstElementChild, End: () => token.parentElement.lastElementChild,
    };
    if (event.key === "Escape") { hide(); return; }
    if (!(event.key in steps) || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    go(token, steps[event.key]());
  });

  // ------------------------------------------------------------ light and dark
  const button = document.getElementById("theme"), wish = window.matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (document.documentElement.dataset.theme || (wish.matches ? "dark" : "light")) === "dark";
  const name = () => { button.textContent = dark() ? "Light" : "Dark"; };
  button.hidden = false;
  button.addEventListener("click", () => {
    document.documentElement.dataset.theme = dark() ? "light" : "dark";
    name();
    paintAll();
  });
  wish.addEventListener("change", () => { name(); paintAll(); });
  name();
  paintAll();
  window.addEventListener("resize", paintAll);
  window.addEventListener("beforeprint", paintAll);
})();
