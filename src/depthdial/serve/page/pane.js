// One answer: its tokens coloured by depth as they come, its figures, and the layers that ran, a column for each token.

import {layersRun} from "./ramp.js";

const ROW = 3;

function made(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

export class Pane {
  constructor(title, layers, ramp, card) {
    Object.assign(this, {title, layers, ramp, card, tokens: [], spans: [], first: 0, last: 0});
    this.root = made("section", "pane");
    this.figures = made("p", "figures", " ");
    this.text = made("p", "tokens waits");
    this.strip = made("canvas", "strip");
    this.strip.hidden = true;
    this.strip.setAttribute("role", "img");
    this.axis = made("p", "axis");
    this.axis.textContent = `a column for each token, layer 1 at the top, ${layers} at the bottom`;
    this.axis.hidden = true;
    this.root.append(made("h2", "", title), this.figures, this.text, this.strip, this.axis);
    this.#listen();
  }

  /** Take what one chunk says: parallel lists of texts, ids, depths, costs, masks. */
  add(depth) {
    if (!depth) return;
    depth.tokens.forEach((text, i) => {
      const token = {text, id: depth.token_ids[i], depth: depth.depths[i], cost: depth.costs[i], mask: depth.layers_run[i]};
      this.last = performance.now();
      this.first ||= this.last;
      const at = this.tokens.push(token) - 1;
      token.read = at === 0;
      const span = made("span", "t", text);
      const {paper, ink} = this.ramp.of(token.depth);
      span.style.backgroundColor = paper;
      span.style.color = ink;
      span.dataset.at = at;
      span.tabIndex = -1;
      span.hidden = text === "";
      this.spans.push(span);
      this.text.append(span);
    });
    // tokens are shown at once, figures and layers a few times a second: the model may need the same cores
    this.due ||= setTimeout(() => this.#paint(), 120);
  }

  #paint(note) {
    clearTimeout(this.due);
    this.due = 0;
    if (!this.tokens.length) return;
    this.#tell(note);
    this.#draw();
  }

  /** No token follows. */
  end(note) {
    this.text.classList.remove("waits");
    const first = this.spans.find(span => !span.hidden);
    if (first) first.tabIndex = 0;
    this.#paint(note);
    this.strip.setAttribute("aria-label", `Layers that ran, a column for each of ${this.tokens.length} tokens. ${this.summary}`);
  }

  fail(message) {
    this.end();
    const wrong = made("p", "wrong", message);
    wrong.setAttribute("role", "alert");
    this.root.append(wrong);
  }

  get said() { return this.tokens.map(token => token.text).join(""); }

  get speed() { return this.tokens.length > 1 ? (this.tokens.length - 1) / ((this.last - this.first) / 1000) : 0; }

  /** The mean of a figure over the passes over written tokens: the first token came from the prompt's last one. */
  mean(figure) {
    const ran = this.tokens.length > 1 ? this.tokens.slice(1) : this.tokens;
    return ran.reduce((sum, token) => sum + token[figure], 0) / ran.length;
  }

  get prompt() { return this.read?.toFixed(3) ?? "–"; }

  get summary() {
    if (!this.tokens.length) return "";
    return `Mean ${this.mean("depth").toFixed(1)} of ${this.layers} layers, true cost ${this.mean("cost").toFixed(3)}, of the prompt ${this.prompt}.`;
  }

  #tell(note = "") {
    const count = this.tokens.length;
    if (!count) return;
    const parts = [["", this.speed ? this.speed.toFixed(1) : "–", " tokens/s"], ["answer ", this.mean("cost").toFixed(3), " of dense cost"],
      ["prompt ", this.prompt, ""], ["", this.mean("depth").toFixed(1), ` of ${this.layers} layers`], ["", count, count === 1 ? " token" : " tokens"]];
    this.figures.replaceChildren(
      ...parts.flatMap(([before, figure, after], i) => [i ? " · " : "", before, made("b", "", figure), after]), note && ` · ${note}`);
  }

  #draw() {
    const count = this.tokens.length, width = this.root.clientWidth, ratio = devicePixelRatio || 1;
    const column = Math.max(1, Math.min(9, Math.floor(width / count) || width / count)), height = this.layers * ROW;
    const canvas = this.strip, all = column !== this.column || !canvas.width;
    canvas.hidden = this.axis.hidden = false;
    const wide = Math.ceil(column * count);
    if (all || wide > this.room) {
      this.room = all ? Math.max(wide, Math.min(width, Math.ceil(column * (count + 64)))) : wide;
      canvas.width = Math.round(this.room * ratio);
      canvas.height = Math.round(height * ratio);
      this.drawn = 0;
    }
    Object.assign(canvas.style, {width: `${this.room}px`, height: `${height}px`});
    this.column = column;
    const pen = canvas.getContext("2d"), gap = column > 3 ? 1 : 0;
    const hole = getComputedStyle(this.root).getPropertyValue("--hole");
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    for (; this.drawn < count; this.drawn++) {
      const token = this.tokens[this.drawn];
      const {paper} = this.ramp.of(token.depth);
      layersRun(token.mask, this.layers).forEach((ran, layer) => {
        pen.fillStyle = ran ? paper : hole;
        pen.fillRect(this.drawn * column, layer * ROW, column - gap, ROW - 0.6);
      });
    }
  }

  #show(at, where, spoken) {
    const span = this.spans[at];
    this.spans.forEach(other => other.classList.toggle("on", other === span));
    this.card.show(this.tokens[at], this.layers, this.ramp, where ?? span.getBoundingClientRect(), spoken);
  }

  #hide() {
    this.spans.forEach(span => span.classList.remove("on"));
    this.card.hide();
  }

  #listen() {
    this.text.addEventListener("pointerover", event => {
      if (event.target.dataset.at) this.#show(+event.target.dataset.at);
    });
    this.text.addEventListener("focusin", event => this.#show(+event.target.dataset.at, undefined, true));
    this.strip.addEventListener("pointermove", event => {
      const at = Math.floor(event.offsetX / this.column);
      if (at < this.tokens.length) this.#show(at, new DOMRect(event.clientX, event.clientY - 8, 1, 16));
    });
    for (const [element, name] of [[this.text, "pointerleave"], [this.strip, "pointerleave"], [this.text, "focusout"]])
      element.addEventListener(name, () => this.#hide());
    this.text.addEventListener("keydown", event => {
      const seen = this.spans.filter(span => !span.hidden), now = seen.indexOf(event.target);
      const to = {ArrowRight: now + 1, ArrowLeft: now - 1, Home: 0, End: seen.length - 1}[event.key];
      if (event.key === "Escape") this.#hide();
      if (to === undefined || !seen[to]) return;
      event.preventDefault();
      event.target.tabIndex = -1;
      seen[to].tabIndex = 0;
      seen[to].focus();
    });
    new ResizeObserver(() => { if (this.tokens.length) { this.column = 0; this.#draw(); } }).observe(this.root);
  }
}

/** The details of one token, beside it. */
export class Card {
  constructor(root, says) { Object.assign(this, {root, says}); }

  show(token, layers, ramp, where, spoken) {
    const cells = made("div", "cells");
    layersRun(token.mask, layers).forEach(ran => {
      const cell = made("i");
      if (ran) cell.style.backgroundColor = ramp.of(token.depth).paper;
      cells.append(cell);
    });
    const line = `${token.depth} of ${layers} layers · true cost ${token.cost.toFixed(3)} · token ${token.id}`
      + (token.read ? " · from the pass over the prompt’s last token" : "");
    const text = JSON.stringify(token.text).slice(1, -1).replaceAll('\\"', '"');
    this.root.replaceChildren(made("code", "", text || "no text"), made("p", "soft", line), cells);
    this.root.hidden = false;
    const {width, height} = this.root.getBoundingClientRect();
    const top = where.top - height - 8 > 8 ? where.top - height - 8 : where.bottom + 8;
    const left = Math.max(8, Math.min(where.left + where.width / 2 - width / 2, innerWidth - width - 8));
    Object.assign(this.root.style, {left: `${left}px`, top: `${top}px`});
    if (spoken) this.says.textContent = `${text}, ${token.depth} of ${layers} layers, cost ${token.cost.toFixed(2)}`;
  }

  hide() { this.root.hidden = true; }
}
