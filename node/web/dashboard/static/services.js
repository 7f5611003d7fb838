// Services: what ought to run, what runs where, in which version, and how well.

import { act } from "./api.js";
import { ask, field, h, morph, say } from "./dom.js";
import { table } from "./devices.js";
import { bytes, count, hue } from "./words.js";

export function services(root, state, ui) {
  const top = h("div", { class: "top" });
  const list = h("div", { class: "stack" });
  root.append(top, list);
  return {
    update() {
      const names = new Map(state.nodes.map((node) => [node.id, node.device]));
      morph(top, h("h1", null, "Services"));
      morph(list, state.services.length ? state.services.map((service) => card(service, names, ui)) : h("p", { class: "empty" }, "No service is deployed. On a device that may deploy: ", h("code", null, "lepton-node service deploy FOLDER"), "."));
    },
  };
}

function card(service, names, ui) {
  const ready = service.instances.filter((one) => one.state === "ready").length;
  const wanted = service.replicas_max ? `${service.replicas} to ${service.replicas_max}` : String(service.replicas);
  const rows = service.instances.map((one) => [names.get(one.peer) ?? one.peer.slice(-8), one.version, h("span", { class: `pill ${one.state === "ready" ? "good" : one.state === "failed" ? "wrong" : ""}` }, one.state), String(one.running), one.queue_ms ? `${one.queue_ms} ms` : "", one.restarts ? String(one.restarts) : "", one.reason]);
  return h("article", { class: "card", "data-key": service.name },
    h("div", { class: "top" }, h("h2", null, h("i", { class: `dot hue${hue(`replica ${service.name}`)}` }), service.name), h("span", { class: `pill ${ready >= service.replicas ? "good" : ""}` }, `${ready} of ${wanted} ready`)),
    service.updating && h("p", { class: "hint" }, "It is being updated: the new version has to be well before the old one goes."),
    service.failed.map((why) => h("p", { class: "bad" }, why)),
    table(["Version", "Share of calls", "Methods", "Bundle"], service.releases.map((one) => [one.version, `${one.share} %`, one.methods.map((method) => method.name).join(", "), bytes(one.bytes)])),
    rows.length ? table(["Device", "Version", "State", "Calls", "Wait", "Restarts", "Why"], rows) : h("p", { class: "hint" }, "No instance runs."),
    service.on.length ? h("p", { class: "hint" }, `Only on devices labelled ${service.on.join(", ")}.`) : null,
    h("div", { class: "row" },
      h("a", { class: "button", href: `#playground/service/${encodeURIComponent(service.name)}` }, "Try it"),
      ui.owner && ui.can?.("service_scale") && h("button", { class: "plain", onclick: () => scale(service) }, "Scale …"),
      ui.owner && ui.can?.("service_rm") && h("button", { class: "danger quiet", onclick: () => remove(service) }, "Remove …")));
}

function scale(service) {
  const least = h("input", { name: "replicas", type: "number", min: 0, max: 64, value: service.replicas, required: true });
  const most = h("input", { name: "most", type: "number", min: 1, max: 64, value: service.replicas_max ?? "" });
  ask(`Scale ${service.name}`, [field("Replicas, at least", least), field("At most", most, "Empty: always as many. Else it scales by how long calls wait.")], {
    go: "Scale",
    act: async (form) => {
      await act("service_scale", { name: service.name, replicas: Number(form.get("replicas")), replicas_max: form.get("most") ? Number(form.get("most")) : null });
      say(`${service.name} is scaled.`);
    },
  });
}

function remove(service) {
  ask(`Remove ${service.name}?`, h("p", null, `${count(service.instances.length, "instance")} will answer the calls that they have and end.`), {
    go: "Remove", danger: true,
    act: async () => { await act("service_rm", { name: service.name }); say(`${service.name} is removed.`); },
  });
}
