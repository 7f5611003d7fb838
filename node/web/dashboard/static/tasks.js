// Training: where each node of a task stands, its curves as they grow, and starting another.

import { act, get } from "./api.js";
import { ask, field, h, morph, say } from "./dom.js";
import { table } from "./devices.js";
import { bytes, count, percent } from "./words.js";

const HUES = ["#2b74d8", "#d9772a", "#2a9d6f", "#c2415f", "#8a5bd1", "#a3842c", "#1e95a8", "#b0569b"];
const WHOLE = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000]; // rounds between two ticks
const NAMED = 8; // more curves than that are drawn as their best, median and worst

export function tasks(root, state, ui) {
  const top = h("div", { class: "top" });
  const list = h("div", { class: "stack" });
  root.append(top, list);
  const shown = new Map();
  return {
    update() {
      morph(top, [h("h1", null, "Training"), h("button", { class: "primary", disabled: !ui.owner, title: ui.owner ? null : "Unlock this page first.", onclick: () => train(state) }, "Start a task")]);
      const wanted = new Set(state.tasks.map((task) => `${task.name} ${task.version}`));
      for (const [key, one] of shown) if (!wanted.has(key)) { one.end(); shown.delete(key); }
      if (!state.tasks.length) {
        if (!list.querySelector(".empty")) list.replaceChildren(h("p", { class: "empty" }, "Nothing is being learned. A task trains one model on the data of every device that has a data set of its name; the data stay where they are."));
        return;
      }
      list.querySelector(".empty")?.remove();
      for (const task of state.tasks) {
        const key = `${task.name} ${task.version}`;
        if (!shown.has(key)) {
          shown.set(key, card(task));
          list.append(shown.get(key).root);
        }
        shown.get(key).update(task, state);
      }
    },
    theme: () => shown.forEach((one) => one.redraw()),
    end: () => shown.forEach((one) => one.end()),
  };
}

function card(task) {
  const about = h("div");
  const score = chart("Score on each node's own test part", (value) => value);
  const loss = chart("Loss in training", (value) => value);
  const rows = h("div");
  const root = h("article", { class: "card" }, about, h("div", { class: "charts" }, score.root, loss.root), rows);
  const curves = new Map();
  let last = 0, asking = false, names = new Map(), told = "";

  async function fetchMore() {
    if (asking) return;
    asking = true;
    try {
      let said = await get(`/ui/curves/${encodeURIComponent(task.name)}?after=${last}`);
      if (said.version !== task.version) return;
      if (last && Object.entries(said.nodes).some(([node, one]) => curves.has(node) && curves.get(node).thinned !== one.thinned)) {
        curves.clear();
        said = await get(`/ui/curves/${encodeURIComponent(task.name)}`);
      }
      for (const [node, one] of Object.entries(said.nodes)) {
        const known = curves.get(node) ?? { points: new Map() };
        known.thinned = one.thinned;
        for (const [round, score_, loss_] of one.points) known.points.set(round, [score_, loss_]);
        curves.set(node, known);
      }
      last = said.last;
      redraw();
    } catch { /* the feed says when the node is gone */ } finally {
      asking = false;
    }
  }

  function redraw() {
    score.draw(curves, 0, names);
    loss.draw(curves, 1, names);
  }

  return {
    root, redraw, end: () => { score.end(); loss.end(); },
    update(now, state) {
      names = new Map(state.nodes.map((node) => [node.id, node.device]));
      const nodes = Object.entries(now.nodes);
      const round = Math.max(0, ...nodes.map(([, node]) => node.round ?? 0));
      const running = nodes.some(([, node]) => ["preparing", "ready", "training", "in its own loop"].includes(node.state));
      if (!nodes.length) { // it is over, or nobody has begun
        const made = state.models.some((model) => model.kind === "trained" && model.name === now.name && model.version >= now.version);
        morph(about, [h("div", { class: "top" }, h("h2", null, now.name), h("span", { class: `pill ${made ? "good" : ""}` }, made ? "done" : "waiting")),
          h("p", { class: "hint" }, made ? "Its model is served. The devices that made it were started anew since then, and tell no more how it went." : "No device that is here takes part.")]);
        morph(rows, []);
        return;
      }
      morph(about, [
        h("div", { class: "top" }, h("h2", null, now.name), h("span", { class: `pill ${running ? "busy" : "good"}` }, running ? "training" : "done")),
        h("p", { class: "hint" }, [`policy ${now.policy}`, `version ${now.version}`, count(nodes.length, "device"), now.rounds ? `round ${round} of ${now.rounds}` : `round ${round}`, now.served ? null : "each device keeps its model"].filter(Boolean).join(" · ")),
        now.rounds ? h("progress", { max: now.rounds, value: round, class: "wideprogress", "aria-label": `Round ${round} of ${now.rounds}` }) : null,
      ]);
      morph(rows, table(["Device", "State", "Round", "Samples", "Alone", "In the mesh", "Loss", "Sent", "Missed", "Epsilon", "Why"], nodes.map(([peer, node]) => [
        names.get(peer) ?? peer.slice(-8), h("span", { class: `pill ${node.state === "failed" ? "wrong" : node.state === "done" ? "good" : ""}` }, node.state), String(node.round ?? 0), node.samples ? String(node.samples) : "", scored(node, "_alone"), scored(node, ""), figure(node.loss), node.bytes_sent ? bytes(node.bytes_sent) : "", node.deadline_misses ? String(node.deadline_misses) : "", node.epsilon ? (Math.ceil(node.epsilon * 100) / 100).toFixed(2) : "", node.reason ?? "",
      ])));
      const news = JSON.stringify(nodes.map(([peer, node]) => [peer, node.round, node.accuracy, node.r2, node.loss]));
      if (news !== told) {
        told = news;
        fetchMore();
      }
    },
  };
}

