// The playground: talk to a language model of the mesh as any program would, and try a service.

import { events, fetched } from "./api.js";
import { field, h, morph } from "./dom.js";
import { number } from "./words.js";
import { trial } from "./trial.js";

export function play(root, state, ui) {
  const wanted = location.hash.slice(1).split("/").slice(1).map(decodeURIComponent);
  const tabs = h("div", { class: "tabs", role: "group", "aria-label": "What to try" });
  const place = h("div");
  root.append(h("div", { class: "top" }, h("h1", null, "Playground"), tabs), place);
  const talk = talking(state, wanted[0] !== "service" ? wanted[0] : "");
  const service = trial(state, wanted[0] === "service" ? wanted[1] : "");
  let shown = null;
  function show(one) {
    shown = one;
    place.replaceChildren(one.root);
    update();
  }
  function update() {
    morph(tabs, [["A language model", talk], ["A service", service]].map(([word, one]) => h("button", { "aria-pressed": String(shown === one), onclick: () => show(one) }, word)));
    shown.update(state);
  }
  show(wanted[0] === "service" ? service : talk);
  return { update, end: () => { talk.end(); service.end(); } };
}

function talking(state, wanted) {
  const select = h("select", { name: "model" });
  const mode = h("select", { name: "mode" }, h("option", { value: "chat" }, "a conversation"), h("option", { value: "text" }, "going on from a text"));
  const system = h("input", { autocomplete: "off", placeholder: "none" });
  const temperature = h("input", { type: "number", min: 0, max: 2, step: 0.1, value: 0.7 });
  const most = h("input", { type: "number", min: 1, max: 100000, value: 256 });
  const box = h("textarea", { rows: 3, placeholder: "Once upon a time", "aria-label": "What you say" });
  const said = h("div", { class: "talk", role: "log", "aria-live": "off", tabindex: 0, "aria-label": "The conversation" });
  const send = h("button", { class: "primary", type: "submit" }, "Send");
  const stop = h("button", { class: "plain", type: "button", hidden: true, onclick: () => asking?.abort() }, "Stop");
  const clear = h("button", { class: "plain", type: "button", onclick: () => { turns = []; said.replaceChildren(); } }, "Clear");
  const form = h("form", { class: "panel ask" }, h("div", { class: "pair" }, field("Model", select), field("As", mode)),
    said, box, h("div", { class: "row" }, send, stop, clear),
    h("details", null, h("summary", null, "Settings"), h("div", { class: "pair" }, field("Temperature", temperature, "0 takes the likeliest token each time."), field("Tokens at most", most)), field("What it is told before", system)));
  const root = h("div", null, form);
  const untaught = new Set(); // models without a chat template
  let turns = [], asking = null;

  function add(who, text) {
    const words = h("p", { class: "words" }, text);
    said.append(h("div", { class: `turn ${who}` }, h("b", null, { user: "You", assistant: select.value, note: "" }[who]), words));
    said.scrollTop = said.scrollHeight;
    return words;
  }

  form.onsubmit = async (event) => {
    event.preventDefault();
    const text = box.value;
    if (!text.trim() || asking || !select.value) return;
    asking = new AbortController();
    send.disabled = true;
    stop.hidden = false;
    add("user", text);
    const words = add("assistant", mode.value === "text" ? text : "");
    const chat = mode.value === "chat";
    const messages = [...(system.value ? [{ role: "system", content: system.value }] : []), ...turns, { role: "user", content: text }];
    const asked = { model: select.value, stream: true, stream_options: { include_usage: true }, temperature: Number(temperature.value), max_tokens: Number(most.value), ...(chat ? { messages } : { prompt: text }) };
    const began = performance.now();
    let answer = "", tokens = 0, first = 0, again = false;
    try {
      const stream = await fetched(chat ? "/v1/chat/completions" : "/v1/completions", { body: asked, signal: asking.signal });
      for await (const [, data] of events(stream)) {
        if (data === "[DONE]") break;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Error(chunk.error.message);
        const more = chunk.choices?.[0]?.delta?.content ?? chunk.choices?.[0]?.text ?? "";
        if (more && !first) first = performance.now();
        answer += more;
        tokens = chunk.usage?.completion_tokens ?? tokens;
        if (more) {
          const end = said.scrollHeight - said.scrollTop - said.clientHeight < 40;
          words.append(more);
          if (end) said.scrollTop = said.scrollHeight;
        }
      }
      const seconds = (performance.now() - began) / 1000;
      words.parentNode.append(h("small", { role: "status" }, `${number(tokens)} tokens in ${seconds.toFixed(1)} s, the first after ${((first - began) / 1000).toFixed(2)} s`));
      if (chat) turns.push({ role: "user", content: text }, { role: "assistant", content: answer });
      box.value = "";
    } catch (error) {
      if (error.name === "AbortError") words.parentNode.append(h("small", null, "stopped"));
      else {
        if (chat && error.message.includes("no chat template")) {
          untaught.add(asked.model);
          again = true;
        } else words.parentNode.append(h("p", { class: "bad", role: "alert" }, error.message));
      }
    } finally {
      asking = null;
      send.disabled = false;
      stop.hidden = true;
      box.focus();
    }
    if (again) {
      said.lastChild.remove(); // the question and what came of it
      said.lastChild.remove();
      suit();
      add("note", "This model was not taught to talk: it goes on from the text.");
      form.requestSubmit();
    }
  };
  function suit() {
    if (untaught.has(select.value)) mode.value = "text";
  }
  select.onchange = suit;
  box.onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  };

  return {
    root,
    update(now) {
      const served = now.models.filter((model) => model.kind === "causal_lm");
      const before = select.value || wanted;
      morph(select, served.length ? served.map((model) => h("option", { value: model.name }, model.served ? model.name : `${model.name} (not ready)`)) : h("option", { value: "" }, "no language model is served"));
      if (served.some((model) => model.name === before)) select.value = before;
      send.disabled = !served.length || asking !== null;
    },
    end: () => asking?.abort(),
  };
}
