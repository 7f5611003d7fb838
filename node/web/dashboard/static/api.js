// Requests to the node that served this page: with the token, where it asks for one, and the owner's key, where we have it.

const store = sessionStorage;

// `lepton-node dashboard` gives the key behind the '#', which no browser sends anywhere; it is taken out of the address.
export function takeKey() {
  const found = /^#key=([\w-]+)$/.exec(location.hash);
  if (!found) return;
  store.setItem("lepton.key", found[1]);
  history.replaceState(null, "", `${location.pathname}#map`);
}

export const hasKey = () => Boolean(store.getItem("lepton.key"));
export const forgetKey = () => store.removeItem("lepton.key");
export const setKey = (key) => store.setItem("lepton.key", key.trim().replace(/^.*#key=/, ""));
export const setToken = (token) => store.setItem("lepton.token", token.trim());

export class NoToken extends Error {}

export async function fetched(path, { body, signal, here } = {}) {
  const headers = {};
  if (store.getItem("lepton.token")) headers.Authorization = `Bearer ${store.getItem("lepton.token")}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (here) headers["X-Where"] = "here";
  if (path === "/ui/do") headers["X-Lepton-Owner"] = store.getItem("lepton.key") ?? "";
  const options = { headers, signal, cache: "no-store", credentials: "omit", redirect: "error" };
  if (body !== undefined) Object.assign(options, { method: "POST", body: JSON.stringify(body) });
  let answer;
  try {
    answer = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The node does not answer. Does it still run?");
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  const message = said.error?.message ?? `The node answered ${answer.status}.`;
  throw answer.status === 401 ? new NoToken(message) : new Error(message);
}

export const get = async (path) => (await fetched(path)).json();
export const act = async (action, asked = {}) => (await fetched("/ui/do", { body: { action, ...asked } })).json();

// Gives each server-sent event of an answer as [name, data].
export async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      for (let end = rest.indexOf("\n\n"); end >= 0; end = rest.indexOf("\n\n")) {
        const lines = rest.slice(0, end).split("\n");
        rest = rest.slice(end + 2);
        const told = (word) => lines.filter((line) => line.startsWith(`${word}: `)).map((line) => line.slice(word.length + 2)).join("\n");
        if (told("data")) yield [told("event") || "message", told("data")];
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Follows the feed for ever: `news` gets sections, `status` is told "live", "lost" or "token".
export async function follow(news, status) {
  let wait_ms = 500;
  for (;;) {
    try {
      const answer = await fetched("/ui/events");
      status("live");
      for await (const [section, data] of events(answer)) {
        wait_ms = 500;
        news(section, JSON.parse(data));
      }
      status("lost");
    } catch (error) {
      status(error instanceof NoToken ? "token" : "lost", error.message);
      if (error instanceof NoToken) return;
    }
    await new Promise((resolve) => setTimeout(resolve, wait_ms));
    wait_ms = Math.min(2 * wait_ms, 3_000);
  }
}
