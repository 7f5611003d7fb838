// Who belongs to the mesh: what each device gives, how busy it is, what it holds; inviting and revoking.

import { act } from "./api.js";
import { ask, field, h, morph, say } from "./dom.js";
import { KINDS, bytes, carries, count, day, holding, hue, ms, rate, span, when } from "./words.js";

export function devices(root, state, ui) {
  const top = h("div", { class: "top" });
  const list = h("div", { class: "cards" });
  const below = h("div");
  root.append(top, list, below);
  return {
    update() {
      const here = state.nodes.filter((node) => node.here);
      const away = state.nodes.filter((node) => !node.here);
      const may = ui.owner && state.me.capabilities.includes("invite");
      morph(top, [h("h1", null, "Devices"), h("div", { class: "row" }, h("button", { class: "primary", disabled: !may, title: ui.owner ? (may ? null : "This device's grant does not allow inviting.") : "Unlock this page first.", onclick: () => invite() }, "Invite a device"))]);
      morph(list, here.map((node) => h("article", { class: "card device", "data-key": node.id }, describeDevice(node, state, ui))));
      morph(below, [
        away.length ? h("section", { class: "panel" }, h("h2", null, "Away"), table(["Device", "Role", "Member until", ""], away.map((node) => [named(node), node.role, day(node.expires), throwOut(node, state, ui)]))) : null,
        state.trouble.refusals.length ? h("section", { class: "panel" }, h("h2", null, "Refused lately"), table(["Device", "Why"], state.trouble.refusals.map((one) => [one.device, one.why]))) : null,
        state.trouble.bootstrap.length ? h("section", { class: "panel" }, h("h2", null, "Looked for at"), table(["Address", "Trouble"], state.trouble.bootstrap.map((one) => [one.address, one.why || "none"]))) : null,
        state.revoked.length ? h("section", { class: "panel" }, h("h2", null, "Thrown out"), table(["Device", "By", "When", "Why"], state.revoked.map((one) => [one.device, one.by, when(one.issued), one.reason]))) : null,
      ]);
    },
  };
}

const named = (node) => h("span", null, node.device, " ", h("code", { class: "id" }, node.short));

// A column in which nothing is said is left out.
export function table(heads, rows) {
  const said = (cell) => (cell instanceof Node ? cell.textContent : cell);
  const kept = heads.map((_, at) => at).filter((at) => at === 0 || rows.some((row) => said(row[at])));
  rows = rows.map((row) => kept.map((at) => row[at]));
  heads = kept.map((at) => heads[at]);
  return h("div", { class: "wide" }, h("table", null, h("thead", null, h("tr", null, heads.map((head) => h("th", { scope: "col" }, head)))),
    h("tbody", null, rows.map((row) => h("tr", null, row.map((cell, at) => h("td", { "data-head": heads[at] || null }, cell)))))));
}

export function describeDevice(node, state, ui) {
  const links = state.links.filter((one) => one.a === node.id || one.b === node.id);
  const own = links.find((one) => one.a === state.me.id || one.b === state.me.id);
  const load = node.load ?? {};
  const words = [node.me ? "this device" : node.connected ? "connected" : node.here ? "here, by others' word" : "away", node.role];
  return [
    h("div", { class: "who" }, h("h2", null, node.device), h("code", { class: "id" }, node.short), h("p", { class: "hint" }, words.join(" · "))),
    meter("Processor", load.cpu, load.cpu === null || load.cpu === undefined ? "not told yet" : `${load.cpu} %`),
    meter("Memory", load.memory, load.memory === null || load.memory === undefined ? "not told yet" : `${load.memory} %${load.process_mib ? `, the node ${load.process_mib} MiB` : ""}`),
    h("dl", null,
      row("For serving", node.memory_bytes && bytes(node.memory_bytes)),
      row("Reads weights at", node.gb_s && `${node.gb_s} GB/s`),
      row("Sessions", load.sessions ? String(load.sessions) : null),
      row("Round trip", !node.me && own && ms(own)),
      row("Traffic", !node.me && own && (own.sent_s || own.received_s) ? rate(own.sent_s + own.received_s) : null),
      row("Bandwidth", !node.me && own && (own.line_s ? `${rate(own.down_s)} in, ${rate(own.up_s)} out` : carries(own))),
      row("Data sets", node.data.length ? node.data.join(", ") : null),
      row("Member until", day(node.expires))),
    node.holds.length ? h("ul", { class: "holdings" }, node.holds.map((one) => h("li", null, h("i", { class: `dot hue${hue(`${one.kind} ${one.name}`)}` }), h("span", null, holding(one)), h("small", null, KINDS[one.kind])))) : h("p", { class: "hint" }, "Holds nothing now."),
    h("div", { class: "row" },
      !node.me && node.connected && ui.owner && h("button", { class: "plain", onclick: () => measure(node) }, "Measure the link"),
      !node.me && throwOut(node, state, ui)),
  ];
}

