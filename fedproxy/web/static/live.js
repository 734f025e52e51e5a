// Keeps the operators' page up to date, and sends the operators' changes.
"use strict";

const root = document.documentElement;
const byId = (id) => document.getElementById(id);
const [live, said, stale, kept, tokenInput, ask] = ["live", "said", "stale", "kept", "admin-token", "ask"].map(byId);

// The page: new content is patched in without touching what stayed the same, so that neither the keyboard focus
// nor a number that is being typed is lost. What has a key is the same thing wherever it is.

function morph(old, fresh) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  // What is in a figure, the charts put there.
  if (!old.hasAttribute("data-chart")) morphChildren(old, fresh);
}

const keyOf = (node) => node.dataset?.key;

function morphChildren(old, fresh) {
  const after = isHeld(old) ? inOrderOf(old, fresh) : [...fresh.childNodes];
  const wanted = new Set(after.map(keyOf));
  const keyed = new Map();
  for (const node of [...old.childNodes]) {
    const key = keyOf(node);
    if (key === undefined) continue;
    if (wanted.has(key)) keyed.set(key, node);
    else node.remove();
  }
  let at = old.firstChild;
  for (const node of after) {
    const same = keyed.get(keyOf(node));
    // A node that is moved loses the focus, so what is between goes, and what was expected stays where it is.
    while (same && at && at !== same && keyOf(at) === undefined) at = removed(at);
    if (same) {
      if (at === same) at = at.nextSibling;
      else old.insertBefore(same, at);
      morph(same, node);
    } else if (at && keyOf(node) === undefined && keyOf(at) === undefined && at.nodeName === node.nodeName) {
      morph(at, node);
      at = at.nextSibling;
    } else {
      old.insertBefore(node, at);
    }
  }
  while (at) at = removed(at);
}

function removed(node) {
  const next = node.nextSibling;
  node.remove();
  return next;
}

// Nothing moves away under a hand: while the pointer or the focus is in a list, its order stays.
function isHeld(list) {
  return list.hasAttribute?.("data-ordered") && (list.matches(":hover") || list.contains(document.activeElement));
}

function inOrderOf(old, fresh) {
  const places = new Map([...old.children].map((child, at) => [keyOf(child), at]));
  const place = (child) => places.get(keyOf(child)) ?? places.size;
  return [...fresh.children].sort((one, other) => place(one) - place(other));
}

const heard = {
  page(html) {
    const fresh = new DOMParser().parseFromString(`<main>${html}</main>`, "text/html").body.firstChild;
    morphChildren(live, document.adoptNode(fresh));
    document.title = live.querySelector("[data-title]").dataset.title;
    Charts.look();
  },
  charts: Charts.start,
  point: Charts.add,
};

function connected() {
  delete root.dataset.stale;
  stale.textContent = "";
}

function disconnected() {
  if (!("stale" in root.dataset)) {
    const since = new Date().toISOString().slice(11, 19);
    stale.textContent = `This page is out of date: no connection to the edge since ${since} UTC.`;
    document.title = "No connection - fedproxy";
  }
  root.dataset.stale = "";
}

// Where reading needs a token: an EventSource cannot send one.

const locked = "locked" in live.dataset;
let following = new AbortController();

async function follow() {
  following.abort();
  const { signal } = (following = new AbortController());
  const token = sessionStorage.getItem("token");
  if (!token) {
    live.replaceChildren();
    Charts.look();
    stale.textContent = "Reading needs a token here.";
    return;
  }
  try {
    const answer = await fetch("/events", { headers: bearer(token), signal });
    if (answer.status === 401) {
      lose();
      return;
    }
    if (answer.ok) {
      connected();
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let held = ""; ; ) {
        const { done, value } = await reader.read();
        if (done) break;
        const events = (held + value).split("\n\n");
        held = events.pop();
        for (const event of events) {
          const [name, data] = event.split("\n");
          heard[name.slice("event: ".length)](JSON.parse(data.slice("data: ".length)));
        }
      }
    }
  } catch (error) {
    if (signal.aborted) return;
  }
  disconnected();
  setTimeout(() => signal.aborted || follow(), 5000);
}

