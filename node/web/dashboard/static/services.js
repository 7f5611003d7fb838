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
      morph(top, [h("h1", null, "Services"), h("button", { class: "primary", disabled: !ui.owner, title: ui.owner ? null : "Unlock this page first.", onclick: () => deploy() }, "Deploy a service")]);
      morph(list, state.services.length ? state.services.map((service) => card(service, names, ui)) : h("p", { class: "empty" }, "No service is deployed. On a device that may deploy: ", h("code", null, "lepton-node service deploy FOLDER"), "."));
    },
  };
}

function card(service, names, ui) {
  const ready = service.instances.filter((one) => one.state === "ready").length;
  const wanted = service.replicas_max ? `${service.replicas} to ${service.replicas_max}` : String(service.replicas);
  const back = service.failed ? service.releases.at(-1) : null; // what did not run, and what runs instead
  const kept = service.releases.filter((one) => one !== back);
  const rows = service.instances.map((one) => [names.get(one.peer) ?? one.peer.slice(-8), one.version, h("span", { class: `pill ${one.state === "ready" ? "good" : one.state === "failed" ? "wrong" : ""}` }, one.state), String(one.running), one.queue_ms ? `${one.queue_ms} ms` : "", one.restarts ? String(one.restarts) : "", one.reason]);
  return h("article", { class: "card", "data-key": service.name },
    h("div", { class: "top" }, h("h2", null, h("i", { class: `dot hue${hue(`replica ${service.name}`)}` }), service.name), h("span", { class: `pill ${ready >= service.replicas ? "good" : ""}` }, `${ready} of ${wanted} ready`)),
    service.updating && h("p", { class: "hint" }, "It is being updated: the new version has to be well before the old one goes."),
    service.failed && h("p", { class: "bad" }, `${back.version} was taken back${kept.length ? `, and ${kept.map((one) => one.version).join(", ")} runs on` : ""}: ${service.failed}`),
    service.missing ? h("p", { class: "bad" }, [`${count(service.missing, "instance")} more ${service.missing === 1 ? "has" : "have"} no device with room.`, service.trouble].filter(Boolean).join(" ")) : null,
    service.not_running.filter((one) => one.version !== back?.version).map((one) => h("p", { class: "hint" }, `${one.device} does not run ${one.version}: ${one.why}`)),
    table(["Version", "Share of calls", "Methods", "Bundle", "Signed by"], service.releases.map((one) => [one.version, one === back ? h("span", { class: "pill wrong" }, "taken back") : `${back && kept.length === 1 ? 100 : one.share} %`, one.methods.map((method) => method.name).join(", "), bytes(one.bytes), names.get(one.signer) ?? one.signer.slice(-8)])),
    rows.length ? table(["Device", "Version", "State", "Calls now", "Wait", "Restarts", "Why"], rows) : h("p", { class: "hint" }, "No instance runs."),
    service.on.length ? h("p", { class: "hint" }, `Only on devices labelled ${service.on.join(", ")}.`) : null,
    h("div", { class: "row" },
      h("a", { class: "button", href: `#playground/service/${encodeURIComponent(service.name)}` }, "Try it"),
      ui.owner && h("button", { class: "plain", onclick: () => scale(service) }, "Scale …"),
      ui.owner && h("button", { class: "plain", onclick: () => deploy(service) }, "Update …"),
      ui.owner && service.releases.length > 1 && !back && h("button", { class: "plain", onclick: () => share(service) }, "Share …"),
      ui.owner && h("button", { class: "plain", onclick: () => logs(service, names) }, "Log"),
      ui.owner && h("button", { class: "danger quiet", onclick: () => remove(service) }, "Remove …")));
}

function deploy(service) {
  const folder = h("input", { name: "folder", required: true, autocomplete: "off", spellcheck: "false", placeholder: "services/detector" });
  const number = (name, least, hint) => h("input", { name, type: "number", min: least, max: 64, placeholder: hint });
  ask(service ? `Update ${service.name}` : "Deploy a service", [
    h("p", null, service ? "The new version has to be well before the old one goes; if it fails, all stays as it was." : "A folder with a service.toml on this device. It is signed by this device, and devices run it that admit what it signs."),
    field("Folder on this device", folder),
    h("div", { class: "pair" }, field("Replicas, at least", number("replicas", 0, service ? "as before" : "1")), field("At most", number("replicas_max", 1, service ? "as before" : "as many"))),
    h("div", { class: "pair" }, field("Only on devices labelled", h("input", { name: "on", autocomplete: "off", placeholder: "any" })), field("Share of calls, in per cent", h("input", { name: "share", type: "number", min: 1, max: 100, value: 100 }), "Below 100 the version that runs goes on beside it.")),
  ], {
    go: service ? "Update" : "Deploy",
    act: async (form) => {
      const asked = { folder: form.get("folder").trim(), share: Number(form.get("share")) };
      for (const name of ["replicas", "replicas_max"]) if (form.get(name)) asked[name] = Number(form.get(name));
      if (form.get("on").trim()) asked.on = form.get("on").split(/[\s,]+/).filter(Boolean);
      const { name } = await act("service_deploy", asked);
      say(`${name} is being deployed.`);
    },
  });
}

function logs(service, names) {
  const told = h("pre", { class: "offer" }, "…");
  const dialog = ask(`What ${service.name} printed`, told, { go: "Look again", stop: "Close", act: show, after: () => {} });
  dialog.classList.add("wider");
  async function show() {
    const found = Object.entries(await act("service_logs", { name: service.name }));
    told.textContent = found.map(([peer, lines]) => `${names.get(peer) ?? peer.slice(-8)}\n${lines.join("\n") || "(nothing)"}`).join("\n\n") || "Nothing.";
    told.scrollTop = told.scrollHeight;
  }
  show().catch((error) => { told.textContent = error.message; });
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

function share(service) {
  const [old, fresh] = [service.releases[0], service.releases.at(-1)];
  const rest = h("p", { class: "hint", role: "status" });
  const part = h("input", { name: "share", type: "number", min: 0, max: 100, value: fresh.share, required: true, oninput: told });
  function told() {
    const other = 100 - Number(part.value);
    rest.textContent = other <= 0 ? `${old.version} goes, one instance after the other.` : other >= 100 ? `${fresh.version} goes, and ${old.version} has all calls.` : `${old.version} has the other ${other} %, and as many of the replicas.`;
  }
  told();
  ask(`Share the calls of ${service.name}`, [field(`Per cent of the calls for ${fresh.version}`, part), rest], {
    go: "Share",
    act: async () => {
      await act("service_share", { name: service.name, version: fresh.version, share: Number(part.value) });
      say(`${service.name} ${fresh.version} has ${part.value} % of the calls.`);
    },
  });
}

function remove(service) {
  ask(`Remove ${service.name}?`, h("p", null, `${count(service.instances.length, "instance")} will answer the calls that they have and end.`), {
    go: "Remove", danger: true,
    act: async () => { await act("service_rm", { name: service.name }); say(`${service.name} is removed.`); },
  });
}
