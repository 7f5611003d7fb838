// Elements made of data. Text becomes text nodes and attributes, never markup: names come from strangers.

const SVG = "http://www.w3.org/2000/svg";
const DRAWN = new Set(["svg", "g", "path", "circle", "line", "rect", "text", "title"]);

export function h(tag, props, ...children) {
  const made = DRAWN.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) made[name] = value;
    else if (name === "value" || name === "checked") made[name] = value;
    else made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

// Makes what is shown like what was made anew, and leaves alone what is the same: focus and selections stay.
export function morph(shown, made) {
  const old = [...shown.childNodes];
  const wanted = Array.isArray(made) ? made.flat(Infinity).filter((one) => one !== null && one !== undefined && one !== false) : [made];
  wanted.forEach((next, at) => {
    const node = typeof next === "string" ? document.createTextNode(next) : next;
    if (old[at]) sync(shown, old[at], node);
    else shown.append(node);
  });
  for (const rest of old.slice(wanted.length)) rest.remove();
}

function sync(parent, old, next) {
  if (old === next) return;
  if (old.nodeName !== next.nodeName || old.nodeType !== next.nodeType || key(old) !== key(next)) {
    parent.replaceChild(next, old);
    return;
  }
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== next.data) old.data = next.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (!next.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of next.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  for (const event of ["onclick", "onkeydown", "onchange", "oninput", "onsubmit", "onpointerenter", "onpointerleave"]) old[event] = next[event];
  morph(old, [...next.childNodes]);
}

const key = (node) => (node.getAttribute ? node.getAttribute("data-key") : null);

export function say(text) {
  document.getElementById("live").textContent = text;
}

let ids = 0;
export const fresh = (word) => `${word}-${++ids}`;

export function field(label, input, hint) {
  const id = fresh("field");
  input.id = id;
  if (hint) input.setAttribute("aria-describedby", `${id}-hint`);
  return h("div", { class: "field" }, h("label", { for: id }, label), input, hint && h("small", { id: `${id}-hint` }, hint));
}

// A dialog with a form; `act` is given the form's values, and what it raises is shown.
export function ask(title, body, { go = "OK", stop = "Cancel", danger = false, act, after }) {
  const trouble = h("p", { class: "bad", role: "alert" });
  const button = h("button", { class: danger ? "danger" : "primary", type: "submit" }, go);
  const form = h("form", { method: "dialog" }, h("h2", null, title), body, trouble,
    h("div", { class: "row end" }, h("button", { type: "button", class: "plain", onclick: () => dialog.close() }, stop), button));
  const dialog = h("dialog", { "aria-label": title }, form);
  form.onsubmit = async (event) => {
    event.preventDefault();
    button.disabled = true;
    trouble.textContent = "";
    try {
      const said = await act(new FormData(form), dialog);
      if (after) after(said, dialog);
      else dialog.close();
    } catch (error) {
      trouble.textContent = error.message;
    } finally {
      button.disabled = false;
    }
  };
  dialog.onclose = () => dialog.remove();
  document.body.append(dialog);
  dialog.showModal();
  return dialog;
}