function listen() {
  const events = new EventSource("/events");
  events.onopen = connected;
  events.onerror = () => {
    disconnected();
    // A browser reconnects by itself, but not after an error status.
    if (events.readyState === EventSource.CLOSED) setTimeout(listen, 5000);
  };
  for (const [name, hear] of Object.entries(heard)) {
    events.addEventListener(name, (event) => hear(JSON.parse(event.data)));
  }
}

// The token stays in this tab. It is tried before anything is shown that needs it.

const bearer = (token) => ({ Authorization: `Bearer ${token}` });

function keep(token, who) {
  sessionStorage.setItem("token", token);
  root.toggleAttribute("data-token", who.rights === "write");
  byId("token").hidden = true;
  kept.hidden = false;
  byId("kept-words").textContent =
    who.rights === "write"
      ? `Kept in this tab as ${who.name}.`
      : `Kept in this tab as ${who.name}, which is only for reading: it changes no member.`;
  tokenInput.value = "";
}

function drop(why) {
  sessionStorage.removeItem("token");
  root.removeAttribute("data-token");
  byId("token").hidden = false;
  kept.hidden = true;
  tokenInput.value = "";
  say(why);
  if (locked) follow();
}

const lose = () => drop("The token that was kept in this tab is not valid any more. It is forgotten.");

async function tryToken(token, refused) {
  try {
    const answer = await fetch("/whoami", { headers: bearer(token) });
    if (answer.status === 401) {
      refused();
      return;
    }
    if (!answer.ok) throw new Error(`the edge answered ${answer.status}`);
    keep(token, await answer.json());
    if (locked) follow();
  } catch (error) {
    say(`The token could not be tried: ${error.message}.`);
  }
}

let saying;

function say(text) {
  said.textContent = text;
  clearTimeout(saying);
  saying = setTimeout(() => (said.textContent = ""), 15000);
}

byId("token").addEventListener("submit", (event) => {
  event.preventDefault();
  tryToken(tokenInput.value, () => {
    tokenInput.value = "";
    say("This token is wrong.");
  });
});
byId("forget").addEventListener("click", () => drop("The token is forgotten."));

// Operators' changes.

async function change(member, wanted) {
  const headers = { ...bearer(sessionStorage.getItem("token")), "Content-Type": "application/json" };
  try {
    const body = JSON.stringify(wanted);
    const answer = await fetch(`/members/${encodeURIComponent(member)}`, { method: "PATCH", headers, body });
    if (answer.status === 401) {
      lose();
      return;
    }
    const told = await answer.json();
    const later = told.pending ? "; the store is away, so the other edges hear of it later" : "";
    say(answer.ok ? `${member}: ${told.state}, weight ${told.weight}${later}` : `${member}: ${told.detail}`);
  } catch (error) {
    say(`${member}: ${error.message}`);
  }
}

// Maintenance takes visitors' sessions away, so it is asked about.
function askFor(member) {
  byId("ask-title").textContent = `Put ${member} in maintenance?`;
  byId("ask-words").textContent =
    `${member} is sent no more requests: visitors with a session there get an error until it is ready again, and only ` +
    "what is under way goes on.";
  ask.dataset.member = member;
  ask.showModal();
}

byId("ask-cancel").addEventListener("click", () => ask.close());
byId("ask-go").addEventListener("click", () => {
  ask.close();
  change(ask.dataset.member, { state: "maint" });
});
live.addEventListener("click", (event) => {
  const button = event.target.closest("[data-state]");
  if (!button) return;
  const { member } = button.closest("[data-member]").dataset;
  if (button.dataset.state === "maint" && button.getAttribute("aria-pressed") !== "true") askFor(member);
  else change(member, { state: button.dataset.state });
});
live.addEventListener("submit", (event) => {
  event.preventDefault();
  const { weight } = event.target.elements;
  change(event.target.closest("[data-member]").dataset.member, { weight: weight.valueAsNumber });
});

root.dataset.scripted = "";
Charts.look();
const token = sessionStorage.getItem("token");
if (token) tryToken(token, lose);
if (!locked) listen();
else if (!token) follow();