const row = (word, value) => (value ? [h("dt", null, word), h("dd", null, value)] : null);

function meter(word, share, text) {
  const known = share !== null && share !== undefined;
  return h("div", { class: "meter" }, h("span", null, word), h("progress", { max: 100, value: known ? share : 0, "aria-label": `${word}: ${text}`, class: known && share >= 80 ? "high" : "" }), h("b", null, text));
}

function measure(node) {
  ask(`Measure the link to ${node.device}`, h("p", null, "It sends up to 4 MiB each way, which others on a slow line may notice. A device lets itself be measured six times a minute."), {
    go: "Measure",
    act: (_form, dialog) => { dialog.querySelector("button[type=submit]").textContent = "Measuring …"; return act("measure", { peer: node.id }); },
    after: (said, dialog) => {
      dialog.firstChild.replaceChildren(h("h2", null, `The link to ${node.device}`), h("dl", null, row("From it to here", rate(said.down_bytes_s)), row("From here to it", rate(said.up_bytes_s))),
        h("div", { class: "row end" }, h("button", { type: "button", class: "primary", onclick: () => dialog.close() }, "Done")));
      dialog.querySelector("button").focus();
    },
  });
}

function throwOut(node, state, ui) {
  if (!ui.owner || !state.me.may_revoke) return null;
  return h("button", { class: "danger quiet", onclick: () => revoke(node) }, "Throw out …");
}

function revoke(node) {
  const sure = h("input", { name: "sure", autocomplete: "off", required: true, spellcheck: "false" });
  const reason = h("input", { name: "reason", maxlength: 200, autocomplete: "off" });
  ask(`Throw out ${node.device}?`, [
    h("p", null, "It is out for good, on every device of the mesh, and cannot be taken back. Devices that came in through it are out as well, unless you keep them."),
    h("p", null, "Its id is ", h("code", null, node.id), "."),
    field("Why, in one sentence", reason, "Every member sees it, the one that is thrown out too."),
    h("label", { class: "tick" }, h("input", { type: "checkbox", name: "keep" }), "Keep the devices that it invited and that are known here"),
    field(`To go on, type ${node.short}`, sure),
  ], {
    go: "Throw out", danger: true,
    act: async (form) => {
      if (form.get("sure").trim() !== node.short) throw new Error(`Type ${node.short}, the short form of its id.`);
      await act("revoke", { subject: node.id, reason: form.get("reason"), keep_invited: form.get("keep") !== null });
      say(`${node.device} was thrown out.`);
    },
  });
}

function invite() {
  const means = { member: "It uses, trains and serves models, and uses and hosts services.", client: "It uses models and services.", trainer: "It trains only.", admin: "It does what a member does, and invites and throws out too." };
  const role = h("select", { name: "role", onchange: told }, Object.keys(means).map((value) => h("option", { value }, value)));
  const meant = h("p", { class: "hint", role: "status" });
  function told() { meant.textContent = means[role.value]; }
  told();
  const uses = h("input", { name: "uses", type: "number", min: 1, max: 50, value: 1 });
  const lasts = h("select", { name: "lasts" }, [[600, "10 minutes"], [3600, "1 hour"], [86400, "1 day"]].map(([value, word]) => h("option", { value, selected: value === 3600 }, word)));
  ask("Invite a device", [field("As", role), meant, field("Devices that may use it", uses), field("Good for", lasts)], {
    go: "Make a code",
    act: (form) => act("invite", { role: form.get("role"), uses: Number(form.get("uses")), lifetime_s: Number(form.get("lasts")) }),
    after: (said, dialog) => {
      dialog.firstChild.replaceChildren(h("h2", null, "On the other device"), picture(said.qr),
        h("pre", { class: "code" }, `lepton-node join ${said.code}`),
        h("p", null, `Good for ${count(said.uses, "device")} and ${span(said.lifetime_s)}. Tell the code to nobody else.`),
        h("div", { class: "row end" }, h("button", { type: "button", class: "primary", onclick: () => dialog.close() }, "Done")));
      dialog.querySelector("button").focus();
    },
  });
}

function picture(rows) {
  const path = rows.map((row, y) => [...row].map((module, x) => (module === "1" ? `M${x} ${y}h1v1h-1z` : "")).join("")).join("");
  return h("svg", { class: "qr", viewBox: `0 0 ${rows.length} ${rows.length}`, role: "img", "aria-label": "The code as a picture for a camera" }, h("rect", { width: rows.length, height: rows.length, fill: "#fff" }), h("path", { d: path, fill: "#000" }));
}
