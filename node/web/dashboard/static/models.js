// Models that the mesh serves: who holds which layers, how fast they should be, and serving another.

import { act } from "./api.js";
import { ask, field, h, morph, say } from "./dom.js";
import { bytes, count, hue, number } from "./words.js";

export function models(root, state, ui) {
  const top = h("div", { class: "top" });
  const list = h("div", { class: "stack" });
  root.append(top, list);
  return {
    update() {
      const names = new Map(state.nodes.map((node) => [node.id, node.device]));
      morph(top, [h("h1", null, "Models"), h("button", { class: "primary", disabled: !ui.owner, title: ui.owner ? null : "Unlock this page first.", onclick: () => serve() }, "Serve a model")]);
      morph(list, state.models.length ? state.models.map((model) => card(model, names, ui)) : h("p", { class: "empty" }, "No model is served yet. A folder in the Hugging Face layout on this device, or a name on its Hub, becomes one; a task that ends does too."));
    },
  };
}

function card(model, names, ui) {
  const state = model.served ? h("span", { class: "pill good" }, "served") : h("span", { class: "pill" }, model.trouble ? "waiting" : "loading");
  const kinds = { causal_lm: "language model", program: "program", trained: "trained here" };
  const facts = [kinds[model.kind], model.precision, count(model.layers, "layer"), model.weights_bytes && bytes(model.weights_bytes), model.sessions && model.kind === "causal_lm" && `${count(model.sessions, "session")} of ${number(model.positions)} tokens`, model.tokens_per_s && `${number(Math.round(model.tokens_per_s))} tokens/s expected`, model.objective && model.kind === "trained" && model.objective.replaceAll("_", " "), model.kind === "trained" && `version ${model.version}`];
  return h("article", { class: "card", "data-key": model.name },
    h("div", { class: "top" }, h("h2", null, h("i", { class: `dot hue${hue(`shard ${model.name}`)}` }), model.name), state),
    h("p", { class: "hint" }, facts.filter(Boolean).join(" · ")),
    model.trouble && h("p", { class: "bad" }, model.trouble),
    layers(model, names),
    h("div", { class: "row" },
      model.kind === "causal_lm" && model.served && h("a", { class: "button", href: `#playground/${encodeURIComponent(model.name)}` }, "Talk to it"),
      model.kind !== "trained" && ui.owner && h("button", { class: "danger quiet", onclick: () => unserve(model) }, "Serve it no longer …")));
}

// One bar for each run of layers, as wide as it is long; below it who holds it.
function layers(model, names) {
  const stages = [...model.stages].sort((a, b) => a.first - b.first || a.end - b.end);
  if (!stages.length) return null;
  return h("div", { class: "layers", role: "list" }, stages.map((stage) => {
    const wide = Math.max(0.08, (stage.end - stage.first) / model.layers);
    const last = stage.end - 1;
    return h("div", { class: "layer", role: "listitem", "data-share": Math.round(wide * 12) || 1 },
      h("div", { class: `run hue${hue(`shard ${model.name}`)}` }, last > stage.first ? `layers ${stage.first} to ${last}` : `layer ${stage.first}`),
      h("ul", null, stage.peers.map((peer) => h("li", { class: stage.loaded.includes(peer) ? "" : "soft" }, names.get(peer) ?? peer.slice(-8), stage.loaded.includes(peer) ? null : h("small", null, " loading")))));
  }));
}

function unserve(model) {
  ask(`Serve ${model.name} no longer?`, h("p", null, "Sessions that run are ended, and the devices give its memory back. Only the device that deployed it can do this."), {
    go: "Serve it no longer", danger: true,
    act: async () => { await act("unserve", { name: model.name }); say(`${model.name} is withdrawn.`); },
  });
}

function serve() {
  const choice = (name, options) => h("select", { name }, options.map((value) => h("option", { value }, value)));
  const source = h("input", { name: "source", required: true, autocomplete: "off", spellcheck: "false", placeholder: "models/qwen3-0.6b" });
  const told = h("pre", { class: "offer", role: "status" });
  const number_ = (name, value, most) => h("input", { name, type: "number", min: 1, max: most, placeholder: value });
  const read = (form, dry_run) => {
    const terms = {};
    for (const name of ["replicas", "sessions", "positions"]) if (form.get(name)) terms[name] = Number(form.get(name));
    for (const name of ["precision", "objective", "activations"]) if (form.get(name)) terms[name] = form.get(name);
    return act("serve", { source: form.get("source").trim(), name: form.get("name").trim(), terms, dry_run });
  };
  const dialog = ask("Serve a model", [
    field("Folder on this device, or a name on the Hugging Face Hub", source),
    field("What the mesh calls it", h("input", { name: "name", autocomplete: "off", spellcheck: "false", placeholder: "made of the folder's name" })),
    h("div", { class: "pair" }, field("Precision", choice("precision", ["auto", "float32", "bfloat16", "int8", "int4"])), field("Copies", number_("replicas", "1", 16))),
    h("div", { class: "pair" }, field("Sessions at once", number_("sessions", "4", 1024)), field("Tokens of each", number_("positions", "2048", 1000000))),
    h("div", { class: "pair" }, field("Aim", choice("objective", ["latency", "throughput"])), field("Between devices", choice("activations", ["float32", "bfloat16", "int8"]))),
    told,
    h("button", { type: "button", class: "plain", onclick: async () => {
      const form = dialog.querySelector("form");
      if (!form.reportValidity()) return;
      told.textContent = "Reading …";
      try { told.textContent = offered(await read(new FormData(form), true)); } catch (error) { told.textContent = error.message; }
    } }, "What would it take?"),
  ], { go: "Serve", act: async (form) => { told.textContent = "Reading …"; try { const offer = await read(form, false); say(`${offer.name} is being loaded.`); } finally { told.textContent = ""; } } });
}

function offered(offer) {
  const lines = [`${offer.name}: ${count(offer.layers, "layer")}, ${bytes(offer.weights_bytes)} as ${offer.precision}`];
  if (offer.cache_bytes) lines.push(`${bytes(offer.cache_bytes)} for ${count(offer.sessions, "session")} of ${number(offer.positions)} tokens`);
  for (const stage of offer.stages) lines.push(`layers ${stage.first} to ${stage.end - 1}  ${bytes(stage.bytes)}  ${stage.devices.join(", ")}`);
  if (offer.tokens_per_s) lines.push(`expected: ${number(Math.round(offer.tokens_per_s))} tokens/s`);
  return lines.join("\n");
}
