// Colours of depth: cividis, which rises evenly in lightness, for the colour-blind too (maps/terminal.py has the same).

const STOPS = ["00224e", "123570", "3b496c", "575d6d", "707173", "8a8678", "a59c74", "c3b369", "e1cc55", "fee838"]
  .map(hex => [0, 2, 4].map(at => parseInt(hex.slice(at, at + 2), 16)));

function luminance(rgb) {
  const [r, g, b] = rgb.map(v => v / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/** Colours from `least` layers (dark) to `most` (bright). */
export class Ramp {
  constructor(least, most) {
    this.least = least;
    this.most = most;
    this.known = new Map();
  }

  /** {paper, ink}: the colour of a depth, and of letters that can be read on it. */
  of(depth) {
    if (!this.known.has(depth)) this.known.set(depth, this.#make(depth));
    return this.known.get(depth);
  }

  #make(depth) {
    const place = Math.min(1, Math.max(0, (depth - this.least) / Math.max(1, this.most - this.least)));
    const at = place * (STOPS.length - 1), low = Math.floor(at), high = Math.min(low + 1, STOPS.length - 1);
    const rgb = STOPS[low].map((v, i) => Math.round(v + (STOPS[high][i] - v) * (at - low)));
    const light = luminance(rgb);
    const ink = (light + 0.05) / 0.05 > 1.05 / (light + 0.05) ? "#000" : "#fff";
    return {paper: `rgb(${rgb.join(" ")})`, ink};
  }
}

/** Which layers ran, from the mask that the server sends: hexadecimal, a bit each; empty is all of them. */
export function layersRun(mask, layers) {
  return Array.from({length: layers}, (_, i) =>
    mask === "" || (parseInt(mask.slice((i >> 3) * 2, (i >> 3) * 2 + 2), 16) >> (7 - (i & 7)) & 1) === 1);
}
