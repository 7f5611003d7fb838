// The audit log: joins, refusals, revocations, deployments and commands, the newest first.

import { get } from "./api.js";
import { h, morph } from "./dom.js";
import { table } from "./devices.js";
import { count, when } from "./words.js";

const KINDS = { all: "everything", joined: "joins", refused: "refusals", revoked: "revocations", deployed: "deployments", command: "commands" };
const WITH = { joined: ["joined", "appeared", "invited"], refused: ["refused"], revoked: ["revoked"], deployed: ["deployed", "withdrawn"], command: ["command", "invited", "started", "stopped"] };

const NAMES = { appeared: "first seen", command: "command here" };

function more(entry) {
  const name = entry.what === "started" ? `release ${entry.name}` : entry.name;
  const said = [name, entry.detail].filter(Boolean).join(": ");
  return entry.also ? `${said} (${count(entry.also, "more refusal")} not written)` : said;
}

export function audit(root, state) {
  const rows = h("div", { class: "panel" });
  const choice = h("div", { class: "tabs", role: "group", "aria-label": "What is shown" });
  root.append(h("div", { class: "top" }, h("h1", null, "Audit log"), choice), rows);
  let entries = [], kind = "all", had = -1, trouble = "";

  function draw() {
    morph(choice, Object.entries(KINDS).map(([name, word]) => h("button", { "aria-pressed": String(kind === name), onclick: () => { kind = name; draw(); } }, word)));
    const shown = entries.filter((entry) => kind === "all" || WITH[kind].includes(entry.what)).slice(0, 300);
    morph(rows, trouble ? h("p", { class: "bad" }, trouble) : shown.length ? table(["When", "What", "Who", "By", "More"], shown.map((entry) => [
      h("span", { class: "when" }, when(entry.at)), h("span", { class: `pill ${entry.what === "refused" || entry.what === "revoked" ? "wrong" : entry.what === "joined" || entry.what === "appeared" ? "good" : ""}` }, NAMES[entry.what] ?? entry.what),
      entry.who ? h("span", { title: entry.id }, entry.who) : "", entry.by, more(entry),
    ])) : h("p", { class: "hint" }, "Nothing of this kind has happened."));
  }

  return {
    async update(now) {
      if (now.audit === had) return;
      had = now.audit;
      try {
        entries = await get("/ui/audit?last=500");
        trouble = "";
      } catch (error) {
        trouble = error.message;
      }
      draw();
    },
  };
}
