// Optimizers race: the rules of the package, in the reader's browser, with no kernel behind them.
// playground-rules.js, made when the book is built, sets `steepest`; this file adds `descend`, and
// gives every .playground its controls.
"use strict";

// Standard normal numbers from a seed (mulberry32, then Box and Muller).
function normals(seed) {
  let state = seed >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return (((t ^ (t >>> 14)) >>> 0) + 0.5) / 4294967296;
  };
  return () => Math.sqrt(-2 * Math.log(uniform())) * Math.cos(2 * Math.PI * uniform());
}

// Run an optimizer on a surface. Every optimizer with the same seed meets the same noise.
steepest.descend = (optimizer, surface, { start, group, steps, noise = 0, seed = 1 }) => {
  const normal = normals(seed);
  const point = [...start];
  const state = {};
  const kept = {}; // by a summary, from step to step
  for (const [name, from] of Object.entries(optimizer.starts)) {
    state[name] = from === "zero" ? [0, 0] : [...start];
  }
  const points = [[...point]];
  const values = [surface.value(point)];
  for (let step = 1; step <= steps && point.every(Number.isFinite); step++) {
    const gradient = surface.gradient(point).map((slope) => slope + noise * normal());
    const tensors = { ...state, p: point, g: gradient };
    const numbers = optimizer.numbers(group, step);
    if (optimizer.summary) {
      // The rest of the numbers come of sums over the elements, and of what is kept.
      const terms = [0, 1].map((i) =>
        optimizer.prepass(...optimizer.measured.map((name) => tensors[name][i]), numbers),
      );
      optimizer.sums.forEach((name, k) => {
        kept[name] = terms[0][k] + terms[1][k];
      });
      kept.loss = values.at(-1);
      const read = optimizer.reads.map((name) => kept[name] ?? 0);
      const made = optimizer.summary(...read, { ...group, f_star: surface.lowest });
      Object.assign(kept, made);
      Object.assign(numbers, made);
    }
    for (const i of [0, 1]) {
      const elements = optimizer.tensors.map((name) => tensors[name][i]);
      const made = optimizer.rule(...elements, numbers);
      optimizer.written.forEach((name, k) => {
        tensors[name][i] = made[k];
      });
    }
    points.push([...point]);
    values.push(surface.value(point));
  }
  return { points, values };
};

if (typeof document !== "undefined") {
  document.querySelectorAll(".playground").forEach((box, index) => playground(box, index));
}

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

