// The live map: devices, the links between them, and what each of them holds. This node is in the middle.

import { h, morph } from "./dom.js";
import { KINDS, carries, count, cut, hue, ms, rate } from "./words.js";
import { describeDevice } from "./devices.js";

export function map(root, state, ui) {
  const view = { selected: null, hovered: null, model: null };
  const stage = h("div", { class: "stage" });
  const legend = h("div", { class: "legend", role: "group", "aria-label": "What is held" });
  const side = h("aside", { class: "panel side", "aria-label": "The selected device" });
  const key = h("p", { class: "hint key" }, "A ring fills as the processor does. A line is a link of this device: grey up to 8 ms there and back, ", h("span", { class: "middling" }, "orange up to 64 ms"), ", ", h("span", { class: "far" }, "red beyond"), "; thicker with more traffic. Other devices' links are drawn where they are slow. What a link can carry shows once much has gone over it, or it was measured.");
  root.append(h("div", { class: "mapgrid" }, h("section", { class: "panel mappanel", "aria-label": "Map of the mesh" }, legend, stage, key), side));
  const watch = new ResizeObserver(() => draw());
  watch.observe(stage);

  function select(id) {
    view.selected = view.selected === id ? null : id;
    draw();
  }

  function draw() {
    const here = state.nodes.filter((node) => node.here);
    const away = state.nodes.length - here.length;
    const width = Math.max(stage.clientWidth, 280);
    const small = width < 560;
    const height = small ? Math.max(330, Math.min(width * 1.12, 620)) : Math.max(420, Math.min(width * 0.66, 720));
    const places = arrange(here, width, height);
    const focus = view.hovered ?? view.selected;
    const lit = view.model && new Set(here.filter((node) => node.holds.some((one) => `${one.kind} ${one.name}` === view.model)).map((node) => node.id));
    morph(stage, h("svg", { viewBox: `0 0 ${width} ${height}`, width, height, class: "map", role: "group", "aria-label": `${count(here.length, "device")} here` },
      h("g", { class: "links" }, state.links.filter((link) => places.has(link.a) && places.has(link.b)).map((link) => line(link, places, focus, here.length, small, lit))),
      h("g", { class: "routes" }, routes(state, places, view.model)),
      h("g", { class: "nodes" }, here.map((node) => dot(node, places.get(node.id), { view, lit, select, crowd: here.length, small, hover })))));
    morph(legend, names(here, away, view, draw));
    const chosen = state.nodes.find((node) => node.id === view.selected) ?? state.nodes.find((node) => node.me);
    morph(side, chosen ? [describeDevice(chosen, state, ui), chosen.me ? links(state, select) : []] : []);
  }

  function hover(id) {
    if (view.hovered === id) return;
    view.hovered = id;
    draw();
  }

  return { update: draw, end: () => watch.disconnect() };
}

// This node's links as a list: what the lines say, for who would rather read.
function links(state, select) {
  const names = new Map(state.nodes.map((node) => [node.id, node.device]));
  const own = state.links.map((link) => ({ ...link, other: link.a === state.me.id ? link.b : link.b === state.me.id ? link.a : null })).filter((link) => link.other).slice(0, 20);
  if (!own.length) return [];
  return [h("h3", null, "Links of this device"), h("ul", { class: "lines" }, own.map((link) => h("li", { "data-key": link.other },
    h("button", { class: "text", onclick: () => select(link.other) }, names.get(link.other) ?? link.other.slice(-8)),
    h("span", null, [ms(link), carries(link) || rate(Math.max(link.sent_s ?? 0, link.received_s ?? 0))].filter(Boolean).join(" · ")))))];
}