function scored(node, which) {
  if (node[`r2${which}`] !== null && node[`r2${which}`] !== undefined) return `R² ${node[`r2${which}`].toFixed(3)}`;
  return percent(node[`accuracy${which}`]);
}

function chart(title) {
  const place = h("div", { class: "plot" });
  const root = h("figure", { class: "chart", hidden: true }, h("figcaption", null, title), place);
  let plot = null, drawn = "";
  const size = () => ({ width: Math.max(place.clientWidth, 200), height: 200 });
  const watch = new ResizeObserver(() => plot?.setSize(size()));
  watch.observe(place);

  function draw(curves, which, names) {
    const nodes = [...curves.keys()].filter((node) => [...curves.get(node).points.values()].some((point) => point[which] !== null));
    root.hidden = !nodes.length;
    if (!nodes.length) return;
    const rounds = [...new Set(nodes.flatMap((node) => [...curves.get(node).points.keys()]))].sort((a, b) => a - b);
    const columns = nodes.map((node) => rounds.map((round) => curves.get(node).points.get(round)?.[which] ?? null));
    const [labels, data] = nodes.length > NAMED ? bands(columns) : [nodes.map((node) => names.get(node) ?? node.slice(-8)), columns];
    const style = getComputedStyle(document.documentElement);
    const key = JSON.stringify([labels, style.getPropertyValue("--ink")]);
    if (plot && key === drawn) {
      plot.setData([rounds, ...data]);
      return;
    }
    drawn = key;
    plot?.destroy();
    const axis = { stroke: style.getPropertyValue("--soft").trim(), grid: { stroke: style.getPropertyValue("--rule").trim(), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
    plot = new uPlot({
      ...size(), scales: { x: { time: false } }, legend: { live: true }, cursor: { points: { size: 6 } },
      axes: [{ ...axis, size: 30, incrs: WHOLE }, { ...axis, size: 48 }],
      series: [{ label: "round", value: (_plot, value) => (value === null || value === undefined ? "last" : String(value)) }, ...labels.map((label, at) => ({ label, stroke: HUES[at % 8], width: 2, spanGaps: true, points: { show: rounds.length < 3 }, value: (shown, value, series) => figure(value ?? shown.data[series].findLast((one) => one !== null && one !== undefined)) }))],
    }, [rounds, ...data], place);
  }

  return { root, draw, end: () => { watch.disconnect(); plot?.destroy(); } };
}

const figure = (value) => (value === null || value === undefined ? "" : value !== 0 && Math.abs(value) < 0.01 ? value.toPrecision(2) : value.toFixed(3));

function bands(columns) {
  const at = (index) => columns.map((column) => column[index]).filter((value) => value !== null).sort((a, b) => a - b);
  const pick = (share) => columns[0].map((_, index) => { const all = at(index); return all.length ? all[Math.round(share * (all.length - 1))] : null; });
  return [["highest", "median", "lowest"], [pick(1), pick(0.5), pick(0)]];
}

function train(state) {
  const sets = [...new Set(state.nodes.flatMap((node) => (node.here ? node.data : [])))].sort();
  const choice = (name, options) => h("select", { name }, options.map(([value, word]) => h("option", { value }, word)));
  ask("Start a task", [
    field("Name", h("input", { name: "name", required: true, pattern: "[a-z0-9][a-z0-9._-]{0,63}", autocomplete: "off", spellcheck: "false" }), "Of the task, and of the model that it makes."),
    sets.length ? field("Data set", h("select", { name: "data" }, sets.map((one) => h("option", { value: one }, `${one}, on ${count(state.nodes.filter((node) => node.here && node.data.includes(one)).length, "device")}`)))) : h("p", { class: "bad" }, "No device that is here has a data set. Start one with lepton-node up --data NAME=FILE."),
    h("div", { class: "pair" }, field("Model", choice("architecture", [["mlp", "mlp"], ["cnn", "cnn"], ["lstm", "lstm"]])), field("Learns", choice("objective", [["cross_entropy", "classes"], ["mse", "values"]]))),
    h("div", { class: "pair" }, field("Rounds", h("input", { name: "rounds", type: "number", min: 1, max: 100000, value: 60 })), field("Policy", choice("policy", [["trusted", "trusted"], ["private", "private"], ["robust", "robust"]]))),
    h("label", { class: "tick" }, h("input", { type: "checkbox", name: "baseline" }), "Each device also trains alone, to compare"),
  ], {
    go: "Start",
    act: async (form) => {
      const started = await act("train", { task: { name: form.get("name").trim(), data: form.get("data"), objective: form.get("objective"), policy: form.get("policy"), baseline: form.get("baseline") !== null, model: { architecture: form.get("architecture") }, budget: { rounds: Number(form.get("rounds")) } } });
      say(`${started.name} has begun.`);
    },
  });
}
