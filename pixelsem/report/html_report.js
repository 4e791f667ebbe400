(() => {
  const { blocks, setups, stages } = dataOf("about");
  const items = Array.from({ length: blocks }, (_, number) => dataOf(`i${number}`)).flat();
  const root = document.documentElement;
  const grid = $("grid");

  // Settings, kept in the browser where it lets them

  const SETTINGS = "pixelsem-report:settings";
  const recall = () => {
    try {
      return JSON.parse(localStorage.getItem(SETTINGS) ?? "{}") ?? {};
    } catch {
      return {};
    }
  };
  const settings = { theme: null, density: "two", ...recall() };
  const keep = () => {
    try {
      localStorage.setItem(SETTINGS, JSON.stringify(settings));
    } catch {
      // Then they last as long as the page.
    }
  };

  const element = (name, className, text) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const percent = (share) => `${(100 * share).toFixed(share >= 0.9995 || share < 0.0005 ? 0 : 1)} %`;
  const whole = (count) => count.toLocaleString("en");

  // Pictures: tiles of a sheet, which is unpacked when something of it comes in sight, or a file beside the page

  const loaded = (source) =>
    new Promise((resolve, reject) => {
      const picture = new Image();
      picture.onload = () => resolve(picture);
      picture.onerror = () => reject(new Error(`${source.slice(0, 80)} cannot be shown`));
      picture.src = source;
    });

  const sheets = new Map();
  const sheetOf = (number) => {
    if (!sheets.has(number)) {
      const { source, ...about } = dataOf(`s${number}`);
      sheets.set(number, loaded(source).then((picture) => ({ ...about, picture })));
    }
    return sheets.get(number);
  };

  const blank = (width, height) => {
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [width, height];
    return canvas;
  };

  const tile = async (place) => {
    if (place === null) return null;
    const { picture, width, height, columns } = await sheetOf(place[0]);
    const canvas = blank(width, height);
    const [x, y] = [place[1] % columns, Math.floor(place[1] / columns)];
    canvas.getContext("2d").drawImage(picture, x * width, y * height, width, height, 0, 0, width, height);
    return canvas;
  };

  /** The clean image with the changes that the search lists, which need no picture of their own. */
  const painted = (item, clean) => {
    const canvas = blank(clean.width, clean.height);
    const brush = canvas.getContext("2d");
    brush.drawImage(clean, 0, 0);
    const [across, down] = [clean.width / item.width, clean.height / item.height];
    for (const [x, y, , , , red, green, blue] of item.pixels) {
      brush.fillStyle = `rgb(${red} ${green} ${blue})`;
      const [left, top] = [Math.floor(x * across), Math.floor(y * down)];
      brush.fillRect(left, top, Math.max(1, Math.floor(across)), Math.max(1, Math.floor(down)));
    }
    return canvas;
  };

  const complete = (item, clean, attacked, mask) => ({
    width: clean.width,
    height: clean.height,
    clean,
    attacked: item.painted ? painted(item, clean) : attacked,
    mask,
  });

  const small = async (item) =>
    complete(item, ...(await Promise.all([tile(item.clean), tile(item.attacked), tile(item.mask)])));

  const large = async (item) => {
    if (item.whole) return small(item);
    const file = (name) => (item.links[name] === undefined ? null : loaded(item.links[name]));
    const attacked = item.painted ? null : file("adversarial");
    return complete(item, ...(await Promise.all([file("clean"), attacked, file("mask")])));
  };

  /** One view of an image. Nothing is read back, so that files beside a page on a disk can be shown too. */
  const composed = (source, view, gain) => {
    const base = view === "clean" || view === "region" ? source.clean : source.attacked;
    if (base === null || !(view === "region" || view === "difference" || view === "attacked-region")) return base;
    const canvas = blank(source.width, source.height);
    const brush = canvas.getContext("2d");
    brush.drawImage(base, 0, 0);
    if (view === "difference") {
      brush.globalCompositeOperation = "difference";
      brush.drawImage(source.clean, 0, 0);
      brush.globalCompositeOperation = "lighter";
      for (let factor = 1; factor < gain; factor *= 2) brush.drawImage(canvas, 0, 0);
    } else if (source.mask !== null) {
      brush.globalCompositeOperation = "multiply";
      brush.drawImage(source.mask, 0, 0, source.width, source.height);
      brush.globalCompositeOperation = "source-over";
      brush.globalAlpha = 0.25;
      brush.drawImage(base, 0, 0);
    }
    return canvas;
  };

  const fittingGain = (item) => 2 ** Math.floor(Math.log2(255 / Math.max(1, item.distortion?.most ?? 255)));

  const ring = (brush, x, y, radius, unit) => {
    for (const [colour, width] of [["#fff", 3.6], [getComputedStyle(root).getPropertyValue("--ring"), 1.8]]) {
      brush.beginPath();
      brush.arc(x, y, radius, 0, 2 * Math.PI);
      brush.strokeStyle = colour;
      brush.lineWidth = width * unit;
      brush.stroke();
    }
  };

  // What an image says

  const KINDS = { success: "fooled", failure: "held", none: "left" };
  const OUTCOMES = { success: "Succeeded", failure: "Failed", none: "Not attacked" };
  const REASONS = { misclassified: "misclassified before", "empty-region": "empty region", "flagged-mask": "mask flagged" };
  const outcome = (item) => (item.outcome !== "attacked" ? "none" : item.success ? "success" : "failure");
  /** What is left of the confidence in the class that came first before. */
  const left = (item) => item.after?.of[0]?.[1] ?? null;
  const drop = (item) => (left(item) === null ? null : item.before.confidence - left(item));

  const says = (item) => {
    if (item.after === null) return REASONS[item.outcome] ?? "not attacked";
    if (item.success) return `→ ${item.after.class} ${percent(item.after.confidence)}`;
    const same = item.after.class === item.before.class;
    return `${same ? "stays" : `becomes ${item.after.class}`} ${percent(item.after.confidence)}`;
  };

  const meter = (share) => {
    const made = element("i");
    made.append(element("b"));
    made.firstChild.style.width = `${100 * (share ?? 0)}%`;
    return made;
  };
  const meters = (before, after) => {
    const made = element("div", "meters");
    made.append(meter(before), meter(after));
    return made;
  };

  const COLOURS = { foreground: "front", background: "back" };
  const chip = (item) => element("span", `chip ${COLOURS[item.region] ?? ""}`, item.region);

  // Which images are listed, and in what order

  const FILTERS = {
    outcome: { title: "All outcomes", of: outcome, name: (key) => OUTCOMES[key] },
    region: { title: "All regions", of: (item) => item.region },
    label: { title: "All classes", of: (item) => item.label },
    taken: { title: "All classes", of: (item) => (item.success ? item.after.class : null) },
    setup: { title: "All attacks", of: (item) => String(item.setup), name: (key) => setups[key].name },
    network: { title: "All models", of: (item) => setups[item.setup].network },
  };
  const SORTS = {
    drop: { title: "Confidence drop", of: drop, down: true },
    id: { title: "Name", of: (item) => item.id },
    queries: { title: "Queries", of: (item) => (item.outcome === "attacked" ? item.queries : null) },
    distortion: { title: "Distortion (L2)", of: (item) => item.distortion?.l2 ?? null },
    confidence: { title: "Confidence after", of: (item) => item.after?.confidence ?? null, down: true },
  };
  let listed = [];
  let active = 0;

  const fillSelects = () => {
    for (const [name, { title, of, name: call }] of Object.entries(FILTERS)) {
      const counts = new Map();
      for (const item of items) counts.set(of(item), (counts.get(of(item)) ?? 0) + 1);
      counts.delete(null);
      const select = $(`by-${name}`);
      select.append(new Option(title, ""));
      const keys = [...counts.keys()];
      if (name === "outcome") keys.sort((a, b) => Object.keys(OUTCOMES).indexOf(a) - Object.keys(OUTCOMES).indexOf(b));
      else keys.sort((a, b) => (call ?? String)(a).localeCompare((call ?? String)(b)));
      for (const key of keys) select.append(new Option(`${(call ?? String)(key)} (${whole(counts.get(key))})`, key));
      select.parentElement.hidden = counts.size < 2;
      select.addEventListener("change", () => choose());
    }
    for (const [key, { title }] of Object.entries(SORTS)) $("sort").append(new Option(title, key));
    $("sort").addEventListener("change", () => choose());
  };

  const compare = (one, two) => (typeof one === "string" ? one.localeCompare(two) : one - two);

  const choose = () => {
    const wanted = Object.entries(FILTERS).flatMap(([name, { of }]) => {
      const value = $(`by-${name}`).value;
      return value === "" ? [] : [(item) => of(item) === value];
    });
    const words = $("find").value.toLowerCase().split(/\s+/).filter(Boolean);
    const { of, down } = SORTS[$("sort").value];
    const sign = (down ? -1 : 1) * ($("reverse").getAttribute("aria-pressed") === "true" ? -1 : 1);
    listed = items
      .map((item, index) => ({ index, key: of(item), id: item.id.toLowerCase() }))
      .filter(({ index, id }) => words.every((word) => id.includes(word)) && wanted.every((fits) => fits(items[index])))
      .sort((one, two) => {
        if (one.key === null || two.key === null) return (one.key === null) - (two.key === null) || one.index - two.index;
        return sign * compare(one.key, two.key) || one.index - two.index;
      })
      .map(({ index }) => index);
    const images = new Set(listed.map((index) => items[index].id)).size;
    $("count").textContent = `${whole(listed.length)} of ${whole(items.length)} searches, on ${whole(images)} images`;
    $("nothing").hidden = listed.length > 0;
    active = 0;
    refill();
  };

  const clear = () => {
    for (const name of Object.keys(FILTERS)) $(`by-${name}`).value = "";
    $("find").value = "";
    choose();
  };

  // The grid: only the rows in sight, and some around them, are there

  const VIEWS = { one: ["attacked"], two: ["clean", "attacked"], four: ["clean", "region", "attacked", "difference"] };
  const LEAST = { one: 132, two: 236, four: 430 };
  const GAP = 12;
  const cards = new Map();
  let columns = 1;
  let rowHeight = 0;
  let all = false;

  const drawPicture = (canvas, item, source, view) => {
    const picture = composed(source, view, fittingGain(item));
    if (picture === null) {
      canvas.parentElement.classList.add("empty");
      return;
    }
    const unit = devicePixelRatio || 1;
    const side = Math.max(32, Math.round(canvas.clientWidth * unit));
    const scale = side / Math.max(source.width, source.height);
    [canvas.width, canvas.height] = [Math.round(source.width * scale), Math.round(source.height * scale)];
    const brush = canvas.getContext("2d");
    brush.imageSmoothingEnabled = !item.whole;
    brush.imageSmoothingQuality = "high";
    brush.drawImage(picture, 0, 0, canvas.width, canvas.height);
    if (view !== "attacked") return;
    const step = canvas.width / item.width;
    for (const [x, y] of item.pixels) ring(brush, (x + 0.5) * step, (y + 0.5) * step, Math.max(5 * unit, 1.7 * step), unit);
  };

  const makeCard = (place) => {
    const item = items[listed[place]];
    const made = element("li");
    const button = element("button", KINDS[outcome(item)]);
    button.type = "button";
    button.dataset.place = place;
    const pictures = element("div", "pictures");
    const canvases = VIEWS[settings.density].map((view) => {
      const frame = element("div", "picture");
      frame.dataset.why = item.outcome === "attacked" ? "no image was written" : says(item);
      frame.append(element("canvas"));
      pictures.append(frame);
      return [view, frame.firstChild];
    });
    const line = element("div", "says");
    line.append(element("span", "", item.before.class), element("span", "to", says(item)));
    const under = element("div", "under");
    under.append(chip(item), element("span", "", item.outcome === "attacked" ? `${whole(item.queries)} queries` : ""));
    button.append(pictures, element("span", "id", item.id), line, meters(item.before.confidence, left(item)), under);
    button.setAttribute("aria-label", `${item.id}, ${item.region}: ${item.before.class} ${percent(item.before.confidence)}, ${says(item)}`);
    button.title = item.id;
    made.setAttribute("aria-posinset", place + 1);
    made.setAttribute("aria-setsize", listed.length);
    made.append(button);
    const drawn = small(item).then((source) => {
      for (const [view, canvas] of canvases) drawPicture(canvas, item, source, view);
    });
    return { item: made, button, drawn };
  };

  const measure = () => {
    const width = grid.clientWidth;
    columns = Math.max(1, Math.floor((width + GAP) / (LEAST[settings.density] + GAP)));
    grid.style.setProperty("--columns", columns);
    grid.style.padding = "0";
    if (!listed.length) return;
    const card = makeCard(0);
    grid.replaceChildren(card.item);
    rowHeight = card.item.offsetHeight + GAP;
    grid.replaceChildren();
  };

  const refill = () => {
    cards.clear();
    grid.replaceChildren();
    measure();
    return render();
  };

  const render = () => {
    const rows = Math.ceil(listed.length / columns);
    const top = -grid.getBoundingClientRect().top;
    const first = all ? 0 : Math.max(0, Math.min(rows - 1, Math.floor(top / rowHeight) - 2));
    const last = all ? Math.ceil(48 / columns) : Math.min(rows, Math.ceil((top + innerHeight) / rowHeight) + 2);
    const [from, to] = [first * columns, Math.min(listed.length, Math.max(last, first + 1) * columns)];
    grid.style.paddingTop = `${first * rowHeight}px`;
    grid.style.paddingBottom = `${Math.max(0, rows - Math.ceil(to / columns)) * rowHeight}px`;
    const focused = grid.contains(document.activeElement);
    for (const [place, card] of cards) {
      if (place >= from && place < to) continue;
      card.item.remove();
      cards.delete(place);
    }
    for (let place = from; place < to; place++) {
      if (cards.has(place)) continue;
      const card = makeCard(place);
      cards.set(place, card);
      const next = [...grid.children].find((other) => Number(other.firstChild.dataset.place) > place);
      grid.insertBefore(card.item, next ?? null);
    }
    if (active < from || active >= to) active = Math.max(from, Math.min(active, to - 1));
    for (const [place, { button }] of cards) button.tabIndex = place === active ? 0 : -1;
    // The focus would be lost with a card that scrolled away.
    if (focused && !grid.contains(document.activeElement)) cards.get(active)?.button.focus({ preventScroll: true });
    return Promise.all([...cards.values()].map((card) => card.drawn));
  };

  const goTo = (place) => {
    if (!listed.length) return;
    active = Math.max(0, Math.min(listed.length - 1, place));
    const top = grid.getBoundingClientRect().top + scrollY + Math.floor(active / columns) * rowHeight;
    const covered = document.querySelector(".bar").getBoundingClientRect().bottom;
    const above = getComputedStyle(document.querySelector(".bar")).position === "sticky" ? Math.max(60, Math.min(covered, 220)) : 60;
    if (top - above < scrollY) scrollTo({ top: top - above - 8, behavior: "instant" });
    else if (top + rowHeight > scrollY + innerHeight) scrollTo({ top: top + rowHeight - innerHeight, behavior: "instant" });
    render();
    cards.get(active)?.button.focus({ preventScroll: true });
  };

  const setDensity = (name) => {
    settings.density = name in VIEWS ? name : "two";
    for (const button of $("density").children) button.setAttribute("aria-pressed", button.dataset.density === settings.density);
    keep();
    if (listed.length) refill();
  };

  // The viewer: clean and attacked side by side, pixel by pixel

  const viewer = $("viewer");
  const canvases = { left: $("left"), right: $("right") };
  let shown = -1;
  let source = null;
  let colours = null;
  let zoom = 1;
  let centre = [0, 0];
  let cursor = null;
  let turn = 0;
  const toggled = (name) => $(name).getAttribute("aria-pressed") === "true";

  const readable = (picture) => {
    if (picture === null) return null;
    const canvas = blank(source.width, source.height);
    const brush = canvas.getContext("2d", { willReadFrequently: true });
    brush.drawImage(picture, 0, 0);
    return brush.getImageData(0, 0, source.width, source.height).data;
  };

  const show = async (place) => {
    if (place < 0 || place >= listed.length) return;
    const mine = ++turn;
    shown = place;
    active = place;
    root.dataset.viewer = "no";
    const item = items[listed[place]];
    paintFacts(item);
    if (!viewer.open) viewer.showModal();
    cursor = null;
    paintPixel();
    let found;
    try {
      found = await large(item);
    } catch (problem) {
      found = await small(item);
      if (mine === turn) $("pixel").textContent = `${problem.message}: the page shows its own small picture.`;
    }
    if (mine !== turn) return;
    source = found;
    try {
      colours = { clean: readable(source.clean), attacked: readable(source.attacked) };
    } catch {
      colours = null; // files beside a page on a disk may be shown, not read
    }
    fit();
    root.dataset.viewer = "yes";
  };

  const fit = () => {
    if (source === null) return;
    const box = canvases.left.getBoundingClientRect();
    const scale = Math.min((box.width - 8) / source.width, (box.height - 8) / source.height);
    zoom = scale > 1 ? Math.floor(scale) : scale;
    centre = [source.width / 2, source.height / 2];
    paint();
  };

  const setZoom = (value, around = centre) => {
    const next = Math.max(0.25, Math.min(64, value));
    centre = [0, 1].map((axis) => around[axis] + ((centre[axis] - around[axis]) * zoom) / next);
    zoom = next;
    paint();
  };
  const zoomBy = (sign, around) => {
    const larger = zoom >= 1 ? Math.ceil(zoom * 1.3) : Math.min(1, zoom * 1.5);
    const smaller = zoom > 1 ? Math.max(1, Math.floor(zoom / 1.3)) : zoom / 1.5;
    setZoom(sign > 0 ? larger : smaller, around);
  };

  const paint = () => {
    if (source === null || shown < 0) return;
    const item = items[listed[shown]];
    const differs = toggled("difference");
    $("gain-label").hidden = !differs;
    $("right-name").textContent = differs ? "Difference" : "Attacked";
    $("zoom").textContent = zoom >= 1 ? `${Math.round(zoom)} ×` : percent(zoom);
    paintView(canvases.left, composed(source, toggled("region") ? "region" : "clean"), item);
    const right = differs ? "difference" : toggled("region") ? "attacked-region" : "attacked";
    paintView(canvases.right, composed(source, right, Number($("gain").value)), item);
  };

  const paintView = (canvas, picture, item) => {
    const unit = devicePixelRatio || 1;
    [canvas.width, canvas.height] = [canvas.clientWidth * unit, canvas.clientHeight * unit];
    const brush = canvas.getContext("2d");
    const step = zoom * unit;
    const x0 = Math.round(canvas.width / 2 - centre[0] * step);
    const y0 = Math.round(canvas.height / 2 - centre[1] * step);
    if (picture === null) {
      brush.fillStyle = getComputedStyle(root).getPropertyValue("--quiet");
      brush.font = `${14 * unit}px system-ui, sans-serif`;
      brush.textAlign = "center";
      brush.fillText(item.outcome === "attacked" ? "no image was written" : says(item), canvas.width / 2, canvas.height / 2);
      return;
    }
    brush.imageSmoothingEnabled = zoom < 1;
    brush.drawImage(picture, x0, y0, source.width * step, source.height * step);
    if (step >= 14 * unit) {
      brush.fillStyle = "#8888";
      for (let x = 1; x < source.width; x++) brush.fillRect(x0 + x * step, y0, 1, source.height * step);
      for (let y = 1; y < source.height; y++) brush.fillRect(x0, y0 + y * step, source.width * step, 1);
    }
    const factor = source.width / item.width;
    if (toggled("marks")) {
      for (const [x, y] of item.pixels) {
        const radius = Math.max(0.95 * step * factor, 9 * unit);
        ring(brush, x0 + (x + 0.5) * step * factor, y0 + (y + 0.5) * step * factor, radius, unit);
      }
    }
    if (cursor === null) return;
    for (const [colour, grown] of [["#fff", 2], ["#000", 1]]) {
      brush.strokeStyle = colour;
      brush.lineWidth = unit;
      const more = grown * unit;
      brush.strokeRect(x0 + cursor[0] * step - more, y0 + cursor[1] * step - more, step + 2 * more, step + 2 * more);
    }
  };

  const swatch = (rgb) => {
    const made = element("i", "swatch");
    made.style.background = `rgb(${rgb.join(" ")})`;
    return made;
  };

  /** The colours of a pixel before and after, as far as they are known; null where they are not. */
  const coloursAt = (item, [x, y]) => {
    const change = item.pixels.find((pixel) => pixel[0] === x && pixel[1] === y);
    if (change && source.width === item.width) return [change.slice(2, 5), change.slice(5, 8)];
    const at = 4 * (y * source.width + x);
    const pick = (data) => (data ? [...data.slice(at, at + 3)] : null);
    return colours === null ? [null, null] : [pick(colours.clean), pick(colours.attacked)];
  };

  const paintPixel = () => {
    const line = $("pixel");
    if (cursor === null) {
      line.textContent = "Point at a pixel, or press Shift and an arrow, to read it.";
      return;
    }
    const item = items[listed[shown]];
    const [clean, attacked] = coloursAt(item, cursor);
    line.replaceChildren(element("span", "", `x ${cursor[0]}, y ${cursor[1]}`));
    for (const [name, rgb] of [["clean", clean], ["attacked", attacked]]) {
      if (rgb === null) continue;
      const part = element("span", name);
      part.append(swatch(rgb), ` ${name} ${rgb.join(" ")}`);
      line.append(part);
    }
    if (clean && attacked) {
      const change = attacked.map((value, channel) => value - clean[channel]);
      const text = change.map((value) => (value > 0 ? `+${value}` : String(value).replace("-", "−"))).join(" ");
      line.append(element("span", "", change.some(Boolean) ? `change ${text}` : "unchanged"));
    }
    if (!clean) line.append(element("span", "", `colours: on a web server, or with --embed ${Math.max(item.width, item.height)}`));
  };

  const setCursor = (x, y) => {
    if (source === null) return;
    const inside = x >= 0 && y >= 0 && x < source.width && y < source.height;
    cursor = inside ? [x, y] : null;
    paintPixel();
    paint();
  };

  const moveCursor = (x, y) => {
    if (source === null) return;
    const start = cursor ?? centre.map(Math.floor).map((value, axis) => value - [x, y][axis]);
    const limit = (value, size) => Math.max(0, Math.min(size - 1, value));
    lookAt(limit(start[0] + x, source.width), limit(start[1] + y, source.height));
  };

  /** Read a pixel, and bring it in sight. */
  const lookAt = (x, y) => {
    const half = [canvases.left.clientWidth / zoom / 2, canvases.left.clientHeight / zoom / 2];
    centre = centre.map((value, axis) => {
      const at = [x, y][axis] + 0.5;
      return Math.abs(at - value) > half[axis] - 1 ? at : value;
    });
    setCursor(x, y);
  };

  const nextChange = () => {
    const pixels = items[listed[shown]].pixels;
    if (!pixels.length) return;
    const at = pixels.findIndex(([x, y]) => cursor !== null && x === cursor[0] && y === cursor[1]);
    const [x, y] = pixels[(at + 1) % pixels.length];
    lookAt(x, y);
  };

  const pixelAt = (canvas, event) => {
    const box = canvas.getBoundingClientRect();
    return [
      centre[0] + (event.clientX - box.left - box.width / 2) / zoom,
      centre[1] + (event.clientY - box.top - box.height / 2) / zoom,
    ];
  };

  for (const canvas of Object.values(canvases)) {
    let held = null;
    canvas.addEventListener("pointerdown", (event) => {
      held = [event.clientX, event.clientY];
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointerup", () => {
      held = null;
    });
    canvas.addEventListener("pointermove", (event) => {
      if (held !== null) {
        centre = [centre[0] - (event.clientX - held[0]) / zoom, centre[1] - (event.clientY - held[1]) / zoom];
        held = [event.clientX, event.clientY];
      }
      setCursor(...pixelAt(canvas, event).map(Math.floor));
    });
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      zoomBy(-Math.sign(event.deltaY), pixelAt(canvas, event));
    });
  }

  const row = (name, text) => {
    const made = element("div");
    made.append(element("dt", "", name), element("dd", "", text));
    return made;
  };

  const paintFacts = (item) => {
    const run = stages[item.stage];
    const { name, network } = setups[item.setup];
    $("viewer-title").textContent = item.id;
    $("verdict").textContent = `${OUTCOMES[outcome(item)]}: ${item.before.class} ${says(item)}`;
    $("verdict").className = KINDS[outcome(item)];
    $("place").textContent = `${whole(shown + 1)} / ${whole(listed.length)}`;
    $("previous").disabled = shown === 0;
    $("next").disabled = shown === listed.length - 1;
    $("clean-answer").textContent = `${item.before.class} ${percent(item.before.confidence)}`;
    $("attacked-answer").textContent = item.after === null ? "" : `${item.after.class} ${percent(item.after.confidence)}`;
    canvases.left.setAttribute("aria-label", `The clean image ${item.id}`);
    canvases.right.setAttribute("aria-label", `The attacked image: ${says(item)}`);
    $("gain").value = fittingGain(item);
    paintConfidences(item);
    paintChanges(item);
    const target = item.target === null ? [] : [row("Target", item.target)];
    const repeat = item.repeat ? [row("Repeat", item.repeat)] : [];
    const distortion = item.distortion && `L2 ${item.distortion.l2}, L∞ ${item.distortion.most} (of 255)`;
    $("about-search").replaceChildren(
      row("Label", `${item.label} (${item.source})`),
      ...target,
      row("Region", `${item.region}, ${percent(item.area)} of ${item.width} × ${item.height}`),
      row("Attack", name),
      row("Model", network),
      row("Queries", `${whole(item.queries)} (${whole(item.candidates)} candidates)`),
      row("Generations", whole(item.generations)),
      ...(distortion ? [row("Distortion", distortion)] : []),
      ...repeat,
      row("Run", run.name),
      row("Seed", run.seed),
      row("Command", run.repeat),
    );
    viewer.className = KINDS[outcome(item)];
  };

  const paintConfidences = (item) => {
    const after = new Map((item.after?.of ?? []).map(([name, share]) => [name, share]));
    const rows = item.before.top5.map(([name, share]) => [name, share, after.get(name) ?? null]);
    if (item.after && !after.has(item.after.class)) rows.push([item.after.class, null, item.after.confidence]);
    $("confidences").replaceChildren(
      ...rows.map(([name, before, now]) => {
        const made = element("div", "class");
        const text = [before, now].map((share) => (share === null ? "–" : percent(share))).join(" → ");
        made.append(element("b", "", name), element("span", "", text), meters(before, now));
        return made;
      }),
    );
  };

  const paintChanges = (item) => {
    const buttons = item.pixels.map(([x, y, ...rgb]) => {
      const made = element("button");
      made.type = "button";
      made.append(`${x}, ${y}`, swatch(rgb.slice(0, 3)), swatch(rgb.slice(3)));
      made.setAttribute("aria-label", `Pixel ${x}, ${y}: from ${rgb.slice(0, 3).join(" ")} to ${rgb.slice(3).join(" ")}`);
      made.addEventListener("click", () => lookAt(x, y));
      return made;
    });
    const count = item.distortion?.pixels;
    const share = count === undefined ? "not known" : `${whole(count)} (${percent(count / (item.width * item.height))})`;
    $("changes").replaceChildren(...(buttons.length ? buttons : [share]));
  };

  viewer.addEventListener("close", () => {
    turn++;
    source = null;
    goTo(shown);
  });
  new ResizeObserver(() => viewer.open && fit()).observe(viewer);

  // Buttons and keys

  const toggle = (name) => {
    $(name).setAttribute("aria-pressed", !toggled(name));
    paint();
  };
  const switchTheme = startTheme(settings.theme);
  const theme = () => {
    settings.theme = switchTheme();
    keep();
    for (const { button } of cards.values()) button.blur();
    if (listed.length) refill();
  };
  const help = () => $("help").showModal();
  const NAMES = Object.keys(VIEWS);

  const PAGE_KEYS = {
    arrowleft: () => goTo(active - 1), arrowright: () => goTo(active + 1),
    arrowup: () => goTo(active - columns), arrowdown: () => goTo(active + columns),
    home: () => goTo(0), end: () => goTo(listed.length - 1),
    "/": () => $("find").focus(), x: clear, t: theme, "?": help,
    v: () => setDensity(NAMES[(NAMES.indexOf(settings.density) + 1) % NAMES.length]),
  }; // prettier-ignore
  const VIEWER_KEYS = {
    arrowleft: () => show(shown - 1), arrowright: () => show(shown + 1),
    "+": () => zoomBy(1), "=": () => zoomBy(1), "-": () => zoomBy(-1), 0: fit, p: nextChange,
    c: () => toggle("marks"), r: () => toggle("region"), d: () => toggle("difference"), t: theme,
  }; // prettier-ignore
  const STEPS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

  document.addEventListener("keydown", (event) => {
    if ($("help").open || event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches("input, select");
    if (typing && event.key === "Escape" && !viewer.open) event.target.blur();
    if (typing) return;
    if (viewer.open && event.shiftKey && event.key in STEPS) {
      event.preventDefault();
      moveCursor(...STEPS[event.key]);
      return;
    }
    const key = event.key.toLowerCase();
    const keys = viewer.open ? VIEWER_KEYS : PAGE_KEYS;
    // Elsewhere on the page these keys scroll.
    const moves = /^(arrow|home|end)/.test(key);
    if (!Object.hasOwn(keys, key) || (moves && !viewer.open && !grid.contains(document.activeElement))) return;
    event.preventDefault();
    keys[key]();
  });

  grid.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (button) show(Number(button.dataset.place));
  });
  const on = (name, action) => $(name).addEventListener("click", () => action());
  on("theme", theme);
  on("help-open", help);
  on("clear", clear);
  on("close", () => viewer.close());
  on("previous", VIEWER_KEYS.arrowleft);
  on("next", VIEWER_KEYS.arrowright);
  on("in", () => zoomBy(1));
  on("out", () => zoomBy(-1));
  on("fit", fit);
  for (const name of ["marks", "region", "difference"]) on(name, () => toggle(name));
  on("reverse", () => {
    $("reverse").setAttribute("aria-pressed", !toggled("reverse"));
    choose();
  });
  for (const button of $("density").children) button.addEventListener("click", () => setDensity(button.dataset.density));
  $("find").addEventListener("input", () => choose());
  for (let gain = 1; gain <= 128; gain *= 2) $("gain").append(new Option(`× ${gain}`, gain));
  $("gain").addEventListener("change", paint);

  let due = false;
  addEventListener("scroll", () => {
    if (due) return;
    due = true;
    requestAnimationFrame(() => {
      due = false;
      render();
    });
  });
  let width = grid.clientWidth;
  new ResizeObserver(() => {
    if (grid.clientWidth === width || all) return;
    width = grid.clientWidth;
    if (listed.length) refill();
  }).observe(grid);

  // On paper: all tables, and the first images of the list
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const table of opened) table.open = true;
    all = true;
    render();
    $("printed").textContent = listed.length > cards.size ? `${cards.size} of ${whole(listed.length)} searches; the others are in the page.` : "";
  });
  addEventListener("afterprint", () => {
    for (const table of opened) table.open = false;
    all = false;
    refill();
  });

  fillSelects();
  setDensity(settings.density);
  choose();
  render().then(() => {
    root.dataset.ready = "yes";
  });
})();
