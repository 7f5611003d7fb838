// Charts of the page: uPlot draws, this says what. All curves come from the JSON in the element `data`.
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.documentElement;
  const light = ["#0b6bb8", "#d1490a", "#00855d", "#a3459b", "#b07d00", "#2a9fc7", "#6a4fc4", "#59636f"];
  const dark = ["#58b4ff", "#ff8f52", "#40d9a3", "#f08fe0", "#f2c14a", "#8adcf5", "#b3a1ff", "#b9c3cf"];
  const dashes = [[], [8, 5], [2, 4], [10, 4, 2, 4]]; // after eight runs colours come again, and lines are broken
  const charts = [
    { key: "mean", low: "worst", high: "best", name: data.quality, height: 380 },
    ...data.measures.map((name) => ({ key: "measure " + name, name, height: 260, log: true })),
    { key: "loss", name: "loss on the test set", height: 260, log: true },
    { key: "consensus", name: "distance between models (of their norm)", height: 260, log: true },
    { key: "megabytes_sent", high: "megabytes_sent_max", name: "MB sent by a node (band: the busiest)", height: 260, log: true },
    { key: "here", name: "nodes that took part", height: 260 },
  ];
  const names = { round: "round", seconds: "simulated seconds", megabytes_sent: "MB sent by the mean node" };
  const state = { along: "round", logAlong: false, bands: data.runs.length <= 4, logs: {}, off: new Set() };
  const made = [];

  const isDark = () =>
    (root.dataset.theme || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const colour = (run) => (isDark() ? dark : light)[run % light.length];
  const css = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const short = (value) =>
    value == null ? "–" : Math.abs(value) >= 1e6 || (value !== 0 && Math.abs(value) < 1e-3)
      ? value.toExponential(2)
      : String(Number(value.toPrecision(4)));
  const element = (tag, parent, text, name) => {
    const made = document.createElement(tag);
    if (text != null) made.textContent = text;
    if (name) made.className = name;
    parent.appendChild(made);
    return made;
  };

  const last = (values) => values.findLastIndex((value) => value != null);

  // Runs have points of their own along time: the latest one before the place that is pointed at.
  const near = (values, at) => {
    if (at == null) return at;
    const before = values.slice(0, at + 1).findLastIndex((value) => value != null);
    return before < 0 ? at : before;
  };

  // A log axis shows nothing of what is not above zero.
  const positive = (values, log) => (log ? values.map((value) => (value > 0 ? value : null)) : values);

  function table(chart, run) {
    const keys = [chart.key, chart.low, chart.high].filter(Boolean);
    const rows = run.round.map((_, place) => place).filter((place) => {
      const x = run[state.along][place];
      return x != null && (!state.logAlong || x > 0);
    });
    const pick = (key) => rows.map((place) => run[key][place]);
    return [pick(state.along), ...keys.map((key) => positive(pick(key), state.logs[chart.key]))];
  }

  function axis(label, log) {
    return {
      label, labelSize: 20, labelGap: 0, labelFont: "13px system-ui, sans-serif", font: "12px system-ui, sans-serif",
      stroke: css("--soft"), grid: { stroke: css("--rule"), width: 1 }, ticks: { stroke: css("--rule"), width: 1 },
      values: (_, splits) => splits.map((value) => (value == null || (log && !isRound(value)) ? "" : short(value))),
    };
  }
  const isRound = (value) => Math.abs(Math.log10(value) - Math.round(Math.log10(value))) < 1e-6;

  function options(chart, width) {
    const many = data.runs.length > 1;
    const log = Boolean(state.logs[chart.key]);
    const series = [{ label: names[state.along], value: (u, _, __, hovered) => short(u.data[0][hovered ?? u.data[0].length - 1]) }];
    const bands = [], hidden = [];
    data.runs.forEach((run, index) => {
      const place = series.length;
      const edges = [chart.low, chart.high].filter(Boolean).length;
      const value = (u, _, __, hovered) => {
        const at = hovered ?? last(u.data[place]); // nobody points at anything: how it ended
        const [middle, ...others] = Array.from({ length: 1 + edges }, (_, edge) => short(u.data[place + edge][at]));
        return edges && at >= 0 ? `${middle} (${edges === 2 ? "" : "to "}${others.join(" to ")})` : middle;
      };
      const show = !state.off.has(index);
      series.push({
        label: many ? run.label : "mean", stroke: colour(index), width: 2, dash: dashes[Math.floor(index / light.length) % 4],
        spanGaps: true, value, show, points: { size: 4 },
      });
      for (let edge = 0; edge < edges; edge++) {
        hidden.push(series.length);
        series.push({ stroke: colour(index) + "55", width: 1, spanGaps: true, points: { show: false }, show: show && state.bands });
      }
      if (edges) bands.push({ series: [place + edges, edges === 2 ? place + 1 : place], fill: colour(index) + (many ? "18" : "2a") });
    });
    return {
      width, height: chart.height, series, bands, padding: [10, 14, 0, 0],
      scales: {
        x: { time: false, distr: state.logAlong ? 3 : 1 },
        y: { distr: log ? 3 : 1 },
      },
      axes: [{ ...axis(names[state.along], state.logAlong), size: 34 }, { ...axis(null, log), size: 62 }],
      cursor: { sync: { key: "along" }, focus: { prox: 24 }, dataIdx: (u, series, at) => near(u.data[series], at) },
      focus: { alpha: 0.35 },
      hooks: {
        init: [(u) => {
          const rows = u.root.querySelectorAll(".u-legend .u-series");
          hidden.forEach((place) => { rows[place].style.display = "none"; });
        }],
        setSeries: [(u, place, change) => {
          if (place == null || change.show == null) return;
          const index = data.runs.findIndex((_, run) => placeOf(chart, run) === place);
          if (index >= 0 && change.show === state.off.has(index)) toggle(index);
        }],
      },
    };
  }
  const placeOf = (chart, run) => 1 + run * (1 + [chart.low, chart.high].filter(Boolean).length);

  function draw() {
    const host = document.getElementById("charts");
    made.splice(0).forEach((one) => one.destroy());
    for (const chart of charts) {
      let box = document.getElementById("chart-" + chart.key);
      if (!box) {
        box = element("div", host, null, "chart");
        box.id = "chart-" + chart.key;
        const top = element("div", box, null, "top");
        element("b", top, chart.name);
        if (chart.log) tick(top, "log axis", (on) => { state.logs[chart.key] = on; draw(); });
      }
      const tables = data.runs.map((run) => table(chart, run));
      made.push(new uPlot(options(chart, box.clientWidth), uPlot.join(tables), box));
    }
    drawHistogram();
    document.querySelectorAll(".dot[data-run]").forEach((dot) => { dot.style.background = colour(Number(dot.dataset.run)); });
  }

  function drawHistogram() {
    const host = document.getElementById("histogram");
    const { edges, shares } = data.histogram;
    if (!edges.length) { host.textContent = "No node ended with a number."; return; }
    const stepped = uPlot.paths.stepped({ align: 1 });
    const many = data.runs.length > 1;
    const series = data.runs.map((run, index) => ({
      label: many ? run.label : "nodes", stroke: colour(index), fill: colour(index) + (many ? "20" : "55"), width: 2, paths: stepped,
      points: { show: false }, show: !state.off.has(index),
      value: (_, value) => (value == null ? "–" : short(value) + " %"),
    }));
    const from = (value, place) =>
      value == null ? "–" : `${short(value)} to ${short(edges[Math.min((place ?? 0) + 1, edges.length - 1)])}`;
    made.push(new uPlot({
      width: host.clientWidth, height: 260, padding: [10, 14, 0, 0],
      series: [{ label: data.quality, value: (_, value, __, place) => from(value, place) }, ...series],
      scales: { x: { time: false }, y: { range: (_, low, high) => [0, high * 1.08 || 1] } },
      axes: [{ ...axis(data.quality + " of a node at the end", false), size: 34 }, { ...axis("% of nodes", false), size: 52 }],
    }, [edges, ...shares.map((share) => [...share, share[share.length - 1]])], host));
  }

  function tick(parent, text, changed) {
    const label = element("label", parent, null, "tick");
    const box = element("input", label);
    box.type = "checkbox";
    label.append(text);
    box.addEventListener("change", () => changed(box.checked));
  }

  function toggle(run) {
    state.off.has(run) ? state.off.delete(run) : state.off.add(run);
    document.querySelectorAll(".chip").forEach((chip, index) => chip.setAttribute("aria-pressed", !state.off.has(index)));
    queueMicrotask(draw);
  }

  function chips() {
    if (data.runs.length < 2) return;
    data.runs.forEach((run, index) => {
      const chip = element("button", document.getElementById("runs"), null, "chip");
      chip.type = "button";
      chip.title = run.label;
      chip.setAttribute("aria-pressed", "true");
      element("i", chip, null, "dot").dataset.run = index;
      chip.append(run.label);
      chip.addEventListener("click", () => toggle(index));
    });
  }

  document.querySelectorAll("input[name=along]").forEach((choice) =>
    choice.addEventListener("change", () => { state.along = choice.value; draw(); }));
  document.getElementById("log-along").addEventListener("change", (event) => { state.logAlong = event.target.checked; draw(); });
  document.getElementById("bands").addEventListener("change", (event) => { state.bands = event.target.checked; draw(); });
  document.getElementById("theme").addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; draw(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; requestAnimationFrame(draw); } });
  document.getElementById("bands").checked = state.bands;
  chips();
  draw();
})();
