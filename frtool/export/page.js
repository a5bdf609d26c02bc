
"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const { events, seconds } = data;
  const run = events[0], config = run.config, info = run.model;
  const ROW = 26, OPEN_ALL = 400;
  const $ = (id) => document.getElementById(id);

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }
  const count = (n) => n.toLocaleString("en-US");
  const share = (v) => (v === null || v === undefined ? "–" : v.toFixed(2));
  const low = (v) => (v === null || v === undefined ? -Infinity : v);
  const oneLine = (text) => text.trim().replace(/\r\n|[\n\r]/g, "⏎").replace(/\t/g, " ");
  const parentOf = (id) => (id.includes(".") ? id.slice(0, id.lastIndexOf(".")) : null);
  function bytes(n) {
    const units = ["B", "KiB", "MiB", "GiB"];
    let i = 0;
    while (n >= 1024 && i < 3) { n /= 1024; i += 1; }
    return `${i ? n.toFixed(1) : n} ${units[i]}`;
  }

  // ---- the search as its events tell it; the same rules as in the terminal's view
  class Tree {
    constructor() {
      this.nodes = new Map();
      this.pending = new Set();
      this.texts = new Map();
      this.leader = this.tick = this.ended = null;
      this.count = this.terminals = this.at = 0;
      this.root = this.node("0");
    }
    node(id) {
      let node = this.nodes.get(id);
      if (node) return node;
      const above = parentOf(id), parent = above === null ? null : this.node(above);
      node = {
        id, parent, ordinal: Number(id.slice(id.lastIndexOf(".") + 1)), depth: parent ? parent.depth + 1 : 0,
        text: "", tokens: 0, logprob: null, prior: null, reward: null, terminal: null, answer: null, verified: null,
        pruned: null, visits: 0, sum: 0, children: [], copies: 0, growing: 0, below: 0, known: false, evicted: false,
      };
      this.nodes.set(id, node);
      if (parent) {
        let i = parent.children.length;
        while (i && parent.children[i - 1].ordinal > node.ordinal) i -= 1;
        parent.children.splice(i, 0, node);
        for (let p = parent; p; p = p.parent) p.below += 1;
      }
      return node;
    }
    value(node) { return node.visits ? node.sum / node.visits : node.reward; }
    rank(node) {
      return [
        config.steer && node.verified === true ? 1 : 0, node.answer !== null ? 1 : 0, low(node.reward),
        node.tokens ? low(node.logprob) / node.tokens : 0,
      ];
    }
    above(a, b) {
      const x = this.rank(a), y = this.rank(b), i = x.findIndex((v, k) => v !== y[k]);
      return i >= 0 && x[i] > y[i];
    }
    answered(id) {
      if (!this.pending.delete(id)) return;
      this.node(parentOf(id)).growing -= 1;
      this.texts.delete(id);
    }
    apply(event) {
      this.at += 1;
      switch (event.kind) {
        case "run": this.root.text = event.prompt; this.root.tokens = event.prompt_tokens; this.root.known = true; break;
        case "select":
          for (const id of event.ids) {
            if (parentOf(id) === null || this.pending.has(id)) continue;
            this.pending.add(id);
            const parent = this.node(parentOf(id));
            parent.growing += 1;
            parent.evicted = false;
          }
          break;
        case "node": {
          this.answered(event.id);
          if (event.duplicate_of !== null) { this.node(event.duplicate_of).copies += 1; break; }
          const node = this.node(event.id);
          for (const name of ["text", "tokens", "logprob", "prior", "reward", "terminal", "answer", "verified"]) node[name] = event[name];
          node.known = true;
          this.count += 1;
          if (event.terminal !== null) {
            this.terminals += 1;
            if (this.leader === null || this.above(node, this.leader)) this.leader = node;
          }
          break;
        }
        case "backup":
          for (let node = this.node(event.id); node; node = node.parent) { node.visits += 1; node.sum += low(event.value) === -Infinity ? 0 : event.value; }
          break;
        case "prune": for (const id of event.ids) this.node(id).pruned = event.reason; break;
        case "tick":
          this.tick = event;
          for (const [id, text] of Object.entries(event.growing || {})) if (this.pending.has(id)) this.texts.set(id, (this.texts.get(id) || "") + text);
          for (const id of event.evicted || []) if (this.nodes.has(id)) this.node(id).evicted = true;
          break;
        case "resume": this.texts.clear(); break;
        case "end": this.ended = event; for (const id of [...this.pending]) this.answered(id); break;
      }
    }
    best() {
      if (this.ended && this.nodes.has(this.ended.best)) return this.nodes.get(this.ended.best);
      if (this.leader) return this.leader;
      let node = this.root;
      while (node.children.length) {
        const live = node.children.filter((c) => !dropped(c)), among = live.length ? live : node.children;
        node = among.reduce((a, b) => {
          const x = low(this.value(a)), y = low(this.value(b));
          return y > x || (y === x && low(b.prior) > low(a.prior)) ? b : a;
        });
      }
      return node;
    }
  }
  const dropped = (node) => node.pruned !== null && node.pruned !== "exhausted";
  const pathOf = (node) => { const path = []; for (; node; node = node.parent) path.unshift(node); return path; };

  // ---- the moment that is shown
  let tree = new Tree(), opened = new Map(), selected = null, matches = [], match = -1, query = "", rows = [];
  const total = events.filter((e) => e.kind === "node").length;
  const slider = $("slider");
  slider.max = events.length;

  function moveTo(moment) {
    moment = Math.max(1, Math.min(events.length, moment));
    if (moment < tree.at) tree = new Tree();
    while (tree.at < moment) tree.apply(events[tree.at]);
    slider.value = moment;
    show();
  }
  function stepBy(direction) {
    let i = tree.at;
    do { i += direction; } while (i > 1 && i < events.length && events[i - 1].kind !== "node");
    moveTo(i);
  }
  const clock = () => seconds[tree.at - 1];

  // ---- the tree: only the rows in sight exist
  const view = $("rows"), canvas = $("canvas");
  function isOpen(node, best) {
    const wish = opened.get(node.id);
    return wish !== undefined ? wish : total <= OPEN_ALL || best.has(node.id) || node.depth < 1;
  }
  function visible(best) {
    const list = [], stack = [tree.root];
    while (stack.length) {
      const node = stack.pop();
      list.push(node);
      if (isOpen(node, best)) for (let i = node.children.length - 1; i >= 0; i -= 1) stack.push(node.children[i]);
    }
    return list;
  }
  function sign(node) {
    if (!node.parent) return ["", ""];
    if (node.verified !== null) return node.verified ? ["✓", "right"] : ["✗", "wrong"];
    if (node.terminal !== null) return node.terminal === "length" ? ["◑", "cut"] : ["●", "done"];
    if (node.pruned) return [dropped(node) ? "∅" : "◉", ""];
    return node.evicted ? ["◌", "growing"] : ["○", ""];
  }
  function words(text) {
    const element = make("span", "words"), lower = text.toLowerCase();
    // Lower case may be longer than the text itself; then the match is not marked, but found all the same.
    let from = 0, at = query && lower.length === text.length ? lower.indexOf(query) : -1;
    while (at >= 0) {
      element.append(text.slice(from, at), make("mark", "", text.slice(at, at + query.length)));
      from = at + query.length;
      at = lower.indexOf(query, from);
    }
    element.append(text.slice(from));
    return element;
  }
  function drawRow(node, index, best) {
    const row = make("div", "row"), step = make("span", "step"), open = isOpen(node, best);
    row.classList.toggle("best", best.has(node.id));
    row.classList.toggle("root", !node.parent);
    row.classList.toggle("pruned", dropped(node));
    row.classList.toggle("selected", node.id === selected);
    row.style.top = `${index * ROW}px`;
    row.dataset.id = node.id;
    row.setAttribute("role", "treeitem");
    row.setAttribute("aria-level", node.depth + 1);
    row.setAttribute("aria-selected", node.id === selected);
    step.style.paddingLeft = `${8 + 15 * Math.min(node.depth, 24)}px`;
    const caret = make("button", "caret", node.children.length ? (open ? "▾" : "▸") : "");
    caret.type = "button";
    caret.tabIndex = -1;
    if (node.children.length) {
      row.setAttribute("aria-expanded", open);
      caret.setAttribute("aria-label", open ? "Close" : "Open");
    }
    const [mark, kind] = sign(node);
    step.append(caret);
    if (node.parent) step.append(make("span", `sign ${kind}`, mark));
    step.append(words(oneLine(node.text).slice(0, 600) || (node.known ? "(empty step)" : "…")));
    if (node.copies) step.append(make("span", "more", `×${node.copies + 1}`));
    if (node.growing) {
      const [, text] = [...tree.texts].find(([id]) => parentOf(id) === node.id) || [null, ""];
      step.append(make("span", "more growing", `⋯${node.growing}`), make("span", "more draft", oneLine(text).slice(-60)));
    }
    if (node.children.length && !open) step.append(make("span", "more", `+${count(node.below)}`));
    const value = tree.value(node), bar = make("span", "bar"), fill = make("i");
    fill.style.width = `${100 * Math.max(0, Math.min(1, value === null ? 0 : value))}%`;
    bar.append(fill);
    row.append(step, bar, make("span", "figure", share(value)), make("span", "figure", node.visits ? count(node.visits) : "–"),
      make("span", "figure extra", share(node.reward)), make("span", "figure extra", node.parent ? share(node.prior) : "–"));
    return row;
  }
  function drawRows() {
    const best = new Set(pathOf(tree.best()).map((n) => n.id));
    rows = visible(best);
    canvas.style.height = `${rows.length * ROW}px`;
    // A tree that has shrunk may lie above the place that was scrolled to, until the browser notices.
    const top = Math.max(0, Math.min(view.scrollTop, rows.length * ROW - view.clientHeight));
    const first = Math.max(0, Math.floor(top / ROW) - 4);
    const last = Math.min(rows.length, Math.ceil((top + view.clientHeight) / ROW) + 4);
    canvas.replaceChildren(...rows.slice(first, last).map((node, i) => drawRow(node, first + i, best)));
  }
  function reveal(id) {
    for (let up = parentOf(id); up !== null; up = parentOf(up)) opened.set(up, true);
    selected = id;
    drawRows();
    const index = rows.findIndex((n) => n.id === id);
    if (index >= 0 && (index * ROW < view.scrollTop || (index + 1) * ROW > view.scrollTop + view.clientHeight)) {
      view.scrollTop = index * ROW - view.clientHeight / 3;
    }
    drawRows();
    drawDetail();
  }
  function toggle(node) {
    opened.set(node.id, !isOpen(node, new Set(pathOf(tree.best()).map((n) => n.id))));
    drawRows();
  }

  // ---- beside it
  function drawPath() {
    const best = tree.best(), list = $("path");
    $("path-label").textContent = tree.ended ? "Path to the answer" : best.terminal ? "Best finished path so far" : "Most promising line so far";
    const items = pathOf(best).slice(1).map((node) => {
      const item = make("li");
      item.append(make("span", "text", node.text.trim() || "(empty step)"), make("span", "", share(node.reward)));
      item.title = "score of the path up to here";
      item.addEventListener("click", () => reveal(node.id));
      return item;
    });
    list.replaceChildren(...(items.length ? items : [make("li", "none", "nothing yet")]));
  }
  function drawDetail() {
    const node = selected === null ? null : tree.nodes.get(selected), box = $("detail");
    if (!node) { box.replaceChildren(make("p", "quiet", selected === null ? "Click a step to read it whole." : "Not yet grown at this moment.")); return; }
    const facts = [
      ["id", node.id], ["value", share(tree.value(node))], ["visits", count(node.visits)], ["reward", share(node.reward)],
      ["prior", share(node.prior)], ["tokens", count(node.tokens)],
      ["log-probability", node.parent && node.logprob !== null ? node.logprob.toFixed(2) : null], ["below", count(node.below)],
      ["copies merged", node.copies ? count(node.copies) : null],
      ["ends", node.terminal === "length" ? "cut at its limit" : node.terminal === "end" ? "ended by the model" : node.terminal],
      ["answer", node.answer], ["verifier", node.verified === null ? null : node.verified ? "right" : "wrong"], ["dropped", node.pruned],
    ];
    const list = make("dl");
    for (const [name, value] of facts) if (value !== null) list.append(make("dt", "", name), make("dd", "", value));
    box.replaceChildren(make("div", "text", node.text.replace(/^\n+|\s+$/g, "") || "(empty step)"), list);
  }

  // ---- KV use over time
  const NS = "http://www.w3.org/2000/svg", ticks = events.filter((e) => e.kind === "tick");
  let now = null, scale = () => 0, span = Math.max(seconds[seconds.length - 1], 1e-9), plot = [0, 1];
  function shape(tag, attributes, text) {
    const element = document.createElementNS(NS, tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  }
  function drawChart() {
    const box = $("chart"), width = box.clientWidth, height = box.clientHeight, left = 58, right = 10, top = 6, bottom = 18;
    if (!ticks.length) { box.hidden = true; return; }
    const peak = Math.max(1, ...ticks.map((t) => Math.max(t.physical_tokens, t.logical_tokens)));
    const unit = 10 ** Math.floor(Math.log10(peak / 2)), step = Math.max(1, [1, 2, 5, 10].map((k) => k * unit).find((k) => peak / k <= 3) || 10 * unit);
    scale = (s) => left + (width - left - right) * Math.min(1, s / span);
    plot = [left, width - right];
    const y = (v) => height - bottom - (height - top - bottom) * v / peak;
    const svg = shape("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Tokens held in the KV cache over time, with and without sharing" });
    for (let v = 0; v <= peak; v += step) {
      svg.append(shape("line", { class: "grid", x1: left, x2: width - right, y1: y(v), y2: y(v) }), shape("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, count(v)));
    }
    const marks = Math.max(1, Math.min(8, Math.floor(width / 120)));
    for (let i = 0; i <= marks; i += 1) {
      const s = span * i / marks, label = `${span < 20 ? s.toFixed(1) : count(Math.round(s))} s`;
      svg.append(shape("text", { x: scale(s), y: height - 4, "text-anchor": i === marks ? "end" : i ? "middle" : "start" }, label));
    }
    const line = (name) => ticks.map((t) => `${scale(t.seconds).toFixed(1)},${y(t[name]).toFixed(1)}`).join(" L");
    const ends = [scale(ticks[ticks.length - 1].seconds), scale(ticks[0].seconds)].map((x) => `${x.toFixed(1)},${y(0)}`);
    svg.append(
      shape("path", { class: "held", d: `M${line("physical_tokens")} L${ends.join(" L")} Z` }),
      shape("path", { class: "edge", d: `M${line("physical_tokens")}` }), shape("path", { class: "unshared", d: `M${line("logical_tokens")}` }),
    );
    now = shape("line", { class: "now", y1: top, y2: height - bottom });
    svg.append(now);
    box.replaceChildren(svg);
  }
  function drawMemory() {
    const tick = tree.tick, parts = [];
    if (now) { const x = scale(clock()); now.setAttribute("x1", x); now.setAttribute("x2", x); }
    const part = (key, name, value) => {
      const item = make("span");
      if (key !== null) item.append(make("i", `key ${key}`));
      item.append(`${name} `, make("b", "", value));
      parts.push(item);
    };
    if (tick) {
      part("", "KV held", `${count(tick.physical_tokens)} tokens`);
      part("unshared", "without sharing", `${count(tick.logical_tokens)} tokens`);
      if (tick.logical_tokens > tick.physical_tokens && tick.physical_tokens) part(null, "saved", `${(tick.logical_tokens / tick.physical_tokens).toFixed(1)}×`);
      part(null, "blocks", `${count(tick.blocks_used)} of ${count(tick.blocks_total)}`);
      part(null, "decode rows", `${tick.rows} of ${tick.capacity}`);
      part(null, "tokens sampled", count(tick.policy_tokens));
    }
    $("memory").replaceChildren(...parts);
  }
  function show() {
    $("moment").textContent = `${clock().toFixed(1)} s · ${count(tree.count)} nodes`;
    drawRows();
    drawPath();
    drawDetail();
    drawMemory();
  }

  // ---- search in the text
  function find(jump) {
    query = $("find").value.toLowerCase();
    matches = query ? events.filter((e) => e.kind === "node" && e.duplicate_of === null && (`${oneLine(e.text)}\n${e.answer || ""}`).toLowerCase().includes(query)).map((e) => e.id) : [];
    if (jump === 0) match = -1;
    else if (matches.length) match = (match + jump + matches.length) % matches.length;
    $("found").textContent = !query ? "" : matches.length ? `${match < 0 ? "" : `${count(match + 1)} of `}${count(matches.length)} found` : "nothing found";
    if (jump !== 0 && matches.length) {
      if (!tree.nodes.has(matches[match])) moveTo(events.findIndex((e) => e.kind === "node" && e.id === matches[match]) + 1);
      reveal(matches[match]);
    } else drawRows();
  }

  // ---- playing
  let playing = false, began = 0, from = 0;
  function play(wish) {
    playing = wish;
    $("play").textContent = playing ? "❚❚" : "▶";
    $("play").setAttribute("aria-label", playing ? "Pause" : "Play");
    if (!playing) return;
    if (tree.at >= events.length) { view.scrollTop = 0; moveTo(1); }
    restart();
    requestAnimationFrame(frame);
  }
  function restart() { began = performance.now(); from = $("speed").value === "auto" ? tree.at : clock(); }
  function frame(time) {
    if (!playing) return;
    const passed = Math.max(0, (time - began) / 1000), speed = $("speed").value;
    let moment = tree.at;
    if (speed === "auto") moment = Math.floor(from + events.length * passed / 12);
    else { const until = from + passed * Number(speed); while (moment < events.length && seconds[moment] <= until) moment += 1; }
    if (moment !== tree.at) moveTo(moment);
    if (tree.at >= events.length) play(false); else requestAnimationFrame(frame);
  }

  // ---- what does not change
  function drawFixed() {
    const end = data.ended, verdict = $("verdict"), name = info.name || config.model || "";
    document.title = `frtool: ${oneLine(run.prompt).slice(0, 80)}`;
    $("prompt").textContent = run.prompt.trim();
    const label = end.answer === null ? "No answer" : end.verified === true ? "✓ Verified answer" : end.verified === false ? "✗ Not solved, best try" : "Answer";
    if (end.verified !== null && end.answer !== null) verdict.classList.add(end.verified ? "right" : "wrong");
    $("verdict-label").textContent = label;
    $("answer").textContent = end.answer === null ? "–" : end.answer.trim();
    $("answer").classList.toggle("long", (end.answer || "").length > 60);
    const more = [];
    if (end.reward !== null) more.push(`score ${end.reward.toFixed(3)}`);
    if (end.votes && end.terminals > 1) more.push(`${count(end.votes)} of ${count(end.terminals)} paths agree`);
    if (config.steer) more.push("steered by the verifier");
    $("verdict-more").textContent = more.join(" · ");
    const facts = [
      ["", config.algorithm], ["with", name], ["on", [info.device, info.dtype].filter(Boolean).join(" ")], ["seed", config.seed],
      ["", `${end.seconds.toFixed(1)} s`], ["", `${count(end.nodes)} nodes`], ["", `${count(end.policy_tokens)} tokens sampled`],
      ["", end.scorer_tokens ? `${count(end.scorer_tokens)} scored` : ""], ["", data.reason],
    ];
    for (const [word, value] of facts) {
      if (value === undefined || value === null || value === "") continue;
      const item = make("li", "", word ? `${word} ` : "");
      item.append(value === data.reason ? String(value) : make("b", "", String(value)));
      $("facts").append(item);
    }
    if (data.note) { $("note").textContent = `${data.note[0].toUpperCase()}${data.note.slice(1)}.`; $("note").hidden = false; }
    const foot = [`recorded by frtool, shown by frtool ${data.frtool}`];
    if (end.kv_peak_bytes) foot.push(`KV peak ${bytes(end.kv_peak_bytes)}` + (end.kv_unshared_peak_bytes > end.kv_peak_bytes ? ` instead of ${bytes(end.kv_unshared_peak_bytes)} unshared` : ""));
    for (const key of ["architecture", "attention", "scorer", "verifier", "torch"]) if (info[key]) foot.push(`${key} ${info[key]}`);
    $("figures").textContent = foot.join(" · ");
  }

  view.addEventListener("scroll", drawRows, { passive: true });
  canvas.addEventListener("click", (event) => {
    const row = event.target.closest(".row");
    if (!row) return;
    const node = tree.nodes.get(row.dataset.id);
    if (event.target.closest(".caret") && node.children.length) { toggle(node); return; }
    selected = node.id;
    drawRows();
    drawDetail();
  });
  canvas.addEventListener("dblclick", (event) => {
    const row = event.target.closest(".row");
    if (row && !event.target.closest(".caret")) toggle(tree.nodes.get(row.dataset.id));
  });
  view.addEventListener("keydown", (event) => {
    const at = rows.findIndex((n) => n.id === selected), node = rows[at];
    const best = new Set(pathOf(tree.best()).map((n) => n.id));
    if (event.key === "ArrowDown") reveal(rows[Math.min(at + 1, rows.length - 1)].id);
    else if (event.key === "ArrowUp") reveal(rows[Math.max(at - 1, 0)].id);
    else if (event.key === "ArrowRight" && node) { if (!isOpen(node, best)) toggle(node); else if (node.children.length) reveal(node.children[0].id); }
    else if (event.key === "ArrowLeft" && node) { if (node.children.length && isOpen(node, best)) toggle(node); else if (node.parent) reveal(node.parent.id); }
    else if (event.key === "Enter" && node) toggle(node);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  slider.addEventListener("input", () => { play(false); moveTo(Number(slider.value)); });
  $("play").addEventListener("click", () => play(!playing));
  $("back").addEventListener("click", () => { play(false); stepBy(-1); });
  $("on").addEventListener("click", () => { play(false); stepBy(1); });
  $("speed").addEventListener("change", restart);
  $("find").addEventListener("input", () => find(0));
  $("find").addEventListener("keydown", (event) => {
    if (event.key === "Enter") find(event.shiftKey ? -1 : 1);
    if (event.key === "Escape") { $("find").value = ""; find(0); }
  });
  $("unfold").addEventListener("click", () => { opened = new Map(events.filter((e) => e.kind === "node").map((e) => [e.id, true])); opened.set("0", true); drawRows(); });
  $("fold").addEventListener("click", () => {
    opened = new Map(events.filter((e) => e.kind === "node").map((e) => [e.id, false]));
    for (const node of pathOf(tree.best())) opened.set(node.id, true);
    view.scrollTop = 0;
    drawRows();
  });
  const drag = (event) => {
    const box = $("chart").getBoundingClientRect(), share = (event.clientX - box.left - plot[0]) / (plot[1] - plot[0]);
    const until = span * Math.max(0, Math.min(1, share));
    let moment = 1;
    while (moment < events.length && seconds[moment] <= until) moment += 1;
    play(false);
    moveTo(moment);
  };
  $("chart").addEventListener("pointerdown", (event) => { $("chart").setPointerCapture(event.pointerId); drag(event); });
  $("chart").addEventListener("pointermove", (event) => { if (event.buttons) drag(event); });
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input, select, button") || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === " ") play(!playing);
    else if (event.key === "ArrowRight") { play(false); stepBy(1); }
    else if (event.key === "ArrowLeft") { play(false); stepBy(-1); }
    else return;
    event.preventDefault();
  });
  new ResizeObserver(() => { drawChart(); drawMemory(); drawRows(); }).observe(document.body);
  drawFixed();
  drawChart();
  view.style.height = `${ROW * (1 + events.filter((e) => e.kind === "node" && e.duplicate_of === null).length) + 3}px`;
  moveTo(events.length);
  const first = pathOf(tree.best())[1], at = rows.indexOf(first), end = rows.indexOf(tree.best());
  if (first && end * ROW > view.clientHeight) { view.scrollTop = Math.max(0, at - 2) * ROW; drawRows(); }
})();