// This node in the middle, the others on up to three rings around it; by their ids, so that nobody jumps about.
function arrange(here, width, height) {
  const places = new Map();
  const me = here.find((node) => node.me);
  const others = here.filter((node) => !node.me).sort((a, b) => (a.id < b.id ? -1 : 1));
  const rings = others.length <= 12 ? [others.length] : others.length <= 30 ? [10, others.length - 10] : split(others.length);
  const size = Math.max(7, Math.min(22, (others.length <= 12 ? 22 : others.length <= 30 ? 15 : 10) * Math.min(1, width / 700 + 0.25)));
  const rx = width / 2 - Math.max(width < 560 ? 46 : 70, size + 30); // half of a name stands beside a device
  const ry = height / 2 - size - 34;
  places.me = me?.id;
  if (me) places.set(me.id, { x: width / 2, y: height / 2 - 6, r: size * 1.25 });
  let next = 0;
  rings.forEach((many, ring) => {
    const share = rings.length === 1 ? 1 : [0.45, 1][ring] !== undefined && rings.length === 2 ? [0.5, 1][ring] : [0.36, 0.68, 1][ring];
    for (let at = 0; at < many; at++) {
      const angle = -Math.PI / 2 + ((at + ring * 0.37) / many) * 2 * Math.PI + (many === 2 ? Math.PI / 2 : many === 1 ? Math.PI / 2 : 0);
      places.set(others[next].id, { x: width / 2 + share * rx * Math.cos(angle), y: height / 2 - 6 + share * ry * Math.sin(angle), r: size });
      next += 1;
    }
  });
  const ys = [...places.values()].map((place) => place.y);
  const shift = (height - 22 - Math.min(...ys) - Math.max(...ys)) / 2; // three on a ring leave its lower part empty
  for (const place of places.values()) place.y += shift;
  return places;
}

function split(many) {
  const inner = Math.round(many * 0.17);
  const middle = Math.round(many * 0.33);
  return [inner, middle, many - inner - middle];
}

function line(link, places, focus, crowd, small, lit) {
  const a = places.get(link.a), b = places.get(link.b);
  const touched = focus && (link.a === focus || link.b === focus);
  const speed = link.ms === null || link.ms === undefined ? "unknown" : link.ms <= 8 ? "near" : link.ms <= 64 ? "middling" : "far";
  const busy = Math.max(link.sent_s ?? 0, link.received_s ?? 0);
  const width = (1.2 + (busy > 1e3 ? Math.min(4, Math.log10(busy) - 2.5) : 0)) * (crowd > 20 && !touched ? 0.5 : 1);
  const told = touched || (crowd <= 9 && !small) || (crowd <= 4);
  const words = [ms(link), touched && busy ? `${rate(busy)} now` : carries(link)].filter(Boolean).join(" · ");
  const me = places.get(places.me);
  let x = a.x + (b.x - a.x) * 0.5, y = a.y + (b.y - a.y) * 0.5, d = `M${a.x} ${a.y}L${b.x} ${b.y}`;
  if (me && a !== me && b !== me) { // bent around this node, which a straight line between two others may run through
    const far = Math.hypot(x - me.x, y - me.y), long = Math.hypot(b.x - a.x, b.y - a.y) || 1;
    const [ux, uy] = far > 1 ? [(x - me.x) / far, (y - me.y) / far] : [-(b.y - a.y) / long, (b.x - a.x) / long];
    const bend = Math.max(0, 0.22 * long - far);
    d = `M${a.x} ${a.y}Q${x + 2 * bend * ux} ${y + 2 * bend * uy} ${b.x} ${b.y}`;
    x += bend * ux;
    y += bend * uy;
  }
  return h("g", { class: `link ${speed}${crowd > 20 ? " faint" : ""}${touched ? " on" : ""}${(focus && !touched) || lit ? " dim" : ""}` },
    h("path", { d, "stroke-width": width }),
    told && words && h("text", { x, y: y - 4, "text-anchor": "middle" }, words));
}

