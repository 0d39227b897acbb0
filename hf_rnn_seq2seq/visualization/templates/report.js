"use strict";
// The page's one script. Text enters the page through textContent only, so that nothing of the data is read as markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const systems = data.systems;
  const total = data.reference.length;
  const special = new Set(data.special);
  const $ = (id) => document.getElementById(id);
  const list = $("list");
  const rightToLeft = /[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff]/;
  let shown = [];
  let page = 0;

  // ------------------------------------------------------------ data

  const sourceWords = (row, system) => systems[system].source[row] || data.source[row];
  const lowered = data.reference.map((reference, row) =>
    [data.source[row].join(""), reference, ...systems.map((system) => system.text[row])].join("\n").toLowerCase());

  // Where each sentence's weights start: they stand one after the other, target rows of source columns.
  for (const [number, system] of systems.entries()) {
    let place = 0;
    system.start = system.target.map((target, row) => {
      const start = place;
      place += system.attended[row] ? target.length * sourceWords(row, number).length : 0;
      return start;
    });
    system.size = place;
  }

  async function unpack(text) {
    const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Uint8Array(await new Response(stream).arrayBuffer());
  }

  function weight(row, system, target, source) {
    const entry = systems[system];
    const width = sourceWords(row, system).length;
    return entry.weights[entry.start[row] + target * width + source] / 255;
  }

  const attends = (row, system) => Boolean(systems[system].weights && systems[system].attended[row]);

  // ------------------------------------------------------------ sort and filter

  const number = (id, otherwise) => ($(id).value === "" ? otherwise : Number($(id).value));
  const chosen = () => Number($("system").value) || 0;
  const best = (row) => Math.max(...systems.map((system) => system.chrf[row]));
  const least = (row) => Math.min(...systems.map((system) => system.chrf[row]));

  function passes(row) {
    const entry = systems[chosen()];
    const choice = $("errors").value;
    const exact = entry.text[row] === data.reference[row];
    if (choice === "any" && !entry.errors[row].length) return false;
    if (choice === "exact" && !exact) return false;
    if (choice === "inexact" && exact) return false;
    if (!["all", "any", "exact", "inexact"].includes(choice) && !entry.errors[row].includes(choice)) return false;
    const score = entry.chrf[row];
    const length = entry.length[row];
    if (score < number("score_from", -1) || score > number("score_to", 101)) return false;
    if (length < number("length_from", -1) || length > number("length_to", Infinity)) return false;
    return $("query").value.toLowerCase().split(/\s+/).every((word) => lowered[row].includes(word));
  }

  function value(row) {
    const name = $("sort").value;
    if (name === "order") return row;
    if (name === "difference") return best(row) - least(row);
    return systems[chosen()][name][row];
  }

  function select() {
    const sign = $("direction").getAttribute("aria-pressed") === "true" ? -1 : 1;
    const values = new Map();
    shown = [];
    for (let row = 0; row < total; row += 1) {
      if (passes(row)) {
        shown.push(row);
        values.set(row, value(row));
      }
    }
    // Rows without a value come last in both directions.
    const compare = (a, b) => (a === null) - (b === null) || sign * (a - b);
    shown.sort((a, b) => compare(values.get(a), values.get(b)) || a - b);
    page = 0;
    draw();
  }

  // ------------------------------------------------------------ the sentences

  function element(name, classes, text) {
    const made = document.createElement(name);
    if (classes) made.className = classes;
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function wordLine(words, kind, system, reachable, language) {
    const line = element("span", "words");
    line.dir = "auto";
    if (language) line.lang = language;
    line.dataset.kind = kind;
    line.dataset.system = system;
    words.forEach((word, place) => {
      const isSpecial = special.has(word);
      // White space before a word stays outside its span, so that only the word is marked.
      const lead = isSpecial ? " " : /^\s*/.exec(word)[0];
      if (lead) line.append(lead);
      const span = element("span", isSpecial ? "w special" : "w", isSpecial ? word : word.slice(lead.length));
      span.dataset.place = place;
      if (reachable) span.tabIndex = place ? -1 : 0;
      line.append(span);
    });
    return line;
  }

  function labeled(name, line) {
    const row = element("div", "row");
    row.append(element("span", "name", name), line);
    return row;
  }

  // Prints 0.00 in place of -0.00.
  const fixed = (value, digits) => value.toFixed(digits).replace(/^-(?=.*[1-9])/, "\u2212").replace("-", "");

  function facts(row, system) {
    const entry = systems[system];
    const line = element("p", "facts");
    const add = (text, classes) => line.append(element("span", classes, text));
    add(`chrF ${fixed(entry.chrf[row], 1)}`);
    add(`BLEU ${fixed(entry.bleu[row], 1)}`);
    if (entry.text[row] === data.reference[row]) add("= reference", "good");
    if (entry.log_probability[row] !== null) add(`log-probability ${fixed(entry.log_probability[row], 2)} a token`);
    if (entry.entropy[row] !== null) add(`entropy ${fixed(entry.entropy[row], 2)}`);
    if (entry.coverage[row] !== null) add(`coverage ${fixed(entry.coverage[row], 2)}`);
    for (const name of entry.errors[row]) {
      const words = entry[name] ? entry[name][row].join(", ") : "";
      add(name.replace("_", " ") + (words ? `: ${words}` : ""), "error");
    }
    if (entry.unread[row].length) add(`unread: ${entry.unread[row].join(", ")}`);
    if (attends(row, system)) {
      const button = element("button", "", "map");
      button.type = "button";
      button.setAttribute("aria-expanded", "false");
      button.dataset.system = system;
      line.append(button);
    }
    return line;
  }

  function sentence(row) {
    const item = element("li");
    const card = element("article");
    card.tabIndex = -1;
    card.dataset.row = row;
    const count = systems[0].length[row];
    card.append(element("h2", "", `${row + 1} · ${count} ${count === 1 ? "word" : "words"}`));
    const any = systems.some((_, system) => attends(row, system));
    card.append(labeled("source", wordLine(sourceWords(row, 0), "source", 0, any, list.dataset.sourceLang)));
    const reference = element("span", "words", data.reference[row]);
    reference.dir = "auto";
    if (list.dataset.targetLang) reference.lang = list.dataset.targetLang;
    card.append(labeled("reference", reference));
    systems.forEach((entry, system) => {
      const words = entry.target[row].length ? entry.target[row] : [entry.text[row] || "(nothing)"];
      const line = wordLine(words, "target", system, attends(row, system), list.dataset.targetLang);
      const made = labeled(entry.name, line);
      made.classList.add("translation");
      made.append(facts(row, system));
      card.append(made);
    });
    item.append(card);
    return item;
  }

  function draw() {
    const size = Number($("size").value) || Math.max(shown.length, 1);
    const pages = Math.max(1, Math.ceil(shown.length / size));
    page = Math.min(Math.max(page, 0), pages - 1);
    const rows = shown.slice(page * size, (page + 1) * size);
    list.replaceChildren(...rows.map(sentence));
    if (!rows.length) list.append(element("li", "empty", "No sentence matches."));
    const some = shown.length === total ? "" : ` of ${total.toLocaleString("en")}`;
    const place = pages > 1 ? `, page ${page + 1} of ${pages}` : "";
    $("status").textContent = `${shown.length.toLocaleString("en")}${some} sentences${place}`;
    $("previous").disabled = page === 0;
    $("next").disabled = page === pages - 1;
    active = null;
  }

  function turn(step) {
    const before = page;
    page += step;
    draw();
    if (page !== before) list.scrollIntoView();
  }

  // ------------------------------------------------------------ attention

  let active = null;

  function clear() {
    if (!active) return;
    for (const word of active.closest("article").querySelectorAll(".w")) {
      word.classList.remove("lit", "strong", "active");
      word.style.removeProperty("--weight");
      delete word.dataset.share;
    }
    active = null;
  }

  function light(word, share) {
    word.style.setProperty("--weight", share.toFixed(3));
    word.classList.toggle("lit", share >= 0.02);
    word.classList.toggle("strong", share > 0.55);
    if (share >= 0.05) word.dataset.share = `${Math.round(share * 100)}`;
  }

  // The source as this system splits it; systems may split it differently.
  function sourceLine(card, row, system) {
    const line = card.querySelector('[data-kind="source"]');
    const words = sourceWords(row, system);
    if (line.children.length === words.length && [...line.children].every((word, place) =>
      word.textContent.trim() === words[place].trim())) return line;
    const made = wordLine(words, "source", system, true, list.dataset.sourceLang);
    line.replaceWith(made);
    return made;
  }

  function show(word, aloud) {
    if (word === active) return;
    clear();
    const card = word.closest("article");
    const line = word.closest(".words");
    if (!card || !line || !line.dataset.kind) return;
    const row = Number(card.dataset.row);
    const system = Number(line.dataset.system);
    const place = Number(word.dataset.place);
    const shares = [];
    if (line.dataset.kind === "target") {
      if (!attends(row, system)) return;
      for (const [source, other] of [...sourceLine(card, row, system).children].entries()) {
        const share = weight(row, system, place, source);
        light(other, share);
        shares.push([share, other.textContent]);
      }
    } else {
      for (const other of card.querySelectorAll('[data-kind="target"]')) {
        const theirs = Number(other.dataset.system);
        const same = sourceWords(row, theirs).length === line.children.length;
        if (!attends(row, theirs) || !same) continue;
        for (const [target, one] of [...other.children].entries()) {
          const share = weight(row, theirs, target, place);
          light(one, share);
          shares.push([share, one.textContent]);
        }
      }
    }
    active = word;
    word.classList.add("active");
    if (aloud) {
      const strongest = shares.filter(([share]) => share >= 0.05).sort((a, b) => b[0] - a[0]).slice(0, 4);
      const verb = line.dataset.kind === "target" ? "attends to" : "is attended by";
      $("spoken").textContent = `${word.textContent} ${verb} ` +
        (strongest.map(([share, text]) => `${text} ${Math.round(share * 100)} %`).join(", ") || "nothing in particular");
    }
  }

  function toggleMap(button) {
    const card = button.closest("article");
    const system = Number(button.dataset.system);
    const holder = button.closest(".row");
    const open = holder.querySelector(".map");
    button.setAttribute("aria-expanded", String(!open));
    if (open) {
      open.remove();
      return;
    }
    const row = Number(card.dataset.row);
    const source = sourceWords(row, system);
    const map = element("div", "map");
    const table = element("table");
    table.dir = rightToLeft.test(source.join("")) ? "rtl" : "ltr";
    const head = table.createTHead().insertRow();
    head.append(element("td"));
    for (const word of source) head.append(element("th", "", word.trim()));
    const body = table.createTBody();
    systems[system].target[row].forEach((word, target) => {
      const line = body.insertRow();
      line.append(element("th", "", word.trim()));
      source.forEach((_, place) => {
        const share = weight(row, system, target, place);
        const cell = line.insertCell();
        cell.style.setProperty("--weight", share.toFixed(3));
        if (share > 0.55) cell.className = "strong";
        if (share >= 0.05) cell.textContent = Math.round(share * 100);
      });
    });
    map.append(table);
    holder.append(map);
  }

  // ------------------------------------------------------------ input

  list.addEventListener("mouseover", (event) => {
    const word = event.target.closest(".w");
    if (word) show(word, false);
  });
  list.addEventListener("mouseleave", () => {
    if (!list.contains(document.activeElement) || !document.activeElement.matches(".w")) clear();
  });
  list.addEventListener("focusin", (event) => {
    if (event.target.matches(".w")) show(event.target, true);
  });
  list.addEventListener("click", (event) => {
    if (event.target.matches(".facts button")) toggleMap(event.target);
    else if (event.target.matches(".w")) event.target.focus();
  });

  function moveWord(word, key) {
    const line = word.closest(".words");
    const forward = (getComputedStyle(line).direction === "rtl") !== (key === "ArrowRight");
    let next = null;
    if (key === "ArrowLeft" || key === "ArrowRight") {
      next = line.children[Number(word.dataset.place) + (forward ? 1 : -1)];
    } else if (key === "Home") {
      next = line.firstElementChild;
    } else if (key === "End") {
      next = line.lastElementChild;
    } else {
      const lines = [...word.closest("article").querySelectorAll(".words")].filter((one) => one.querySelector("[tabindex]"));
      const other = lines[lines.indexOf(line) + (key === "ArrowDown" ? 1 : -1)];
      next = other && other.children[Math.min(Number(word.dataset.place), other.children.length - 1)];
    }
    if (!next) return;
    for (const one of next.closest(".words").children) one.tabIndex = one === next ? 0 : -1;
    next.focus();
  }

  function moveSentence(step) {
    const cards = [...list.querySelectorAll("article")];
    const here = cards.indexOf(document.activeElement.closest("article"));
    const card = cards[here < 0 ? 0 : here + step];
    if (card) {
      (card.querySelector('.translation [tabindex="0"].w') || card).focus();
      card.scrollIntoView({ block: "nearest" });
    }
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.matches("input, select, textarea");
    if (event.key === "Escape") {
      clear();
      if (typing) event.target.blur();
      return;
    }
    if (typing) return;
    const arrows = ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"];
    if (event.target.matches(".w") && arrows.includes(event.key)) moveWord(event.target, event.key);
    else if (event.key === "/") $("query").focus();
    else if (event.key === "j") moveSentence(1);
    else if (event.key === "k") moveSentence(-1);
    else if (event.key === "n") turn(1);
    else if (event.key === "p") turn(-1);
    else if (event.key === "m") {
      const card = event.target.closest("article");
      for (const button of card ? card.querySelectorAll(".facts button") : []) toggleMap(button);
    } else return;
    event.preventDefault();
  });

  let waiting = 0;
  $("controls").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(select, 80);
  });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("controls").addEventListener("reset", () => {
    press(false);
    setTimeout(select);
  });
  function press(down) {
    $("direction").setAttribute("aria-pressed", String(down));
    $("direction").textContent = down ? "highest first" : "lowest first";
  }
  $("direction").addEventListener("click", () => {
    press($("direction").getAttribute("aria-pressed") !== "true");
    select();
  });
  $("previous").addEventListener("click", () => turn(-1));
  $("next").addEventListener("click", () => turn(1));

  // ------------------------------------------------------------ start

  async function start() {
    document.body.classList.toggle("several-systems", systems.length > 1);
    for (const option of systems.length < 2 ? document.querySelectorAll("option.several") : []) option.remove();
    await Promise.all(systems.map(async (system) => {
      if (!system.attention) return;
      if (typeof DecompressionStream === "undefined") {
        $("spoken").textContent = "This browser is too old to show attention.";
        return;
      }
      system.weights = await unpack(system.attention);
      if (system.weights.length !== system.size) throw new Error("the page's attention does not fit its words");
    }));
    select();
    document.documentElement.dataset.ready = "true";
  }
  start();
})();