function playground(box, index) {
  const { surfaces, optimizers, steps, width, height } = steepest;
  const settings = JSON.parse(box.dataset.settings);
  const svg = box.querySelector("svg");
  const id = `playground-${index}`;
  const races = new Map(); // name -> row of the table, its path on the picture and its descent
  let surface = null;
  let start = null;
  let playing = 0;

  const round = (number, digits = 3) => Number(number.toPrecision(digits)).toString();

  function toPicture([x, y]) {
    const [[left, right], [bottom, top]] = surface.box;
    const across = ((x - left) / (right - left)) * width;
    const down = ((top - y) / (top - bottom)) * height;
    const inside = (value, size) => Math.min(Math.max(value, -size), 2 * size);
    return [inside(across, width), inside(down, height)];
  }

  function fromPicture(event) {
    const spot = new DOMPoint(event.clientX, event.clientY);
    const { x, y } = spot.matrixTransform(svg.getScreenCTM().inverse());
    const [[left, right], [bottom, top]] = surface.box;
    return [left + (x / width) * (right - left), top - (y / height) * (top - bottom)];
  }

  // Controls of the whole race.
  const pick = element("select", { id: `${id}-surface`, onchange: () => choose(pick.value) });
  for (const name of Object.keys(surfaces)) pick.append(element("option", { value: name }, name));
  const noise = slider("noise", 0, 5, 0.1, () => race());
  const shown = slider("step", 0, steps, 1, () => {
    pause();
    draw();
  });
  const play = element("button", { type: "button", onclick: () => (playing ? pause() : go()) });
  const reset = element(
    "button",
    { type: "button", onclick: () => choose(pick.value) },
    "Reset",
  );
  const coordinates = ["x", "y"].map((axis, i) =>
    element("input", {
      type: "number",
      step: "any",
      "aria-label": `start, ${axis}`,
      onchange: (event) => {
        const value = event.target.valueAsNumber;
        if (Number.isFinite(value)) start[i] = value;
        race();
      },
    }),
  );
  const status = element("p", { role: "status", class: "playground-status" });
  const limit = element("p", { class: "playground-limit" });
  const source = element("pre");
  const sourceOf = element("summary");
  const body = element("tbody");
  const head = element("tr");
  const remember = settings.offered.some((name) => optimizers[name].memory);
  for (const title of [
    "Optimizer",
    "Above minimum",
    "Learning rate",
    ...(remember ? ["Memory"] : []),
  ]) {
    head.append(element("th", { scope: "col" }, title));
  }

  function slider(name, min, max, step, changed) {
    const input = element("input", { type: "range", id: `${id}-${name}`, min, max, step });
    const out = element("output", { for: input.id });
    const label = element("label", {}, `${name} `, input, " ", out);
    const show = () => (out.textContent = round(Number(input.value)));
    input.addEventListener("input", () => {
      show();
      changed();
    });
    return { input, label, set: (value) => ((input.value = value), show()) };
  }

  // One row an optimizer: whether it runs, its rate (slider and number), its memory.
  function row(name) {
    const optimizer = optimizers[name];
    const group = structuredClone(optimizer.group);
    const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
    line.setAttribute("class", "race");
    const [color, dash] = settings.styles[name];
    line.setAttribute("stroke", color);
    line.setAttribute("stroke-dasharray", dash);
    const dot = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    dot.setAttribute("r", 5);
    dot.setAttribute("fill", color);
    svg.insertBefore(line, svg.querySelector(".start"));
    svg.insertBefore(dot, svg.querySelector(".start"));

    const runs = element("input", {
      type: "checkbox",
      "aria-label": `show ${name}`,
      onchange: () => race(),
    });
    runs.checked = settings.shown.includes(name);
    const swatch = element("span", { class: "swatch", "aria-hidden": "true" });
    const border = { "": "solid", "6 3": "dashed", "2 3": "dotted" }[dash];
    swatch.style.borderTop = `4px ${border} ${color}`;
    const link = optimizer.link
      ? element("a", { href: settings.root + optimizer.link }, name)
      : name;

    const number = element("input", {
      type: "number",
      min: 0,
      step: "any",
      "aria-label": `learning rate of ${name}`,
    });
    const range = element("input", {
      type: "range",
      min: -5,
      max: 1,
      step: 0.01,
      "aria-label": `learning rate of ${name}, on a log scale`,
    });
    const setRate = (rate) => {
      group.lr = rate;
      group.base_lr = rate;
      range.value = Math.log10(rate);
      number.value = round(rate);
    };
    range.addEventListener("input", () => {
      group.lr = group.base_lr = 10 ** Number(range.value);
      number.value = round(group.lr);
      touched();
    });
    number.addEventListener("input", () => {
      const rate = number.valueAsNumber;
      if (!(rate >= 0 && Number.isFinite(rate))) return;
      group.lr = group.base_lr = rate;
      range.value = Math.log10(rate);
      touched();
    });

    const remembers = element("td");
    if (optimizer.memory) {
      const { key, index: at, label } = optimizer.memory;
      const out = element("output");
      const knob = element("input", {
        type: "range",
        min: 0,
        max: 0.999,
        step: 0.001,
        "aria-label": `${label} of ${name}`,
      });
      knob.value = at === null ? group[key] : group[key][at];
      const show = () => (out.textContent = `${label} ${round(Number(knob.value))}`);
      knob.addEventListener("input", () => {
        if (at === null) group[key] = Number(knob.value);
        else group[key][at] = Number(knob.value);
        show();
        touched();
      });
      show();
      remembers.append(knob, out);
    }

    const result = element("td", { class: "result" });
    const touched = () => {
      runs.checked = true;
      explain(name);
      race();
    };
    const named = element("th", { scope: "row" }, element("label", {}, runs, swatch), link);
    const tr = element("tr", {}, named, result, element("td", {}, range, number));
    if (remember) tr.append(remembers);
    body.append(tr);
    races.set(name, { optimizer, group, line, dot, runs, setRate, result, descent: null });
  }

  function explain(name) {
    sourceOf.textContent = `The rule of ${name}, as it is on a GPU and here`;
    source.textContent = optimizers[name].source;
  }

  function choose(name) {
    pick.value = name;
    surface = surfaces[name];
    start = [...surface.start];
    noise.set(surface.noise);
    svg.querySelector(".contours").setAttribute("d", surface.contours);
    svg.setAttribute("aria-label", `Paths of optimizers on the surface ${name}`);
    svg.querySelectorAll(".minimum").forEach((mark) => mark.remove());
    for (const minimum of surface.minima) {
      const [x, y] = toPicture(minimum);
      const mark = document.createElementNS("http://www.w3.org/2000/svg", "path");
      mark.setAttribute("class", "minimum");
      mark.setAttribute("d", `M${x - 5} ${y}h10m-5 -5v10`);
      svg.querySelector(".start").before(mark);
    }
    for (const each of races.values()) each.setRate(each.optimizer.rates[name]);
    limit.textContent = surface.smoothness
      ? `The largest curvature here is L = ${round(surface.smoothness)}: gradient descent is ` +
        `stable for rates below 2/L = ${round(2 / surface.smoothness)}.`
      : "";
    race();
  }

  // Run everything to the end, and show the end.
  function race() {
    pause();
    for (const each of races.values()) {
      each.descent = each.runs.checked
        ? steepest.descend(each.optimizer, surface, {
            start,
            group: each.group,
            steps,
            noise: Number(noise.input.value),
          })
        : null;
    }
    shown.set(steps);
    draw();
    const ends = [...races]
      .filter(([, each]) => each.descent)
      .map(([name, each]) => `${name} ${each.result.textContent}`);
    status.textContent = ends.length ? `Above the minimum: ${ends.join(", ")}.` : "";
  }

  function draw() {
    const step = Number(shown.input.value);
    const startHeight = surface.value(start) - surface.lowest;
    for (const { descent, line, dot, result } of races.values()) {
      line.style.display = dot.style.display = descent ? "" : "none";
      if (!descent) {
        result.textContent = "";
        continue;
      }
      const last = Math.min(step, descent.points.length - 1);
      const path = descent.points.slice(0, last + 1).filter((p) => p.every(Number.isFinite));
      const spots = path.map((p) => toPicture(p).map((c) => c.toFixed(1)).join(" "));
      line.setAttribute("d", `M${spots.join("L")}`);
      const [x, y] = spots.at(-1).split(" ");
      dot.setAttribute("cx", x);
      dot.setAttribute("cy", y);
      const above = descent.values[last] - surface.lowest;
      const lost = !Number.isFinite(above) || above > 10 * startHeight + 1e-9;
      result.textContent = lost ? "diverges" : above < 1e-12 ? "0" : above.toExponential(1);
    }
    const [x, y] = toPicture(start);
    handle.setAttribute("cx", x);
    handle.setAttribute("cy", y);
    coordinates.forEach((input, i) => (input.value = round(start[i])));
  }

  function go() {
    if (Number(shown.input.value) >= steps) shown.set(0);
    play.textContent = "Pause";
    const frame = () => {
      const step = Number(shown.input.value);
      if (step >= steps) return pause();
      shown.set(step + 1);
      draw();
      playing = requestAnimationFrame(frame);
    };
    playing = requestAnimationFrame(frame);
  }

  function pause() {
    cancelAnimationFrame(playing);
    playing = 0;
    play.textContent = "Race";
  }

  // The start: drag it, click elsewhere, or move it with the arrow keys.
  const handle = svg.querySelector(".start");
  handle.setAttribute("tabindex", "0");
  handle.setAttribute("role", "button");
  handle.setAttribute("aria-label", "Start of the race: drag it, or move it with the arrow keys");
  const move = (event) => {
    start = fromPicture(event);
    race();
  };
  svg.addEventListener("pointerdown", (event) => {
    move(event);
    svg.setPointerCapture(event.pointerId);
    svg.addEventListener("pointermove", move);
  });
  for (const end of ["pointerup", "pointercancel"]) {
    svg.addEventListener(end, () => svg.removeEventListener("pointermove", move));
  }
  handle.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1] };
    if (!(event.key in way)) return;
    event.preventDefault();
    start = start.map((c, i) => {
      const [low, high] = surface.box[i];
      return c + (way[event.key][i] * (high - low)) / 50;
    });
    race();
  });

  svg.querySelectorAll(".race").forEach((path) => path.remove());
  settings.offered.forEach(row);
  explain(settings.shown[0]);
  box.querySelector(".playground-static").replaceWith(
    element(
      "div",
      { class: "playground-controls" },
      element("p", {}, play, " ", reset, " ", shown.label),
      element(
        "p",
        {},
        element("label", {}, "surface ", pick),
        noise.label,
        element("span", {}, "start ", ...coordinates),
      ),
      limit,
      element(
        "div",
        { class: "playground-table", tabindex: "0", role: "region", "aria-label": "Optimizers" },
        element("table", { class: "table" }, element("thead", {}, head), body),
      ),
      status,
      element("details", {}, sourceOf, source),
    ),
  );
  choose(settings.surface);
}
