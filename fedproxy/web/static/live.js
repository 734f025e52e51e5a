// Keeps the operators' page up to date, draws its charts, and sends the operators' changes.
"use strict";

const live = document.getElementById("live");
const said = document.getElementById("said");
const stale = document.getElementById("stale");
const tokenInput = document.getElementById("admin-token");
const forget = document.getElementById("forget");
const root = document.documentElement;

// The page: new content is patched in without touching what stayed the same, so that neither the keyboard focus
// nor a number that is being typed is lost.

function morph(old, fresh) {
  if (old.nodeName !== fresh.nodeName) {
    old.replaceWith(fresh);
    return;
  }
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) if (!fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  if (!old.hasAttribute("data-chart")) morphChildren(old, fresh);
}

function morphChildren(old, fresh) {
  const before = [...old.childNodes];
  const after = [...fresh.childNodes];
  after.forEach((node, at) => (at < before.length ? morph(before[at], node) : old.append(node)));
  before.slice(after.length).forEach((node) => node.remove());
}

// Charts: each line of a member is a list of integers, newest last; `lines` has the divisor of each line.

const SVG = "http://www.w3.org/2000/svg";
const POINTS = 360; // an hour
const FEWEST = 60;
const HEIGHT = 60;
const charts = new Map();
const drawn = new WeakMap();
let lines = {};
let seconds = 10; // between two points
let step = 0;

function make(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function shown(line, value) {
  if (line === "first_byte") return value < 1 ? `${Number((value * 1000).toPrecision(3))} ms` : `${Number(value.toPrecision(3))} s`;
  return String(value < 100 ? Number(value.toPrecision(3)) : Math.round(value));
}

function draw(figure) {
  const { chart: member, lines: wanted } = figure.dataset;
  const state = `${step} ${member}`;
  if (drawn.get(figure) === state) return;
  drawn.set(figure, state);
  const found = wanted.split(" ").map((line) => {
    const values = charts.get(member)?.[line] ?? [];
    return [line, values.map((value) => value / lines[line])];
  });
  const most = Math.max(...found.flatMap(([, values]) => values), 0);
  const now = found.map(([line, values]) => shown(line, values.at(-1) ?? 0)).join(" and ");
  const peak = shown(found[0][0], most);
  const width = Math.max(FEWEST, ...found.map(([, values]) => values.length));
  const caption = figure.querySelector("figcaption");
  const svg = make("svg", {
    viewBox: `0 0 ${width} ${HEIGHT}`,
    preserveAspectRatio: "none",
    role: "img",
    "aria-label": `${caption.firstChild.textContent}: ${now} now, ${peak} at most`,
  });
  for (const [line, values] of found) {
    const points = values.map((value, at) => {
      const x = width - values.length + at + 1;
      return `${x},${(HEIGHT - 2 - (most ? (value / most) * (HEIGHT - 4) : 0)).toFixed(1)}`;
    });
    if (points.length === 1) points.unshift(`${width - 1},${points[0].split(",")[1]}`);
    svg.append(make("polyline", { points: points.join(" "), class: `line ${line}` }));
  }
  const scale = document.createElement("small");
  scale.textContent = ` now ${now}, at most ${peak}`;
  const axis = document.createElement("div");
  axis.className = "axis";
  for (const text of [`${Math.round((width * seconds) / 60)} min ago`, "now"]) {
    axis.append(Object.assign(document.createElement("span"), { textContent: text }));
  }
  figure.querySelectorAll("svg, small, .axis").forEach((old) => old.remove());
  caption.append(scale);
  figure.append(svg, axis);
}

function drawAll() {
  live.querySelectorAll("[data-chart]").forEach(draw);
}

const heard = {
  page(html) {
    morphChildren(live, new DOMParser().parseFromString(`<main>${html}</main>`, "text/html").body.firstChild);
    document.title = live.querySelector("[data-title]").dataset.title;
    drawAll();
  },
  charts(told) {
    ({ lines, seconds } = told);
    charts.clear();
    Object.entries(told.members).forEach(([name, values]) => charts.set(name, values));
    step += 1;
    drawAll();
  },
  point(told) {
    for (const name of charts.keys()) if (!(name in told.members)) charts.delete(name);
    for (const [name, values] of Object.entries(told.members)) {
      if (!charts.has(name)) charts.set(name, Object.fromEntries(Object.keys(lines).map((line) => [line, []])));
      Object.keys(lines).forEach((line, at) => {
        const kept = charts.get(name)[line];
        kept.push(values[at]);
        if (kept.length > POINTS) kept.shift();
      });
    }
    step += 1;
    drawAll();
  },
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
    stale.textContent = "Reading needs a token here.";
    return;
  }
  try {
    const answer = await fetch("/events", { headers: { Authorization: `Bearer ${token}` }, signal });
    if (answer.status === 401) {
      useToken("");
      say("This token is not valid.");
      follow();
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

// Operators' changes. The token stays in this tab.

function useToken(token) {
  if (token) sessionStorage.setItem("token", token);
  else sessionStorage.removeItem("token");
  root.toggleAttribute("data-token", Boolean(token));
  forget.hidden = !token;
  tokenInput.value = "";
}

let saying;

function say(text) {
  said.textContent = text;
  clearTimeout(saying);
  saying = setTimeout(() => (said.textContent = ""), 15000);
}

async function change(member, wanted) {
  const headers = { Authorization: `Bearer ${sessionStorage.getItem("token")}`, "Content-Type": "application/json" };
  try {
    const body = JSON.stringify(wanted);
    const answer = await fetch(`/members/${encodeURIComponent(member)}`, { method: "PATCH", headers, body });
    const told = await answer.json();
    if (answer.status === 401) useToken("");
    say(answer.ok ? `${member}: ${told.state}, weight ${told.weight}` : `${member}: ${told.detail}`);
  } catch (error) {
    say(`${member}: ${error.message}`);
  }
}

live.addEventListener("click", (event) => {
  const button = event.target.closest("[data-state]");
  if (button) change(button.closest("[data-member]").dataset.member, { state: button.dataset.state });
});
live.addEventListener("submit", (event) => {
  event.preventDefault();
  const { weight } = event.target.elements;
  change(event.target.closest("[data-member]").dataset.member, { weight: weight.valueAsNumber });
});
document.getElementById("token").addEventListener("submit", (event) => {
  event.preventDefault();
  useToken(tokenInput.value);
  say("The token is kept in this tab.");
  if (locked) follow();
});
forget.addEventListener("click", () => {
  useToken("");
  say("The token is forgotten.");
  if (locked) follow();
});

root.dataset.scripted = "";
useToken(sessionStorage.getItem("token"));
if (locked) follow();
else listen();
