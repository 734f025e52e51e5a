// The charts of the operators' page, by uPlot. What is charted comes as lists of integers, newest last: `lines` has
// the divisor of each, and -1 is where nothing was measured.
"use strict";

const Charts = (() => {
  const POINTS = 360; // an hour
  const LEAST = 600; // seconds that a chart shows, even if there are fewer points
  const GAP = -1;
  const FASTEST = 0.001; // seconds: the first bucket's bound
  const HEIGHT = { "edge-rate": 180, "edge-count": 180 };
  const SERIES = {
    requests: { label: "requests", colour: "--link" },
    errors: { label: "failures", colour: "--shut", dash: [5, 3] },
    first_byte: { label: "95 %", colour: "--link" },
    in_flight: { label: "in flight", colour: "--link" },
    answered: { label: "answered", colour: "--open" },
    failed: { label: "failed", colour: "--shut", dash: [5, 3] },
    refused: { label: "refused", colour: "--busy", dash: [2, 2] },
    connections: { label: "connections", colour: "--quiet", dash: [5, 3] },
  };
  const made = new Map(); // the chart of each figure that is in sight, or near
  const scales = {}; // one for each kind, so that members can be compared
  let told = null;
  let members = new Map();
  let edge = {};
  let times = [];

  // Values

  function unpack(values, divisor) {
    return values.map((value) => (value === GAP ? null : value / divisor));
  }

  function unpackAll(lines, divisors) {
    return Object.fromEntries(Object.entries(divisors).map(([line, divisor]) => [line, unpack(lines[line], divisor)]));
  }

  function linesOf(figure) {
    const member = figure.closest("[data-member]");
    return member ? (members.get(member.dataset.member) ?? {}) : edge;
  }

  // A member that joined later has fewer points than there are times.
  function dataOf(figure) {
    const lines = linesOf(figure);
    return [
      times,
      ...figure.dataset.lines.split(" ").map((line) => {
        const values = lines[line] ?? [];
        const missing = new Array(Math.max(0, times.length - values.length)).fill(null);
        return [...missing, ...values.slice(Math.max(0, values.length - times.length))];
      }),
    ];
  }

  function extremes(sources, lines) {
    let [least, most] = [Infinity, 0];
    for (const source of sources) {
      for (const line of lines) {
        for (const value of source[line] ?? []) {
          if (value === null) continue;
          if (value > most) most = value;
          if (value < least) least = value;
        }
      }
    }
    return [least, most];
  }

  function rescale() {
    const all = [...members.values()];
    scales.rate = [0, Math.max(1, extremes(all, ["requests", "errors"])[1] * 1.05)];
    scales.count = [0, Math.max(4, extremes(all, ["in_flight"])[1] * 1.05)];
    scales["edge-rate"] = [0, Math.max(1, extremes([edge], ["requests", "answered", "failed", "refused"])[1] * 1.05)];
    scales["edge-count"] = [0, Math.max(4, extremes([edge], ["in_flight", "connections"])[1] * 1.05)];
    // Buckets are each about twice as wide as the one before, so times are on a logarithmic scale.
    const [fast, slow] = extremes(all, ["first_byte"]);
    const decades = [Math.floor(Math.log10(Math.max(FASTEST, Math.min(fast, 0.01)))), Math.ceil(Math.log10(Math.max(slow, 0.1)))];
    scales.time = decades.map((decade) => 10 ** decade);
  }

  // Words

  function number(value) {
    return String(value < 100 ? Number(value.toPrecision(3)) : Math.round(value));
  }

  function inSeconds() {
    return scales.time[1] > 1;
  }

  // One unit for all that is on a scale.
  function time(seconds) {
    return inSeconds() ? `${number(seconds)} s` : `${number(seconds * 1000)} ms`;
  }

  // The bucket that a percentile is in: what is between its bounds is a guess.
  function bucket(value) {
    const { bounds } = told;
    const at = bounds.findIndex((bound) => value <= bound + 1e-9);
    if (at < 0) return `over ${time(bounds.at(-1))}`;
    if (!at) return `up to ${time(bounds[0])}`;
    const [from, to] = [time(bounds[at - 1]), time(bounds[at])];
    return `${from.split(" ")[0]} to ${to}`;
  }

  function words(kind, value) {
    if (value === null || value === undefined) return "-";
    if (kind === "time") return bucket(value);
    return kind.endsWith("rate") ? `${number(value)}/s` : number(value);
  }

  function clock(seconds) {
    return new Date(seconds * 1000).toISOString().slice(11, 19);
  }

  // Figures

  function colour(name) {
    return () => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  // A point between two gaps would be on no line.
  function alone(plot, index) {
    const values = plot.data[index];
    const found = [];
    values.forEach((value, at) => {
      if (value !== null && (values[at - 1] ?? null) === null && (values[at + 1] ?? null) === null) found.push(at);
    });
    return found;
  }

  function series(kind, line) {
    // All that came is the ground on which its parts are seen.
    const all = kind === "edge-rate" && line === "requests";
    const { label, colour: name, dash } = all ? { label: "requests", colour: "--quiet" } : SERIES[line];
    const points = { show: true, size: 4, filter: alone, stroke: colour(name), fill: colour(name) };
    return { label, stroke: colour(name), width: all ? 1 : 1.5, dash, fill: all ? colour("--shade") : undefined, points };
  }

  function axis(kind) {
    const found = {
      stroke: colour("--quiet"),
      grid: { stroke: colour("--line"), width: 1 },
      ticks: { show: false },
      font: "11px system-ui, sans-serif",
      gap: 4,
    };
    const y = { ...found, size: 54, space: 26, values: (_plot, splits) => splits.map((value) => tick(kind, value)) };
    if (kind === "time") {
      y.splits = () => {
        const [from, to] = scales.time.map(Math.log10).map(Math.round);
        return Array.from({ length: to - from + 1 }, (_, at) => 10 ** (from + at));
      };
      y.filter = (_plot, splits) => splits;
    }
    // Whole requests are counted.
    if (kind.endsWith("count")) y.incrs = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 20000, 50000];
    const x = { ...found, size: 22, space: 60, values: (_plot, splits) => splits.map((at) => clock(at).slice(0, 5)) };
    x.incrs = [60, 120, 300, 600, 900, 1800];
    return [x, y];
  }

  function tick(kind, value) {
    if (kind === "time") return time(value);
    return kind.endsWith("rate") ? `${number(value)}/s` : number(value);
  }

  function parts(figure) {
    const readout = Object.assign(document.createElement("p"), { className: "readout" });
    const when = document.createElement("span");
    const values = figure.dataset.lines.split(" ").map((line) => {
      const value = document.createElement("span");
      value.className = `key ${line} ${figure.dataset.chart}`;
      return value;
    });
    readout.append(when, ...values.flatMap((value) => [" ", value]));
    const canvas = Object.assign(document.createElement("div"), { className: "plot" });
    canvas.setAttribute("role", "img");
    figure.append(readout, canvas);
    return { readout, when, values, canvas };
  }

  // What is at the crosshair, or now.
  function read(figure) {
    const { plot, when, values } = made.get(figure);
    const at = plot.cursor.idx ?? times.length - 1;
    const now = plot.cursor.idx === null || plot.cursor.idx === undefined;
    when.textContent = now ? "now" : `${clock(times[at])} UTC`;
    const kind = figure.dataset.chart;
    figure.dataset.lines.split(" ").forEach((line, index) => {
      values[index].textContent = `${SERIES[line].label} ${words(kind, plot.data[index + 1][at])}`;
    });
  }

  // For those who do not see it.
  function label(figure) {
    const { plot, canvas } = made.get(figure);
    const kind = figure.dataset.chart;
    const said = figure.dataset.lines.split(" ").map((line, index) => {
      const values = plot.data[index + 1];
      const known = values.filter((value) => value !== null);
      const most = known.length ? words(kind, known.reduce((a, b) => Math.max(a, b))) : "-";
      const now = values.at(-1) ?? null;
      return `${SERIES[line].label} ${now === null ? "not measured" : words(kind, now)} now, ${most} at most`;
    });
    canvas.setAttribute("aria-label", `${figure.querySelector("figcaption").textContent}: ${said.join("; ")}`);
  }

  function make(figure) {
    const kind = figure.dataset.chart;
    const found = parts(figure);
    const width = found.canvas.clientWidth;
    const options = {
      width,
      height: HEIGHT[kind] ?? 120,
      padding: [8, 8, 0, 0],
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
      legend: { show: false },
      cursor: {
        sync: { key: "time", setSeries: false, scales: ["x", null] },
        drag: { x: false, y: false },
        y: false,
        points: { size: 6 },
        // At a point that was measured, as what is read there is.
        move: (plot, left, top) => [times.length && left >= 0 ? plot.valToPos(times[plot.posToIdx(left)], "x") : left, top],
      },
      scales: {
        x: { time: true, range: () => [Math.min(times[0] ?? 0, (times.at(-1) ?? 0) - LEAST), times.at(-1) ?? 1] },
        y: { distr: kind === "time" ? 3 : 1, log: 10, range: () => scales[kind] },
      },
      axes: axis(kind),
      series: [{}, ...figure.dataset.lines.split(" ").map((line) => series(kind, line))],
      hooks: { setCursor: [() => made.has(figure) && read(figure)] },
    };
    const plot = new uPlot(options, dataOf(figure), found.canvas);
    made.set(figure, { plot, ...found });
    read(figure);
    label(figure);
    sizes.observe(found.canvas);
  }

  function drop(figure) {
    const found = made.get(figure);
    if (!found) return;
    made.delete(figure);
    sizes.unobserve(found.canvas);
    found.plot.destroy();
    found.readout.remove();
    found.canvas.remove();
  }

  // There may be hundreds of members: only what is in sight, or nearly so, is drawn.
  const sight = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) drop(target);
        else if (told && target.isConnected && !made.has(target)) make(target);
      }
    },
    { rootMargin: "300px" },
  );
  const sizes = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const found = made.get(target.parentElement);
      const width = target.clientWidth;
      if (found && width && width !== found.plot.width) found.plot.setSize({ width, height: found.plot.height });
    }
  });
  const known = new Set();

  // Figures came or went with the page.
  function look() {
    for (const figure of known) {
      if (figure.isConnected) continue;
      sight.unobserve(figure);
      drop(figure);
      known.delete(figure);
    }
    for (const figure of document.querySelectorAll("[data-chart]")) {
      if (known.has(figure)) continue;
      known.add(figure);
      if (told) sight.observe(figure);
    }
  }

  function redraw() {
    rescale();
    for (const [figure, { plot }] of made) {
      plot.setData(dataOf(figure));
      read(figure);
      label(figure);
    }
  }

  function start(charts) {
    const first = told === null;
    told = charts;
    ({ times } = charts);
    edge = unpackAll(charts.edge, charts.edge_lines);
    members = new Map(Object.entries(charts.members).map(([name, lines]) => [name, unpackAll(lines, charts.lines)]));
    redraw();
    if (first) known.forEach((figure) => sight.observe(figure));
  }

  function push(lines, divisors, values) {
    Object.entries(divisors).forEach(([line, divisor], at) => {
      lines[line].push(...unpack([values[at]], divisor));
      if (lines[line].length > POINTS) lines[line].shift();
    });
  }

  function add(point) {
    // Somebody set the edge's clock back: the points before stay as far apart as they were.
    const back = times.length && point.time <= times.at(-1) ? times.at(-1) - point.time + told.seconds : 0;
    times = [...times.map((each) => each - back), point.time];
    if (times.length > POINTS) times.shift();
    push(edge, told.edge_lines, point.edge);
    for (const name of members.keys()) if (!(name in point.members)) members.delete(name);
    for (const [name, values] of Object.entries(point.members)) {
      if (!members.has(name)) members.set(name, {});
      const lines = members.get(name);
      for (const line of Object.keys(told.lines)) lines[line] ??= [];
      push(lines, told.lines, values);
    }
    redraw();
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    for (const { plot } of made.values()) plot.redraw();
  });
  return { look, start, add };
})();
