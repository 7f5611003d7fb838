// A service tried by hand: a form made of a method's JSON Schema, and what comes back.

import { events, fetched, get } from "./api.js";
import { field, h, morph } from "./dom.js";

const DOCUMENT = "/v1/services/openapi.json";

export function trial(_state, wanted) {
  const root = h("div", { class: "panel" });
  let known = null, drawn = null;
  async function update(now) {
    const ready = (service) => service.instances.some((one) => one.state === "ready"); // only then it says what it takes
    const names = JSON.stringify(now.services.map((service) => [service.name, service.revision, ready(service)]));
    if (names === known) return;
    known = names;
    if (!now.services.length) {
      root.replaceChildren(h("p", { class: "hint" }, "No service is deployed. On a device that may deploy: ", h("code", null, "lepton-node service deploy FOLDER"), "."));
      return;
    }
    const said = await get(DOCUMENT).catch(() => ({ paths: {} }));
    const all = JSON.stringify([said, now.services.map((service) => [service.name, service.releases])]);
    if (all === drawn) return; // what was typed stays
    drawn = all;
    root.replaceChildren(build(now, wanted, said));
  }
  return { root, update, end() {} };
}

function build(state, wanted, said) {
  const service = h("select", null, state.services.map((one) => h("option", { value: one.name, selected: one.name === wanted }, one.name)));
  const method = h("select");
  const about = h("p", { class: "hint" });
  const place = h("div");
  const here = h("input", { type: "checkbox", name: "here" });
  const told = h("pre", { class: "offer", role: "status" });
  const button = h("button", { class: "primary", type: "submit" }, "Call");
  const stop = h("button", { class: "plain", type: "button", hidden: true, onclick: () => asking?.abort() }, "Stop");
  const form = h("form", null, h("div", { class: "pair" }, field("Service", service), field("Method", method)), about, place, h("label", { class: "tick" }, here, "Only on this device: nothing of it is sent to another"), h("div", { class: "row" }, button, stop), told);
  let inputs = null, asking = null;
  const path = () => `/v1/services/${encodeURIComponent(service.value)}/${encodeURIComponent(method.value)}`;

  function methods() {
    const one = state.services.find((each) => each.name === service.value);
    morph(method, (one?.releases.at(-1)?.methods ?? []).map((each) => h("option", { value: each.name }, each.name)));
    parameters();
  }

  function parameters() {
    const operation = said.paths[path()]?.post;
    about.textContent = operation?.description ?? "";
    const places = operation?.parameters?.find((one) => one.name === "X-Where")?.schema.enum ?? [];
    here.disabled = places.length === 1; // its author keeps it on the device of who asks
    here.checked = here.disabled;
    inputs = shaped(resolved(operation?.requestBody?.content?.["application/json"]?.schema, said), said);
    place.replaceChildren(inputs.root);
    told.textContent = "";
  }

  service.onchange = methods;
  method.onchange = parameters;
  methods();
  form.onsubmit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    stop.hidden = false;
    asking = new AbortController();
    told.textContent = "…";
    const began = performance.now();
    try {
      const answer = await fetched(path(), { body: inputs.read(), signal: asking.signal, here: here.checked });
      told.textContent = "";
      if (answer.headers.get("content-type")?.startsWith("text/event-stream")) {
        for await (const [name, data] of events(answer)) {
          told.append(`${name === "message" ? "" : `${name}: `}${data}\n`);
          told.scrollTop = told.scrollHeight;
        }
      } else told.append(pretty(await answer.text()));
      told.append(`\n${(performance.now() - began).toFixed(0)} ms`);
    } catch (error) {
      told.append(error.name === "AbortError" ? "\nstopped" : `\n${error.message}`);
    } finally {
      button.disabled = false;
      stop.hidden = true;
    }
  };
  return form;
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

// References lead into the same document; a ring of them ends after a few steps.
function resolved(schema, said, depth = 0) {
  if (!schema?.$ref || depth > 8) return schema ?? {};
  const found = schema.$ref.replace(/^#\//, "").split("/").reduce((at, step) => at?.[step.replaceAll("~1", "/").replaceAll("~0", "~")], said);
  return resolved(found, said, depth + 1);
}

// One input for each parameter that a person can type; JSON for the others.
function shaped(schema, said, depth = 0) {
  const properties = Object.entries(schema.properties ?? {});
  if (!properties.length) {
    const all = h("textarea", { rows: 4, spellcheck: "false" }, "{}");
    const none = schema.type === "object";
    return { root: none ? h("p", { class: "hint" }, "It takes nothing.") : field("Parameters, as a JSON object", all), read: () => (none ? {} : JSON.parse(all.value)) };
  }
  const needed = new Set(schema.required ?? []);
  const parts = properties.map(([name, raw]) => [name, part(name, resolved(raw, said), needed.has(name), raw, said, depth)]);
  return {
    root: h("div", null, parts.map(([, one]) => one.root)),
    read: () => Object.fromEntries(parts.map(([name, one]) => [name, one.read()]).filter(([, value]) => value !== undefined)),
  };
}

// A value that a schema might take, to show what it is made of.
function example(schema, said, depth = 0) {
  if (schema.default !== undefined) return schema.default;
  if (schema.enum) return schema.enum[0];
  if (schema["x-dtype"]) return [0.1, 0.9];
  const one = (inner) => (depth < 3 && inner ? example(resolved(inner, said), said, depth + 1) : 0);
  if (schema.type === "array") return [one(schema.items ?? schema.prefixItems?.[0])];
  if (schema.type === "object") return Object.fromEntries(Object.entries(schema.properties ?? { name: schema.additionalProperties || {} }).map(([name, inner]) => [name, one(inner)]));
  return schema.type === "string" ? "" : schema.type === "boolean" ? false : 0;
}

function part(name, schema, needed, raw, said, depth) {
  const given = raw?.default ?? schema.default;
  const hint = [schema.description, needed ? null : `may be left out${given === undefined ? "" : `: then ${JSON.stringify(given)}`}`].filter(Boolean).join("; ");
  if (schema.enum) {
    const input = h("select", null, needed ? null : h("option", { value: "" }, "—"), schema.enum.map((one) => h("option", { value: JSON.stringify(one) }, String(one))));
    return { root: field(name, input, hint), read: () => (input.value ? JSON.parse(input.value) : undefined) };
  }
  if (schema.type === "boolean") {
    const input = h("input", { type: "checkbox", checked: given === true });
    return { root: h("label", { class: "tick" }, input, name), read: () => input.checked };
  }
  if (schema.type === "integer" || schema.type === "number") {
    const input = h("input", { type: "number", step: schema.type === "integer" ? 1 : "any", required: needed, value: needed ? given ?? "" : "" });
    return { root: field(name, input, hint), read: () => (input.value === "" ? undefined : Number(input.value)) };
  }
  if (schema.type === "string") {
    const input = h("textarea", { rows: 2, required: needed });
    return { root: field(name, input, hint), read: () => (input.value === "" && !needed ? undefined : input.value) };
  }
  if (schema.type === "object" && schema.properties && needed && depth < 3) {
    const inside = shaped(schema, said, depth + 1);
    return { root: h("fieldset", null, h("legend", null, name), inside.root), read: inside.read };
  }
  const input = h("textarea", { rows: 3, spellcheck: "false", required: needed, placeholder: JSON.stringify(example(schema, said)) });
  return {
    root: field(`${name}, as JSON`, input, hint),
    read: () => {
      if (!input.value.trim() && !needed) return undefined;
      try {
        return JSON.parse(input.value);
      } catch {
        throw new Error(`${name} is not JSON.`);
      }
    },
  };
}
