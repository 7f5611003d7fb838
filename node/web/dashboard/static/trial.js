// A service tried by hand: a form made of a method's JSON Schema, and what comes back.

import { fetched } from "./api.js";
import { field, h, morph } from "./dom.js";

export function trial(state, wanted) {
  const root = h("div", { class: "panel" }, h("p", { class: "hint" }, "No service is deployed."));
  let known = "";
  return {
    root,
    update(now) {
      const names = now.services.map((service) => service.name).join(" ");
      if (names === known) return;
      known = names;
      root.replaceChildren(now.services.length ? build(now, wanted) : h("p", { class: "hint" }, "No service is deployed. On a device that may deploy: ", h("code", null, "lepton-node service deploy FOLDER"), "."));
    },
    end() {},
  };
}

function build(state, wanted) {
  const service = h("select", null, state.services.map((one) => h("option", { value: one.name, selected: one.name === wanted }, one.name)));
  const method = h("select");
  const body = h("textarea", { rows: 6, spellcheck: "false", "aria-label": "Arguments as JSON" });
  const told = h("pre", { class: "offer", role: "status" });
  const button = h("button", { class: "primary", type: "submit" }, "Call");
  const form = h("form", null, h("div", { class: "pair" }, field("Service", service), field("Method", method)), field("Arguments as JSON", body), h("div", { class: "row" }, button), told);
  const methods = () => {
    const one = state.services.find((each) => each.name === service.value);
    morph(method, (one?.releases.at(-1)?.methods ?? []).map((each) => h("option", { value: each.name }, each.name)));
    body.value = "{}";
  };
  service.onchange = methods;
  methods();
  form.onsubmit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    told.textContent = "…";
    try {
      const began = performance.now();
      const answer = await fetched(`/v1/services/${encodeURIComponent(service.value)}/${encodeURIComponent(method.value)}`, { body: JSON.parse(body.value) });
      told.textContent = `${await answer.text()}\n\n${(performance.now() - began).toFixed(0)} ms`;
    } catch (error) {
      told.textContent = error.message;
    } finally {
      button.disabled = false;
    }
  };
  return form;
}
