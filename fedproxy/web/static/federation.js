// Fills tables with the state of a federation: <table data-fedproxy="https://mybinder.org"></table>
(() => {
  "use strict";

  const REFRESH = 20_000; // milliseconds; each wait is up to a quarter longer, or all pages would ask at once
  const FIRST_RETRY = 5_000;
  const LAST_RETRY = 300_000;
  const PATIENCE = 10_000;
  const MOST_MEMBERS = 1_000;

  const COLUMNS = ["Member", "Status", "Response", "Docker registry", "JupyterHub API", "User/build pods", "Quota",
    "Funded by", "Run by"];
  const STATUSES = {
    available: ["good", "Available"],
    "slow-starting": ["good", "Slow-starting"],
    full: ["full", "Full"],
    draining: ["paused", "Draining"],
    maintenance: ["paused", "Maintenance"],
    unhealthy: ["bad", "Unhealthy"],
    ejected: ["bad", "Ejected"],
  };
  const SIGNS = { good: "\u2713", full: "\u25d4", paused: "\u23f8\ufe0e", bad: "\u2717" };
  const UNKNOWN = ["unknown", "Unknown"];

  // Without specificity: any rule of the page wins. Colours and fonts are the page's.
  const STYLE = `
    :where(table[data-fedproxy]) { border-collapse: collapse; font-variant-numeric: tabular-nums; }
    :where(table[data-fedproxy] caption) { text-align: start; padding-block: .5em; }
    :where(table[data-fedproxy]) :where(th, td) {
      padding: .35em .75em .35em 0; text-align: start; vertical-align: top;
      border-block-end: 1px solid color-mix(in srgb, currentColor 25%, transparent);
    }
    :where(table[data-fedproxy] [data-fedproxy-tone]) { white-space: nowrap; }
    :where(table[data-fedproxy] [data-fedproxy-tone="bad"]) { font-weight: bold; }
    @media (max-width: 60rem) {
      :where(table[data-fedproxy]) { display: block; overflow-x: auto; }
      :where(table[data-fedproxy] > caption) { display: block; position: sticky; inset-inline-start: 0; }
    }
  `;

  // One registry for a page, however often the script is loaded: the first one loaded serves all tables.
  const KEY = Symbol.for("fedproxy.federation");
  const registry = (window[KEY] ??= { feeds: new Map(), tables: new WeakSet(), adopt: adopt });

  // -- what a table shows

  function element(name, attributes = {}, ...children) {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...children);
    return made;
  }

  // Only addresses that lead somewhere: a link never runs anything.
  function linked(text, url) {
    let scheme = "";
    try {
      scheme = new URL(url).protocol;
    } catch {
      // It is no address, or there is none.
    }
    return ["http:", "https:"].includes(scheme) ? element("a", { href: url }, text) : document.createTextNode(text);
  }

  function marked([tone, text]) {
    const sign = SIGNS[tone];
    const parts = sign ? [element("span", { "aria-hidden": "true" }, `${sign} `), text] : [text];
    return element("span", { "data-fedproxy-tone": tone }, ...parts);
  }

  // Names that every object has are no states.
  const known = (status) => typeof status === "string" && Object.hasOwn(STATUSES, status);
  const stateOf = (status) => (known(status) ? STATUSES[status] : UNKNOWN);
  const passed = (value) => (value === true ? ["good", "OK"] : value === false ? ["bad", "Fails"] : UNKNOWN);
  const number = (value) => (Number.isFinite(value) ? String(value) : "\u2013");
  const text = (value) => (typeof value === "string" ? value : "");

  function response(member) {
    if (member.response !== true) return passed(member.response);
    const within = member.response_within;
    return ["good", Number.isFinite(within) ? `OK, within ${within} s` : "OK"];
  }

  function pods(member) {
    const { user, build } = member.pods ?? {};
    return Number.isFinite(user) || Number.isFinite(build) ? `${number(user)}/${number(build)}` : "\u2013";
  }

  // Each cell as plain data, so that only those that differ are made anew.
  function cellsOf(member) {
    const organisation = (who) => ({ link: [text(who?.name) || "\u2013", text(who?.url)] });
    return [
      { link: [text(member.name), text(member.url)] },
      { mark: stateOf(member.status) },
      { mark: response(member) },
      { mark: passed(member.registry) },
      { mark: passed(member.hub) },
      { text: pods(member) },
      { text: number(member.quota) },
      organisation(member.funded_by),
      organisation(member.run_by),
    ];
  }

  function contentOf(cell) {
    if (cell.link) return linked(...cell.link);
    return cell.mark ? marked(cell.mark) : document.createTextNode(cell.text);
  }

  class Table {
    constructor(table, feed) {
      this.table = table;
      this.rows = new Map();
      const caption = table.caption ?? table.createCaption();
      // A caption of the page's own stays; what changes is announced, and nothing else.
      caption.querySelector("[role=status]")?.remove();
      if (!caption.textContent.trim()) caption.textContent = `The federation of ${feed.host}.`;
      this.said = element("span", { role: "status", "aria-live": "polite" });
      caption.append(" ", this.said);
      const heads = COLUMNS.map((name) => element("th", { scope: "col" }, name));
      this.body = element("tbody");
      table.replaceChildren(caption, element("thead", {}, element("tr", {}, ...heads)), this.body);
    }

    say(words) {
      if (this.said.textContent !== words) this.said.textContent = words;
    }

    show(members) {
      const names = new Set(members.map((member) => member.name));
      for (const [name, row] of this.rows) {
        if (names.has(name)) continue;
        row.remove();
        this.rows.delete(name);
      }
      members.forEach((member, at) => {
        let row = this.rows.get(member.name);
        if (!row) {
          const rest = COLUMNS.slice(1).map(() => element("td"));
          row = element("tr", {}, element("th", { scope: "row" }), ...rest);
          this.rows.set(member.name, row);
        }
        if (this.body.rows[at] !== row) this.body.insertBefore(row, this.body.rows[at] ?? null);
        cellsOf(member).forEach((cell, number) => {
          const place = row.cells[number];
          const known = JSON.stringify(cell);
          if (place.fedproxyKnown === known) return;
          place.fedproxyKnown = known;
          place.replaceChildren(contentOf(cell));
        });
      });
    }
  }

  // -- where the state comes from: one feed for each federation, however many tables show it

  class Feed {
    constructor(base) {
      this.url = new URL("federation.json", base).href;
      this.host = base.host;
      this.tables = [];
      this.members = null;
      this.words = `Asking ${this.host}.`;
      this.failures = 0;
      this.due = 0;
      this.asking = false;
      this.timer = undefined;
    }

    add(element) {
      const table = new Table(element, this);
      this.tables.push(table);
      if (this.members) table.show(this.members);
      table.say(this.words);
    }

    // A page that nobody sees asks nothing.
    wake() {
      clearTimeout(this.timer);
      for (const { table } of this.tables) if (!table.isConnected) registry.tables.delete(table);
      this.tables = this.tables.filter(({ table }) => table.isConnected);
      if (!this.tables.length) {
        if (registry.feeds.get(this.url) === this) registry.feeds.delete(this.url);
        return;
      }
      if (document.hidden || this.asking) return;
      const wait = this.due - Date.now();
      if (wait > 0) this.timer = setTimeout(() => this.wake(), wait);
      else this.ask();
    }

    async ask() {
      this.asking = true;
      const found = await this.found();
      this.asking = false;
      try {
        if (found) this.take(found);
        else this.fail();
      } finally {
        // Whatever is wrong with one answer, the next one is asked for.
        this.wake();
      }
    }

    // The members; null if there is no answer, or one of something else.
    async found() {
      const stop = new AbortController();
      const timer = setTimeout(() => stop.abort(), PATIENCE);
      try {
        const answer = await fetch(this.url, { credentials: "omit", signal: stop.signal });
        const { members } = answer.ok ? await answer.json() : {};
        return Array.isArray(members) ? members : null;
      } catch {
        return null;
      } finally {
        clearTimeout(timer);
      }
    }

    take(found) {
      this.failures = 0;
      this.wait(REFRESH);
      const named = found.slice(0, MOST_MEMBERS).filter((member) => typeof member?.name === "string");
      const members = [...new Map(named.map((member) => [member.name, member])).values()];
      this.members = members;
      for (const table of this.tables) {
        table.table.removeAttribute("data-fedproxy-stale");
        table.show(members);
      }
      this.say(summary(members));
    }

    fail() {
      this.wait(Math.min(FIRST_RETRY * 2 ** this.failures, LAST_RETRY));
      this.failures += 1;
      for (const { table } of this.tables) table.setAttribute("data-fedproxy-stale", "");
      const old = this.members ? " What is shown here is from before." : "";
      this.say(`${this.host} cannot be reached at the moment.${old} This page tries again by itself.`);
    }

    wait(milliseconds) {
      this.due = Date.now() + milliseconds * (1 + Math.random() / 4);
    }

    say(words) {
      this.words = words;
      for (const table of this.tables) table.say(words);
    }
  }

  function summary(members) {
    const fine = members.filter(({ status }) => stateOf(status)[0] === "good").length;
    const others = members
      .filter(({ status }) => stateOf(status)[0] !== "good")
      .map(({ name, status }) => `${name}: ${stateOf(status)[1].toLowerCase()}`);
    if (!members.length) return "There are no members at the moment.";
    const count = `Available: ${fine} of ${members.length} ${members.length === 1 ? "member" : "members"}.`;
    return others.length && others.length <= 10 ? `${count} ${others.join(", ")}.` : count;
  }

  // -- the page

  function adopt() {
    for (const table of document.querySelectorAll("table[data-fedproxy]")) {
      if (registry.tables.has(table)) continue;
      registry.tables.add(table);
      let base;
      try {
        base = new URL(table.dataset.fedproxy.replace(/\/*$/, "/"), document.baseURI);
        if (!/^https?:$/.test(base.protocol)) throw new TypeError("scheme");
      } catch {
        console.error("fedproxy: expected the URL of a federation, as in data-fedproxy=\"https://mybinder.org\"", table);
        continue;
      }
      const url = new URL("federation.json", base).href;
      let feed = registry.feeds.get(url);
      if (!feed) registry.feeds.set(url, (feed = new Feed(base)));
      feed.add(table);
      feed.wake();
    }
  }

  function start() {
    try {
      const sheet = new CSSStyleSheet();
      sheet.replaceSync(STYLE);
      document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
    } catch {
      // The browser is too old for it: the table has the page's own style.
    }
    document.addEventListener("visibilitychange", () => {
      for (const feed of [...registry.feeds.values()]) feed.wake();
    });
  }

  if (registry.adopt === adopt) start();
  const run = () => registry.adopt();
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", run);
  else run();
})();
