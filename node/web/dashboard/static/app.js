// The page: which view is shown, what the node tells, and who is looking.

import * as api from "./api.js";
import { ask, field, h, morph, say } from "./dom.js";
import { audit } from "./audit.js";
import { devices } from "./devices.js";
import { map } from "./map.js";
import { models } from "./models.js";
import { play } from "./play.js";
import { services } from "./services.js";
import { tasks } from "./tasks.js";

const VIEWS = { map, devices, models, services, training: tasks, playground: play, audit };
const TITLES = { map: "Map", devices: "Devices", models: "Models", services: "Services", training: "Training", playground: "Playground", audit: "Audit log" };

const state = { me: null, nodes: [], links: [], models: [], tasks: [], services: [], revoked: [], trouble: { refusals: [], bootstrap: [] }, audit: 0 };
const ui = { status: "asking", view: "", mounted: null, owner: false, refresh: () => schedule() };

// -- what is shown ------------------------------------------------------------------------------------------------------

let due = false, heard = 0;
function schedule() {
  if (due) return;
  due = true;
  requestAnimationFrame(() => {
    due = false;
    draw();
  });
}

function draw() {
  morph(document.getElementById("head"), head());
  morph(document.getElementById("nav"), Object.keys(VIEWS).map((name) =>
    h("a", { href: `#${name}`, "aria-current": name === ui.view ? "page" : null }, TITLES[name], badge(name))));
  if (!state.me) return;
  if (!ui.mounted) {
    const content = document.getElementById("content");
    content.replaceChildren();
    ui.mounted = VIEWS[ui.view](content, state, ui);
    document.querySelector("#nav [aria-current]")?.scrollIntoView({ inline: "center", block: "nearest" });
    document.title = `${TITLES[ui.view]} · ${state.me.mesh} · Lepton`;
  }
  ui.mounted.update?.(state);
}

function badge(name) {
  if (name === "devices") return h("span", { class: "badge" }, String(state.nodes.filter((node) => node.here).length));
  if (name === "training") {
    const running = state.tasks.filter((task) => Object.values(task.nodes).some((node) => ["preparing", "ready", "training"].includes(node.state))).length;
    return running ? h("span", { class: "badge on" }, String(running)) : null;
  }
  return null;
}

function head() {
  const me = state.me;
  const words = { live: "live", lost: "the node does not answer; trying again", asking: "asking the node", token: "this node asks for its token" };
  const parts = [
    h("div", { class: "brand" }, h("img", { src: "/ui/icon.svg", alt: "", width: 30, height: 30 }),
      h("div", null, h("b", null, me ? me.mesh : "Lepton"), h("small", null, me ? `${me.device}, ${me.role}` : "")))
    , h("div", { class: "right" },
      h("span", { class: `status ${ui.status}` }, h("i", null), words[ui.status] ?? ui.status),
      me && h("button", { class: ui.owner ? "plain owner" : "plain", onclick: unlock, title: ui.owner ? "This page may change things" : "This page may only look" }, ui.owner ? "Owner" : "Unlock"),
      h("button", { class: "plain icon", onclick: turn, "aria-label": "Light or dark", title: "Light or dark" }, "◐"))];
  const out = [h("div", { class: "bar" }, parts)];
  document.body.classList.toggle("stale", ui.status === "lost");
  if (me && ui.status === "lost") out.push(h("p", { class: "banner", role: "alert" }, `The node does not answer since ${new Date(heard).toLocaleTimeString()}. What is below is as it was then.`));
  if (me?.thrown_out) out.push(h("p", { class: "banner bad", role: "alert" }, `This device was thrown out of the mesh: ${me.thrown_out}`));
  for (const why of me?.reasons ?? []) if (!me.thrown_out) out.push(h("p", { class: "banner bad", role: "alert" }, why));
  for (const why of me?.warnings ?? []) out.push(h("p", { class: "banner" }, why));
  return out;
}

function turn() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  localStorage.setItem("lepton.theme", root.dataset.theme);
  ui.mounted?.theme?.();
  schedule();
}

function unlock() {
  if (ui.owner) {
    api.forgetKey();
    ui.owner = false;
    say("This page may only look now.");
    schedule();
    return;
  }
  const input = h("input", { name: "key", type: "password", autocomplete: "off", required: true });
  ask("Change things from this page", [
    h("p", null, "Whoever reaches this address may look. To invite, revoke, serve or train, show that you own this node: run ", h("code", null, "lepton-node dashboard"), " on it and open the address that it prints, or paste that address here."),
    field("Address or key", input),
  ], { go: "Unlock", act: async (form) => { api.setKey(form.get("key")); await confirmOwner(true); } });
}

async function confirmOwner(loud) {
  try {
    await api.act("check");
    ui.owner = true;
    if (loud) say("This page may change things now.");
  } catch (error) {
    ui.owner = false;
    api.forgetKey();
    if (loud) throw error;
  } finally {
    schedule();
  }
}

// -- where we are -------------------------------------------------------------------------------------------------------

function go() {
  const name = location.hash.slice(1).split("/")[0];
  const view = VIEWS[name] ? name : "map";
  if (view !== ui.view) {
    ui.mounted?.end?.();
    ui.mounted = null;
    ui.view = view;
    scrollTo(0, 0);
  }
  schedule();
}

function status(word) {
  if (word === "live" && ui.status === "lost" && api.hasKey()) confirmOwner(false); // a node that was started anew has another key
  ui.status = word;
  if (word === "token") askToken();
  schedule();
}

function askToken() {
  const input = h("input", { name: "token", type: "password", autocomplete: "off", required: true });
  ask("This node asks for its token", [h("p", null, "It is in the file ", h("code", null, "web.token"), " of the node's folder, or in ", h("code", null, "node.toml"), "."), field("Token", input)], {
    go: "Go on",
    act: async (form) => { api.setToken(form.get("token")); await api.get("/ui/state"); api.follow(news, status); },
  });
}

function news(section, data) {
  heard = Date.now();
  if (section === "me" && state.me && state.me.release !== data.release) location.reload(); // the page is of the release before
  state[section] = data;
  if (section === "me") document.documentElement.dataset.ready = "";
  schedule();
}

const theme = localStorage.getItem("lepton.theme");
if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
api.takeKey();
addEventListener("hashchange", () => { if (location.hash.startsWith("#key=")) { api.takeKey(); confirmOwner(true).catch(() => {}); } if (location.hash !== "#content") go(); });
go();
if (api.hasKey()) confirmOwner(false);
api.follow(news, status);

