(() => {
  const about = dataOf("about");
  const images = about.images;
  const data = (index) => dataOf("d" + index);

  // What is kept in the browser: one entry for the decisions, one per scribbled image, one for the settings.

  const KEY = `pixelsem-review:${about.identity.slice(0, 16)}:${about.revision.slice(0, 16)}`;
  const SETTINGS = "pixelsem-review:settings";
  let keeping = true;

  const recall = (key) => {
    try {
      return localStorage.getItem(key);
    } catch {
      keeping = false;
      return null;
    }
  };

  const recallJson = (key, otherwise) => {
    try {
      return { ...otherwise, ...JSON.parse(recall(key) ?? "{}") };
    } catch {
      return otherwise;
    }
  };

  const keep = (key, text) => {
    try {
      if (text === undefined) localStorage.removeItem(key);
      else localStorage.setItem(key, text);
      keeping = true;
    } catch {
      keeping = false;
    }
    sayKept();
  };

  const sayKept = () => {
    $("kept").classList.toggle("warning", !keeping);
    $("kept").textContent = keeping
      ? "Kept in this browser: the page can be closed at any time."
      : "This browser keeps no more: export the decisions before you close the page.";
  };

  const settings = recallJson(SETTINGS, { theme: null, view: "tint", opacity: 70, brush: 14, advance: true });
  const keepSettings = () => keep(SETTINGS, JSON.stringify(settings));

  // A mark is what a person did to an image. Scribbles: undefined, none of theirs; null, cleared; else a PNG.

  const kept = recallJson(KEY, { decisions: {}, at: 0, filter: "all" });
  const known = (value) => (["accepted", "rejected", null].includes(value) ? value : undefined);
  const marks = images.map((image, index) => {
    const scribbles = recall(`${KEY}:${index}`);
    const decision = known(kept.decisions?.[index]);
    return {
      decision: decision === undefined ? image.decision : decision,
      scribbles: scribbles === null ? undefined : scribbles === "" ? null : scribbles,
    };
  });
  const undos = [];

  const keepMark = (index) => {
    const { scribbles } = marks[index];
    keep(`${KEY}:${index}`, scribbles === undefined ? undefined : (scribbles ?? ""));
    keepPlace();
  };

  const keepPlace = () => {
    const changed = marks.flatMap((mark, index) =>
      mark.decision === images[index].decision ? [] : [[index, mark.decision]],
    );
    keep(KEY, JSON.stringify({ decisions: Object.fromEntries(changed), at: current, filter }));
  };

  const status = (index) => marks[index].decision ?? (marks[index].scribbles !== undefined ? "redo" : "");
  const drawn = (index) => {
    const { scribbles } = marks[index];
    return scribbles !== undefined ? scribbles !== null : images[index].scribbled;
  };

  const FILTERS = {
    all: () => true,
    flagged: (index) => images[index].flags.length > 0,
    undecided: (index) => status(index) === "",
    rejected: (index) => status(index) === "rejected",
  };
  let filter = kept.filter in FILTERS ? kept.filter : "all";
  let current = -1;

  const say = (text) => {
    $("live").textContent = text;
  };

  // The strip of thumbnails

  const SIGNS = { accepted: "✓", rejected: "✕", redo: "✎", "": "" };
  const WORDS = { accepted: "accepted", rejected: "rejected", redo: "to be cut again", "": "open" };

  const thumbs = images.map((image, index) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    const picture = document.createElement("img");
    const mark = document.createElement("span");
    button.type = "button";
    button.title = image.id;
    picture.alt = "";
    picture.classList.toggle("tiny", image.tiny);
    mark.className = "mark";
    button.append(picture, mark);
    if (image.flags.length) {
      const flag = document.createElement("span");
      flag.className = "flag";
      flag.textContent = "!";
      button.append(flag);
    }
    button.addEventListener("click", () => show(index));
    item.append(button);
    item.dataset.index = index;
    $("strip").append(item);
    return { item, button, picture, mark };
  });

  // Only what is in sight is unpacked, so that thousands of images do no harm.
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        const { picture } = thumbs[target.dataset.index];
        if (!isIntersecting) picture.removeAttribute("src");
        else if (!picture.hasAttribute("src")) picture.src = data(target.dataset.index).image;
      }
    },
    { root: $("strip"), rootMargin: "400px" },
  );
  for (const { item } of thumbs) watcher.observe(item);

  const paintThumb = (index) => {
    const { item, button, mark } = thumbs[index];
    item.className = status(index);
    mark.textContent = SIGNS[status(index)];
    const flagged = images[index].flags.length ? ", flagged" : "";
    button.setAttribute("aria-label", `${images[index].id}: ${WORDS[status(index)]}${flagged}`);
  };

  const paintCounts = () => {
    const count = { accepted: 0, rejected: 0, redo: 0, "": 0 };
    images.forEach((_, index) => count[status(index)]++);
    const done = images.length - count[""];
    for (const name of ["accepted", "rejected", "redo"]) {
      document.querySelector(`#bar .${name}`).style.width = `${(100 * count[name]) / images.length}%`;
    }
    $("bar").setAttribute("aria-valuemax", images.length);
    $("bar").setAttribute("aria-valuenow", done);
    const parts = ["accepted", "rejected", "redo"].filter((name) => count[name]).map((name) => `${count[name]} ${WORDS[name]}`);
    $("counts").textContent = [`${done} of ${images.length} decided`, ...parts].join(" · ");
  };

  const applyFilter = () => {
    for (const button of $("filters").children) {
      button.setAttribute("aria-pressed", button.dataset.filter === filter);
    }
    thumbs.forEach(({ item }, index) => {
      item.hidden = !FILTERS[filter](index);
    });
  };

  const choose = (name) => {
    filter = name;
    applyFilter();
    const listed = images.map((_, index) => index).filter(FILTERS[filter]);
    if (!listed.includes(current)) show(listed.find((index) => index > current) ?? listed[0] ?? -1);
    else paintAbout();
    keepPlace();
    say(`${listed.length} images in this list`);
  };

  // The image in the middle

  const overlay = $("overlay");
  const sheet = $("scribbles");
  const ink = sheet.getContext("2d", { willReadFrequently: true });
  let mask = null;
  let turn = 0;

  const loaded = (source) =>
    new Promise((resolve, reject) => {
      const picture = new Image();
      picture.onload = () => resolve(picture);
      picture.onerror = () => reject(new Error("a picture of this page is damaged"));
      picture.src = source;
    });

  const show = async (index) => {
    stopStroke();
    const mine = ++turn;
    const before = current;
    current = index;
    if (before >= 0) thumbs[before].button.removeAttribute("aria-current");
    document.documentElement.dataset.ready = "no";
    $("frame").hidden = index < 0;
    $("nothing").hidden = index >= 0;
    applyFilter();
    paintAbout();
    keepPlace();
    if (index < 0) return;
    thumbs[index].button.setAttribute("aria-current", "true");
    thumbs[index].item.scrollIntoView({ block: "nearest", inline: "nearest" });
    const image = images[index];
    const { image: source, mask: maskSource, scribbles } = data(index);
    const [picture, read] = await Promise.all([loaded(source), loaded(maskSource)]);
    if (mine !== turn) return;
    $("image").src = picture.src;
    $("image").alt = `The image ${image.id}`;
    $("frame").classList.toggle("tiny", image.tiny);
    mask = read;
    const mark = marks[index].scribbles;
    [sheet.width, sheet.height] = image.drawn ?? [1, 1];
    await drawScribbles(mark !== undefined ? mark : scribbles, mine);
    if (mine !== turn) return;
    fit();
    paintMask();
    document.documentElement.dataset.ready = "yes";
  };

  const drawScribbles = async (source, mine) => {
    const picture = source ? await loaded(source) : null;
    if (mine !== turn) return;
    ink.clearRect(0, 0, sheet.width, sheet.height);
    if (picture === null) return;
    ink.imageSmoothingEnabled = false;
    ink.drawImage(picture, 0, 0, sheet.width, sheet.height);
    const pixels = ink.getImageData(0, 0, sheet.width, sheet.height);
    for (let i = 0; i < pixels.data.length; i += 4) {
      const grey = pixels.data[i];
      const sure = pixels.data[i + 3] > 127 && (grey > 191 || grey < 64);
      pixels.data.fill(sure && grey > 191 ? 255 : 0, i, i + 3);
      pixels.data[i + 3] = sure ? 255 : 0;
    }
    ink.putImageData(pixels, 0, 0);
  };

  const fit = () => {
    if (current < 0) return;
    const { width, height, tiny } = images[current];
    const box = $("board").getBoundingClientRect();
    let scale = Math.min((box.width - 24) / width, (box.height - 24) / height);
    if (tiny && scale > 1) scale = Math.floor(scale);
    $("frame").style.width = `${Math.round(width * scale)}px`;
    $("frame").style.height = `${Math.round(height * scale)}px`;
  };
  new ResizeObserver(fit).observe($("board"));

  // Matplotlib's and OpenCV's Turbo at eight steps
  const HEAT = [
    [48, 18, 59], [70, 107, 227], [40, 187, 236], [49, 242, 153], [162, 252, 60], [237, 208, 58], [251, 129, 35],
    [210, 49, 5], [122, 4, 3],
  ]; // prettier-ignore
  const heat = (level) => {
    const at = (level / 255) * (HEAT.length - 1);
    const step = Math.min(HEAT.length - 2, Math.floor(at));
    return HEAT[step].map((low, channel) => low + (at - step) * (HEAT[step + 1][channel] - low));
  };
  const HEATS = Array.from({ length: 256 }, (_, level) => heat(level));

  const paintMask = () => {
    if (mask === null || current < 0) return;
    const image = images[current];
    const factor = Math.max(1, Math.round(960 / Math.max(mask.width, mask.height)));
    const [width, height] = [mask.width * factor, mask.height * factor];
    [overlay.width, overlay.height] = [width, height];
    const brush = overlay.getContext("2d", { willReadFrequently: true });
    if (settings.view === "none") return;
    brush.imageSmoothingEnabled = !image.tiny && image.kind !== "labels";
    brush.drawImage(mask, 0, 0, width, height);
    const pixels = brush.getImageData(0, 0, width, height);
    const values = new Uint32Array(pixels.data.buffer);
    const sides = image.kind === "labels" ? values.slice() : sidesOf(values, image);
    const fills = image.kind === "labels" ? null : Uint32Array.from({ length: 256 }, (_, level) => fill(image, level));
    const lines = image.kind === "labels" ? [packed(255, 255, 255, 170)] : [packed(8, 12, 18, 230), packed(86, 200, 255, 255)];
    const strength = settings.view === "outline" ? 0 : settings.opacity / (settings.view === "cut" ? 100 : 154);
    const over = Math.round(255 * strength) << 24;
    // Superpixels are small: their borders are thin, and drawn on one side only.
    const thin = image.kind === "labels";
    const thick = thin ? 1 : Math.max(2, Math.round(Math.max(width, height) / 480));
    for (let y = 0, at = 0; y < height; y++) {
      for (let x = 0; x < width; x++, at++) {
        const mine = sides[at];
        const edge =
          (!thin && x >= thick && sides[at - thick] !== mine) ||
          (!thin && y >= thick && sides[at - thick * width] !== mine) ||
          (x + thick < width && sides[at + thick] !== mine) ||
          (y + thick < height && sides[at + thick * width] !== mine);
        if (edge) values[at] = lines[fills === null ? 0 : mine];
        else values[at] = fills === null ? (values[at] & 0xffffff) | over : fills[values[at] & 255];
      }
    }
    brush.putImageData(pixels, 0, 0);
  };

  // Colours as one number each, as the canvas has them in memory: red comes first, and all computers that run
  // browsers are little-endian.
  const packed = (red, green, blue, alpha) => ((alpha << 24) | (blue << 16) | (green << 8) | red) >>> 0;

  const leastOf = (image) => Math.max(1, Math.round(255 * (image.kind === "soft" ? image.threshold : 0.5)));
  const sidesOf = (values, image) => {
    const least = leastOf(image);
    return Uint8Array.from(values, (value) => ((value & 255) >= least ? 1 : 0));
  };

  const fill = (image, level) => {
    const strength = settings.opacity / 100;
    const inside = level >= leastOf(image);
    if (settings.view === "outline") return 0;
    if (settings.view === "cut") return packed(14, 16, 20, inside ? 0 : 255 * strength);
    if (image.kind === "soft") return packed(...HEATS[level], strength * (90 + 0.5 * level));
    return inside ? packed(0, 140, 220, 105 * strength) : packed(10, 12, 16, 165 * strength);
  };

  const KINDS = { binary: "object or not", soft: "soft (heat)", labels: "labels" };

  const paintAbout = () => {
    for (const name of ["accept", "reject", "clear"]) $(name).disabled = current < 0;
    $("undo").disabled = undos.length === 0;
    if (current < 0) {
      for (const name of ["title", "place", "coverage", "size", "kind", "state"]) $(name).textContent = "";
      $("flags").replaceChildren();
      $("meter").style.width = "0";
      return;
    }
    const image = images[current];
    const listed = images.map((_, index) => index).filter((index) => FILTERS[filter](index) || index === current);
    $("title").textContent = image.id;
    $("title").title = image.id;
    $("place").textContent = `${listed.indexOf(current) + 1} of ${listed.length}`;
    $("coverage").textContent = `${(100 * image.coverage).toFixed(1)} %`;
    $("meter").style.width = `${100 * image.coverage}%`;
    $("size").textContent = `${image.width} × ${image.height}`;
    $("kind").textContent = KINDS[image.kind];
    const again = marks[current].scribbles !== undefined;
    const { decision } = marks[current];
    $("state").textContent = decision && again ? `${decision}, ${WORDS.redo}` : WORDS[status(current)];
    $("flags").replaceChildren(
      ...image.flags.map((text) => {
        const item = document.createElement("li");
        item.textContent = text;
        return item;
      }),
    );
    $("accept").setAttribute("aria-pressed", decision === "accepted");
    $("reject").setAttribute("aria-pressed", decision === "rejected");
    for (const name of ["accepted", "rejected", "redo"]) $("frame").classList.toggle(name, status(current) === name);
    $("brushes").hidden = image.drawn === null;
    $("clear").disabled = !drawn(current);
    paintCursor();
  };

  const paintMark = (index) => {
    paintThumb(index);
    paintCounts();
    if (index === current) paintAbout();
  };

  // Decisions

  const change = (index, mark) => {
    undos.push([index, marks[index]]);
    if (undos.length > 300) undos.shift();
    marks[index] = mark;
    keepMark(index);
    paintMark(index);
  };

  const decide = (decision) => {
    if (current < 0) return;
    const index = current;
    const again = marks[index].decision === decision;
    change(index, { ...marks[index], decision: again ? null : decision });
    say(`${images[index].id} ${again ? WORDS[""] : decision}. ${$("counts").textContent}`);
    if (settings.advance && !again) go(1);
  };

  const undo = async () => {
    stopStroke();
    const last = undos.pop();
    if (last === undefined) return say("Nothing to undo");
    const [index, mark] = last;
    marks[index] = mark;
    keepMark(index);
    paintMark(index);
    await show(index);
    say(`Undone: ${images[index].id} is ${WORDS[status(index)]}`);
  };

  const go = (step, wanted = FILTERS[filter]) => {
    for (let index = current + step; index >= 0 && index < images.length; index += step) {
      if (wanted(index)) return show(index);
    }
    say(step > 0 ? "This was the last image" : "This is the first image");
    applyFilter();
    paintAbout();
  };

  const nextOpen = () => {
    const ahead = images.findIndex((_, index) => index > current && status(index) === "");
    const any = images.findIndex((_, index) => index !== current && status(index) === "");
    const found = ahead >= 0 ? ahead : any;
    if (found < 0) return say("All images are decided");
    if (!FILTERS[filter](found)) choose("undecided");
    return show(found);
  };

  const edge = (last) => {
    const listed = images.map((_, index) => index).filter(FILTERS[filter]);
    if (listed.length) show(last ? listed[listed.length - 1] : listed[0]);
  };

  // Scribbles: hard-edged, as every pixel says something

  const COLOURS = { front: "#ffffff", back: "#000000" };
  let tool = null;
  let stroke = null;

  const pick = (name) => {
    tool = tool === name ? null : name;
    for (const button of $("tools").children) button.setAttribute("aria-pressed", button.dataset.tool === tool);
    paintCursor();
    say(tool === null ? "Brush put down" : { front: "Brush for the object", back: "Brush for what is around it", erase: "Eraser" }[tool]);
  };

  const diameter = () => {
    const [width, height] = images[current]?.drawn ?? [1, 1];
    return Math.max(1, Math.round((settings.brush * Math.max(width, height)) / 400));
  };

  const paintCursor = (event) => {
    const active = tool !== null && current >= 0 && images[current].drawn !== null;
    $("frame").classList.toggle("painting", active);
    const cursor = $("cursor");
    cursor.className = tool ?? "";
    if (!active) cursor.style.display = "none";
    else if (event) {
      const box = sheet.getBoundingClientRect();
      const size = Math.max(6, (diameter() * box.width) / sheet.width);
      Object.assign(cursor.style, {
        display: "block", width: `${size}px`, height: `${size}px`,
        left: `${event.clientX - box.left}px`, top: `${event.clientY - box.top}px`,
      });
    }
  };

  const place = (event) => {
    const box = sheet.getBoundingClientRect();
    return [((event.clientX - box.left) * sheet.width) / box.width, ((event.clientY - box.top) * sheet.height) / box.height];
  };

  const dab = (x, y, radius, name) => {
    const row = (left, top, width) => {
      if (name === "erase") ink.clearRect(left, top, width, 1);
      else ink.fillRect(left, top, width, 1);
    };
    ink.fillStyle = COLOURS[name] ?? "#000000";
    if (radius < 1) return row(Math.floor(x), Math.floor(y), 1);
    for (let top = Math.ceil(y - radius - 0.5); top + 0.5 <= y + radius; top++) {
      const half = Math.sqrt(Math.max(0, radius * radius - (top + 0.5 - y) ** 2));
      const left = Math.ceil(x - half - 0.5);
      const right = Math.floor(x + half - 0.5);
      if (right >= left) row(left, top, right - left + 1);
    }
  };

  const drawTo = ([x, y]) => {
    const [fromX, fromY] = stroke.at;
    const steps = Math.max(1, Math.ceil(Math.hypot(x - fromX, y - fromY) / Math.max(0.5, stroke.radius / 3)));
    for (let step = 1; step <= steps; step++) {
      dab(fromX + ((x - fromX) * step) / steps, fromY + ((y - fromY) * step) / steps, stroke.radius, stroke.name);
    }
    stroke.at = [x, y];
  };

  const stopStroke = () => {
    if (stroke === null) return;
    const { index, pointer } = stroke;
    stroke = null;
    if (sheet.hasPointerCapture(pointer)) sheet.releasePointerCapture(pointer);
    // The mask that was judged will be another one.
    change(index, { decision: null, scribbles: isEmpty() ? cleared(index) : sheet.toDataURL("image/png") });
  };

  const isEmpty = () => !new Uint32Array(ink.getImageData(0, 0, sheet.width, sheet.height).data.buffer).some((pixel) => pixel);
  const cleared = (index) => (images[index].scribbled ? null : undefined);

  const clear = () => {
    stopStroke();
    if (current < 0 || !drawn(current)) return;
    ink.clearRect(0, 0, sheet.width, sheet.height);
    change(current, { ...marks[current], scribbles: cleared(current) });
    say("Scribbles cleared");
  };

  sheet.addEventListener("pointerdown", (event) => {
    if (tool === null || current < 0 || images[current].drawn === null || event.button > 2) return;
    if (document.documentElement.dataset.ready !== "yes") return;
    event.preventDefault();
    sheet.setPointerCapture(event.pointerId);
    // The other button paints the other side.
    const other = { front: "back", back: "front", erase: "erase" };
    const name = event.button === 2 ? other[tool] : tool;
    stroke = { index: current, pointer: event.pointerId, name, radius: diameter() / 2, at: place(event) };
    drawTo(stroke.at);
  });
  sheet.addEventListener("pointermove", (event) => {
    paintCursor(event);
    if (stroke === null || event.pointerId !== stroke.pointer) return;
    const events = event.getCoalescedEvents?.() ?? [];
    for (const each of events.length ? events : [event]) drawTo(place(each));
  });
  for (const name of ["pointerup", "pointercancel"]) sheet.addEventListener(name, stopStroke);
  sheet.addEventListener("pointerleave", () => {
    $("cursor").style.display = "none";
  });
  sheet.addEventListener("contextmenu", (event) => {
    if (tool !== null) event.preventDefault();
  });

  // Taking the decisions along

  const decisions = () => ({
    format: about.format,
    stage: about.identity,
    images: images.flatMap((image, index) => {
      const { decision, scribbles } = marks[index];
      const entry = { id: image.id, mask: image.mask };
      if (decision !== image.decision) entry.decision = decision;
      if (scribbles !== undefined) entry.scribbles = scribbles;
      return "decision" in entry || "scribbles" in entry ? [entry] : [];
    }),
  });

  const fileName = `${about.name}-decisions.json`;

  const download = () => {
    stopStroke();
    const content = decisions();
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1)], { type: "application/json" }));
    link.download = fileName;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    say(`Exported what you did to ${content.images.length} images as ${fileName}`);
  };

  // Settings, buttons, keys

  const switchTheme = startTheme(settings.theme);
  const theme = () => {
    settings.theme = switchTheme();
    keepSettings();
  };

  const VIEWS = ["tint", "cut", "outline", "none"];
  const setView = (name) => {
    settings.view = VIEWS.includes(name) ? name : "tint";
    for (const button of $("views").children) button.setAttribute("aria-pressed", button.dataset.view === settings.view);
    paintMask();
    keepSettings();
  };

  const setNumber = (name, value, unit) => {
    const input = $(name);
    input.value = value;
    settings[name] = Number(input.value);
    $(`${name}-is`).textContent = `${settings[name]}${unit}`;
    keepSettings();
  };
  const setOpacity = (value) => {
    setNumber("opacity", value, " %");
    paintMask();
  };
  const setBrush = (value) => {
    setNumber("brush", value, "");
    paintCursor();
  };

  const help = () => {
    $("help").showModal();
  };

  const KEYS = {
    a: () => decide("accepted"), r: () => decide("rejected"), u: undo, x: clear, d: download, t: theme, o: nextOpen,
    n: () => go(1), p: () => go(-1), arrowright: () => go(1), arrowleft: () => go(-1),
    home: () => edge(false), end: () => edge(true),
    f: () => pick("front"), b: () => pick("back"), e: () => pick("erase"), escape: () => tool && pick(tool),
    "[": () => setBrush(settings.brush - (settings.brush > 10 ? 4 : 1)),
    "]": () => setBrush(settings.brush + (settings.brush >= 10 ? 4 : 1)),
    m: () => setView(VIEWS[(VIEWS.indexOf(settings.view) + 1) % VIEWS.length]),
    "-": () => setOpacity(settings.opacity - 10), "+": () => setOpacity(settings.opacity + 10),
    "=": () => setOpacity(settings.opacity + 10), "?": help,
    1: () => choose("all"), 2: () => choose("flagged"), 3: () => choose("undecided"), 4: () => choose("rejected"),
  }; // prettier-ignore

  document.addEventListener("keydown", (event) => {
    if ($("help").open) return;
    const key = event.key.toLowerCase();
    if ((event.ctrlKey || event.metaKey) && key === "z" && !event.altKey) {
      event.preventDefault();
      undo();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const slides = event.target instanceof HTMLInputElement && event.target.type === "range";
    if (slides && (key.startsWith("arrow") || key === "home" || key === "end")) return;
    if (!Object.hasOwn(KEYS, key)) return;
    event.preventDefault();
    KEYS[key]();
  });

  const on = (name, action) => $(name).addEventListener("click", () => action());
  on("accept", KEYS.a);
  on("reject", KEYS.r);
  on("undo", undo);
  on("previous", KEYS.p);
  on("next", KEYS.n);
  on("clear", clear);
  on("export", download);
  on("theme", theme);
  on("help-open", help);
  for (const button of $("filters").children) button.addEventListener("click", () => choose(button.dataset.filter));
  for (const button of $("views").children) button.addEventListener("click", () => setView(button.dataset.view));
  for (const button of $("tools").children) button.addEventListener("click", () => pick(button.dataset.tool));
  $("opacity").addEventListener("input", (event) => setOpacity(event.target.value));
  $("brush").addEventListener("input", (event) => setBrush(event.target.value));
  $("advance").addEventListener("change", (event) => {
    settings.advance = event.target.checked;
    keepSettings();
  });
  window.addEventListener("beforeunload", (event) => {
    if (!keeping && decisions().images.length) event.preventDefault();
  });

  $("name").textContent = about.name;
  $("command").textContent = `${about.command} · ${images.length} images`;
  $("apply").textContent = `pixelsem segment review ${about.name} --apply ${fileName}`;
  $("advance").checked = settings.advance;
  setView(settings.view);
  setOpacity(settings.opacity);
  setBrush(settings.brush);
  for (const button of $("tools").children) button.setAttribute("aria-pressed", "false");
  images.forEach((_, index) => paintThumb(index));
  paintCounts();
  sayKept();
  const start = Number.isInteger(kept.at) && kept.at >= 0 && kept.at < images.length ? kept.at : 0;
  const first = FILTERS[filter](start) ? start : images.findIndex((_, index) => FILTERS[filter](index));
  show(images.length ? first : -1);
})();
