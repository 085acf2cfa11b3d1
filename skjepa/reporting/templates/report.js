"use strict";
// Text of the data is only ever set as textContent or as an attribute, never parsed as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 50;
  const WORDS = { f: "flagged", n: "not flagged", u: "unreadable" };
  const $ = (id) => document.getElementById(id);
  const pictures = { ...data.pictures };
  for (const image of document.querySelectorAll("img[data-place]")) pictures[image.dataset.place] = image.src;

  const state = { key: "scores", down: false, page: 0, rows: [], chosen: -1 };
  const lower = data.ids.map((name) => name.toLowerCase());
  const collator = new Intl.Collator("en", { numeric: true });

  function number(value) {
    return value === null ? "" : String(value);
  }

  function element(tag, text, className) {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function picture(place) {
    const made = element("img");
    made.src = pictures[place];
    made.alt = "";
    return made;
  }

  function compare(a, b) {
    const values = data[state.key];
    if (state.key === "ids") return collator.compare(values[a], values[b]);
    if (values[a] === null || values[b] === null) return (values[a] === null) - (values[b] === null);
    return values[a] < values[b] ? -1 : values[a] > values[b] ? 1 : 0;
  }

  function choose() {
    const words = $("search").value.toLowerCase();
    const status = $("filter").value;
    const rows = [];
    for (let i = 0; i < lower.length; i++) {
      if ((!status || data.status[i] === status) && lower[i].includes(words)) rows.push(i);
    }
    const missing = (i) => data[state.key][i] === null; // last in both directions
    rows.sort((a, b) => (missing(a) - missing(b)) || (state.down ? compare(b, a) : compare(a, b)) || a - b);
    state.rows = rows;
    state.page = Math.min(state.page, Math.max(0, Math.ceil(rows.length / PAGE) - 1));
    draw();
  }

  function row(i) {
    const made = element("tr", undefined, WORDS[data.status[i]].replace(" ", "-"));
    if (i === state.chosen) made.classList.add("chosen");
    const first = element("td");
    if (pictures[i]) first.append(picture(i));
    made.append(first, element("td", data.ids[i], "name-cell"), element("td", number(data.scores[i]), "number"));
    if (data.p) made.append(element("td", number(data.p[i]), "number"));
    const reason = data.errors[i];
    made.append(element("td", reason ? `${WORDS[data.status[i]]}: ${reason}` : WORDS[data.status[i]]));
    if (data.reasons) made.append(element("td", data.reasons[i]));
    return made;
  }

  function draw() {
    const from = state.page * PAGE;
    const part = state.rows.slice(from, from + PAGE);
    $("rows").replaceChildren(...part.map(row));
    const n = state.rows.length.toLocaleString("en");
    $("count").textContent = part.length ? `${n} of ${data.ids.length.toLocaleString("en")} images` : "No image matches.";
    const pages = Math.max(1, Math.ceil(state.rows.length / PAGE));
    $("page").textContent = `page ${state.page + 1} of ${pages}`;
    $("first").disabled = $("previous").disabled = state.page === 0;
    $("next").disabled = $("last").disabled = state.page >= pages - 1;
  }

  function go(page) {
    state.page = page;
    draw();
  }

  function find(i) {
    state.chosen = i;
    $("search").value = data.ids[i];
    $("filter").value = "";
    state.page = 0;
    choose();
    $("table").scrollIntoView();
    $("search").focus({ preventScroll: true });
  }

  $("search").addEventListener("input", () => { state.page = 0; choose(); });
  $("filter").addEventListener("change", () => { state.page = 0; choose(); });
  $("first").addEventListener("click", () => go(0));
  $("previous").addEventListener("click", () => go(state.page - 1));
  $("next").addEventListener("click", () => go(state.page + 1));
  $("last").addEventListener("click", () => go(Math.ceil(state.rows.length / PAGE) - 1));
  for (const head of document.querySelectorAll("th[data-sort]")) {
    head.querySelector("button").addEventListener("click", () => {
      state.down = head.hasAttribute("aria-sort") && !state.down;
      state.key = head.dataset.sort;
      state.page = 0;
      for (const other of document.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      choose();
    });
  }
  choose();

  const canvas = $("canvas");
  if (!canvas) return;
  const ordered = data.scores.map((_, i) => i).filter((i) => data.scores[i] !== null);
  ordered.sort((a, b) => data.scores[a] - data.scores[b]);
  const rank = new Map(ordered.map((i, k) => [i, k / Math.max(1, ordered.length - 1)]));
  const STOPS = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [240, 220, 60]]; // viridis
  let map, across, down, at = -1;

  function colour(share) {
    const k = Math.min(STOPS.length - 2, Math.floor(share * (STOPS.length - 1)));
    const t = share * (STOPS.length - 1) - k;
    return `rgb(${STOPS[k].map((low, c) => Math.round(low + t * (STOPS[k + 1][c] - low))).join(",")})`;
  }

  function scale(values, size, flip) {
    let low = Infinity, high = -Infinity;
    for (const value of values) { low = Math.min(low, value); high = Math.max(high, value); }
    const reach = (high - low) || 1;
    return (value) => 14 + (size - 28) * (flip ? 1 - (value - low) / reach : (value - low) / reach);
  }

  function paint() {
    const style = getComputedStyle(document.documentElement);
    const density = window.devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight;
    canvas.width = width * density;
    canvas.height = height * density;
    const pen = canvas.getContext("2d");
    pen.scale(density, density);
    across = scale(map.x.concat(map.normal[0]), width, false);
    down = scale(map.y.concat(map.normal[1]), height, true);
    pen.fillStyle = style.getPropertyValue("--dot");
    map.normal[0].forEach((x, k) => pen.fillRect(across(x) - 1, down(map.normal[1][k]) - 1, 2, 2));
    const radius = map.place.length > 3000 ? 2.2 : 3.5;
    // The most atypical are painted last: they are what is looked for.
    for (const k of map.order) {
      const i = map.place[k];
      pen.beginPath();
      pen.arc(across(map.x[k]), down(map.y[k]), radius, 0, 7);
      pen.fillStyle = colour(rank.get(i));
      pen.fill();
      if (data.status[i] === "f") {
        pen.strokeStyle = style.getPropertyValue("--ring");
        pen.lineWidth = 1.3;
        pen.stroke();
      }
    }
    if (at < 0) return;
    pen.beginPath();
    pen.arc(across(map.x[at]), down(map.y[at]), radius + 6, 0, 7);
    pen.strokeStyle = style.getPropertyValue("--text");
    pen.lineWidth = 2.5;
    pen.stroke();
  }

  function take(which) {
    map = data.maps[which];
    map.order = map.place.map((_, k) => k).sort((a, b) => rank.get(map.place[b]) - rank.get(map.place[a]));
    at = -1;
    paint();
  }

  function show(k) {
    if (k === at) return;
    at = k;
    paint();
    const i = map.place[k];
    const p = data.p && data.p[i] !== null ? `, p = ${data.p[i]}` : "";
    const text = element("span", `${data.ids[i]}: score ${data.scores[i]}${p}, ${WORDS[data.status[i]]}`);
    $("tip").replaceChildren(...(pictures[i] ? [picture(i)] : []), text);
  }

  function nearest(event) {
    const box = canvas.getBoundingClientRect();
    const x = event.clientX - box.left, y = event.clientY - box.top;
    let best = -1, least = 400; // within 20 pixels
    for (let k = 0; k < map.place.length; k++) {
      const distance = (across(map.x[k]) - x) ** 2 + (down(map.y[k]) - y) ** 2;
      if (distance < least) { least = distance; best = k; }
    }
    return best;
  }

  canvas.addEventListener("pointermove", (event) => { const k = nearest(event); if (k >= 0) show(k); });
  canvas.addEventListener("click", (event) => { const k = nearest(event); if (k >= 0) find(map.place[k]); });
  canvas.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
    const places = map.order.slice().reverse();
    if (event.key in steps) {
      event.preventDefault();
      const next = at < 0 ? 0 : places.indexOf(at) + steps[event.key];
      show(places[Math.max(0, Math.min(places.length - 1, next))]);
    } else if (event.key === "Enter" && at >= 0) {
      find(map.place[at]);
    }
  });
  const which = $("which-map");
  if (which) which.addEventListener("change", () => take(Number(which.value)));
  window.addEventListener("resize", paint);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  take(0);
})();