// From stage to stage of the model that is picked out.
function routes(state, places, picked) {
  const model = picked?.startsWith("shard ") && state.models.find((one) => `shard ${one.name}` === picked);
  if (!model) return [];
  const stages = [...model.stages].sort((a, b) => a.first - b.first);
  return stages.slice(1).flatMap((stage, at) => stages[at].peers.flatMap((from) => stage.peers.map((to) => [from, to])))
    .filter(([from, to]) => from !== to && places.has(from) && places.has(to))
    .map(([from, to]) => {
      const a = places.get(from), b = places.get(to);
      const bend = 0.16, cx = (a.x + b.x) / 2 - (b.y - a.y) * bend, cy = (a.y + b.y) / 2 + (b.x - a.x) * bend;
      return h("path", { d: `M${a.x} ${a.y}Q${cx} ${cy} ${b.x} ${b.y}`, class: `route hue${hue(picked)}` });
    });
}

function dot(node, place, { view, lit, select, crowd, small, hover }) {
  const { x, y, r } = place;
  const chosen = node.id === view.selected;
  const cpu = node.load?.cpu;
  const held = [...new Map(node.holds.map((one) => [`${one.kind} ${one.name}`, one])).entries()].slice(0, 6);
  const named = !(small && crowd > 13) || chosen || view.hovered === node.id || node.me;
  const most = small ? 11 : crowd > 31 ? 10 : crowd > 13 ? 13 : 18;
  const about = `${node.device}${node.me ? ", this device" : ""}, ${node.role}${cpu === null || cpu === undefined ? "" : `, processor ${cpu} per cent busy`}, holds ${count(node.holds.length, "thing")}`;
  return h("g", {
    class: `node${node.me ? " me" : ""}${chosen ? " chosen" : ""}${node.connected || node.me ? "" : " distant"}${lit && !lit.has(node.id) ? " dim" : ""}`,
    transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`, "data-key": node.id, tabindex: 0, role: "button", "aria-pressed": String(chosen), "aria-label": about,
    onclick: () => select(node.id),
    onkeydown: (event) => { if (event.key === "Enter" || event.key === " ") { event.preventDefault(); select(node.id); } },
    onpointerenter: () => hover(node.id), onpointerleave: () => hover(null),
  },
    h("circle", { class: "hit", r: Math.max(r + 6, 16) }),
    h("circle", { class: "body", r }),
    cpu ? h("path", { class: cpu >= 80 ? "cpu high" : "cpu", d: arc(r, cpu / 100) }) : null,
    node.me ? h("circle", { class: "core", r: r * 0.34 }) : null,
    held.map(([name], at) => h("circle", { class: `holds hue${hue(name)}`, cx: (at - (held.length - 1) / 2) * 9, cy: r + 9, r: 3.6 })),
    named && h("text", { class: crowd > 31 ? "name little" : "name", y: r + (held.length ? 26 : 17), "text-anchor": "middle" }, cut(node.device, most)));
}

function arc(r, share) {
  const angle = Math.min(share, 0.999) * 2 * Math.PI;
  return `M0 ${-r}A${r} ${r} 0 ${share > 0.5 ? 1 : 0} 1 ${(r * Math.sin(angle)).toFixed(2)} ${(-r * Math.cos(angle)).toFixed(2)}`;
}

function names(here, away, view, draw) {
  const held = new Map();
  for (const node of here) for (const one of node.holds) held.set(`${one.kind} ${one.name}`, one);
  const chips = [...held.entries()].sort(([a], [b]) => (a < b ? -1 : 1)).slice(0, 24).map(([key, one]) =>
    h("button", {
      class: "chip", "data-key": key, "aria-pressed": String(view.model === key),
      onclick: () => { view.model = view.model === key ? null : key; draw(); },
    }, h("i", { class: `dot hue${hue(key)}` }), one.name, h("small", null, KINDS[one.kind])));
  return [
    h("h1", null, `${count(here.length, "device")} here`, away ? h("small", null, `${away} away`) : null),
    chips.length ? h("div", { class: "chips" }, chips) : h("p", { class: "hint" }, "Nothing is deployed yet. Serve a model or start a task, and it shows here."),
  ];
}

