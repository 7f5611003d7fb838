// Numbers and times as people read them, and one colour for each name.

export function bytes(value) {
  if (!value) return "0 B";
  const units = ["B", "kB", "MB", "GB", "TB"];
  const place = Math.min(Math.floor(Math.log10(value) / 3), units.length - 1);
  return `${Number((value / 1000 ** place).toPrecision(3))} ${units[place]}`;
}

export const rate = (value) => (value ? `${bytes(value)}/s` : "");
export const number = (value) => (value === null || value === undefined ? "" : Number(value).toLocaleString("en"));
export const percent = (value) => (value === null || value === undefined ? "" : `${Math.round(value * 1000) / 10} %`);

export function ms(link) {
  if (!link || link.ms === null || link.ms === undefined) return "";
  if (link.coarse) return `up to ${link.ms} ms`;
  return link.ms < 10 ? `${link.ms.toFixed(1)} ms` : `${Math.round(link.ms)} ms`;
}

// What a link can carry: measured when somebody asked, else what it has carried at least.
export function carries(link) {
  if (link?.line_s) return rate(link.line_s);
  return link?.best_s ? `at least ${rate(link.best_s)}` : "";
}

export function when(seconds) {
  const date = new Date(seconds * 1000);
  return Number.isNaN(date.getTime()) ? "" : date.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
}

export function day(seconds) {
  const date = new Date(seconds * 1000);
  return !seconds || Number.isNaN(date.getTime()) ? "" : date.toLocaleDateString(undefined, { dateStyle: "medium" });
}

export function span(seconds) {
  for (const [word, size] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    if (seconds >= size) return count(Math.round(seconds / size), word);
  }
  return count(Math.round(seconds), "second");
}

export const count = (many, word) => `${many} ${word}${many === 1 ? "" : "s"}`;
// Out of the middle: devices of one kind differ at their names' ends.
export const cut = (text, most) => (text.length > most ? `${text.slice(0, Math.ceil((most - 1) / 2))}…${text.slice(-Math.floor((most - 1) / 2))}` : text);

// Eight hues that stay apart for most eyes; a name keeps its own for as long as it is shown.
const given = new Map();
export function hue(name) {
  if (!given.has(name)) given.set(name, given.size % 8);
  return given.get(name);
}

export function holding(one) {
  if (one.kind === "shard") {
    const layers = one.end - one.first === one.layers ? "all layers" : `layers ${one.first} to ${one.end - 1} of ${one.layers}`;
    return `${one.name}: ${layers}${one.loaded ? "" : ", loading"}`;
  }
  if (one.kind === "task") return `${one.name}: ${one.state}, round ${one.round}`;
  return `${one.name}: ${count(one.ready, "replica")} ready${one.ready < one.count ? ` of ${one.count}` : ""}`;
}

export const KINDS = { shard: "model", task: "task", replica: "service" };
