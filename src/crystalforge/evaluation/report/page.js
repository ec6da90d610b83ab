// Draws the figures, the gallery and the list of candidates from the page's own data.
"use strict";

(() => {
  const data = JSON.parse(document.getElementById("report-data").textContent);
  const { candidates, elements, figures, gallery } = data;
  const byId = new Map(candidates.map(c => [c.id, c]));
  const PAGE = matchMedia("(max-width: 46rem)").matches ? 8 : 25; // rows shown at a time

  const make = (tag, attributes = {}, ...children) => {
    const node = document.createElement(tag);
    for (const [key, value] of Object.entries(attributes)) {
      if (key === "class") node.className = value;
      else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else node.setAttribute(key, value);
    }
    node.append(...children.filter(child => child !== null));
    return node;
  };
  const number = (x, digits = 3) => x === null ? "–" : x.toFixed(digits).replace("-", "\u2212");
  const hull = () => ["E", make("sub", {}, "hull")];
  const subscripted = formula => formula.split(/(\d+(?:\.\d+)?)/).map((part, k) => k % 2 ? make("sub", {}, part) : part);

  // ---- figures

  const narrow = matchMedia("(max-width: 46rem)").matches;
  for (const [id, figure] of Object.entries(figures)) {
    const place = document.getElementById(id);
    if (narrow && id.startsWith("figure-elements")) { // eighteen columns need every pixel of a phone
      figure.data[1].showscale = false;
      Object.assign(figure.layout, { height: 220, font: { ...figure.layout.font, size: 8 } });
      place.style.minHeight = "220px";
    }
    Plotly.newPlot(place, figure.data, figure.layout, { responsive: true, displaylogo: false, displayModeBar: "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] });
  }

  // ---- files

  const save = (name, type, text) => {
    const url = URL.createObjectURL(new Blob([text], { type }));
    const link = make("a", { href: url, download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  };
  const saveCif = c => save(`${c.file}.cif`, "chemical/x-cif", c.cif);

  // ---- three-dimensional views

  const badges = c => [["S.U.N.", c.sun], ["stable", c.stable && !c.sun], ["novel", c.novel && !c.sun], ["valid", c.valid]]
    .filter(([, yes]) => yes).map(([text]) => make("span", { class: `badge${text === "S.U.N." ? " yes" : ""}` }, text));
  // What speaks against a crystal: a badge with how grave it is and how many; the sentences are in the details.
  const grave = c => ["red", "warning"].flatMap(level => {
    const found = c.flags.filter(flag => flag.level === level);
    return found.length ? [make("span", { class: `badge${level === "red" ? " no" : " warn"}`, title: found.map(flag => flag.text).join("\n") },
      found.map(flag => flag.name).join(", "))] : [];
  });
  const spaced = nodes => nodes.flatMap((node, k) => k ? [" ", node] : [node]);
  const nearest = c => c.nearest ? [...subscripted(c.nearest.formula), ` (${c.nearest.id})`] : ["none"];

  const dialog = document.getElementById("viewer");
  const open = c => {
    const canvas = make("canvas");
    const kinds = [...new Set(c.numbers)].map(z => make("li", {},
      make("i", { style: `background:rgb(${elements[z].color})` }), elements[z].name));
    const facts = [["Space group", `${c.symbol} (${c.group})`], ["Energy above hull", `${number(c.energy)} eV/atom`],
      ...(c.heldOut === null ? [] : [["Held-out potential", `${number(c.heldOut)} eV/atom`]]),
      ...(c.relaxed === null ? [] : [["Relaxed", `${number(c.relaxed)} eV/atom`]]),
      ...(c.rmsd === null ? [] : [["Moved by relaxing", `${number(c.rmsd, 2)} Å`]]),
      ...(c.gap === null ? [] : [["Band gap", `${number(c.gap, 2)} eV`]]),
      ...(c.constant === null ? [] : [["Dielectric constant", number(c.constant, 1)]]),
      ...(c.reward === null ? [] : [["Reward", number(c.reward)]]), ["Log-probability", `${number(c.logProb, 1)} nats`],
      ["Atoms scored", String(c.atoms)], ["Sample", c.id]];
    document.getElementById("viewer-body").replaceChildren(make("div", { class: "detail" }, canvas, make("div", {},
      make("h2", { id: "viewer-title" }, ...subscripted(c.formula)),
      make("p", {}, ...spaced(badges(c))),
      make("ul", { class: "legend" }, ...kinds),
      make("ul", {}, ...c.why.map(reason => make("li", {}, reason))),
      ...(c.flags.length ? [make("ul", { class: "flags" }, ...c.flags.map(flag => make("li", { class: flag.level }, flag.text)))] : []),
      make("dl", {}, ...facts.flatMap(([key, value]) => [make("dt", {}, key), make("dd", {}, value)]),
        make("dt", {}, "Nearest known"), make("dd", {}, ...nearest(c), make("div", { class: "hint" }, c.nearest ? c.nearest.text : ""))),
      make("p", { class: "hint" }, "Drag or use the arrow keys to rotate; scroll, pinch or + and − to zoom; 0 resets."),
      make("div", { class: "actions" }, make("button", { type: "button", onclick: () => saveCif(c) }, "Download CIF")))));
    dialog.showModal();
    new CrystalView(canvas, c, elements).draw();
    canvas.focus({ preventScroll: true });
  };
  dialog.addEventListener("click", event => { if (event.target === dialog) dialog.close(); });

  const shelf = document.getElementById("gallery");
  for (const id of gallery) {
    const c = byId.get(id), canvas = make("canvas");
    shelf.append(make("li", { class: "card" }, canvas, make("div", { class: "card-body" },
      make("h3", {}, ...subscripted(c.formula), " ", make("span", {}, c.symbol)),
      make("p", {}, ...hull(), ` ${number(c.energy)} eV/atom`),
      ...(grave(c).length ? [make("p", { class: "grave" }, ...spaced(grave(c)))] : []),
      make("p", { class: "near" }, ...(c.nearest ? ["Nearest known: ", ...nearest(c), `, ${c.nearest.text}`] : ["No known crystal to compare with"])),
      make("div", { class: "actions" },
        make("button", { type: "button", onclick: () => open(c), "aria-label": `Details of ${c.formula}` }, "Details"),
        make("button", { type: "button", onclick: () => saveCif(c), "aria-label": `Download ${c.formula} as CIF` }, "CIF")))));
    new CrystalView(canvas, c, elements);
  }

  // ---- candidates

  const judges = data.judges || [];
  const wide = judges.length > 0 || candidates.some(c => c.relaxed !== null || c.gap !== null); // so many columns that some must go
  const columns = [
    { name: "Formula", key: c => c.formula, head: true,
      show: c => [...subscripted(c.formula), ...(wide && !judges.length ? [make("small", {}, ` ${c.label}`)] : [])] },
    { name: "Space group", key: c => c.group, show: c => [c.symbol, make("small", {}, ` ${c.group}`)] },
    { name: "E_hull", title: hull, key: c => c.energy, show: c => [number(c.energy)], numeric: true },
    ...(candidates.some(c => c.heldOut !== null)
      ? [{ name: "Held-out", key: c => c.heldOut, show: c => [number(c.heldOut)], numeric: true }] : []),
    ...judges.map((name, k) => ({ name, key: c => c.opinions[k], show: c => [number(c.opinions[k])], numeric: true })),
    ...[["Relaxed", "relaxed", 3], ["Gap (eV)", "gap", 2], ["ε", "constant", 1]]
      .filter(([, key]) => candidates.some(c => c[key] !== null))
      .map(([name, key, digits]) => ({ name, key: c => c[key], show: c => [number(c[key], digits)], numeric: true })),
    ...(candidates.some(c => c.reward !== null) ? [{ name: "Reward", key: c => c.reward, show: c => [number(c.reward)], numeric: true }] : []),
    ...(wide ? [] : [{ name: "Atoms", key: c => c.atoms, show: c => [String(c.atoms)], numeric: true }]),
    { name: "Verdict", key: c => -(8 * c.sun + 4 * c.stable + 2 * c.novel + c.valid), show: c => spaced(badges(c)) },
    ...(candidates.some(c => c.flags.length) ? [{ name: "Flags", key: c => c.flags.filter(f => f.level === "red").length * 100 + c.flags.filter(f => f.level === "warning").length,
      show: c => grave(c).length ? spaced(grave(c)) : ["none"] }] : []),
    { name: "Nearest known", key: c => c.nearest ? c.nearest.formula : "", show: c => [...(judges.length && c.nearest ? subscripted(c.nearest.formula) : nearest(c)), make("small", {}, ` ${c.nearest ? c.nearest.text : ""}`)] },
    ...(wide ? [] : [{ name: "Model", key: c => c.label, show: c => [c.label] }]),
  ];
  document.getElementById("candidates").classList.toggle("dense", wide);
  const table = document.getElementById("candidates"), body = table.querySelector("tbody");
  const controls = document.getElementById("filters").elements;
  let sorting = null, page = 0;

  const heads = columns.map((column, k) => {
    const head = make("th", { scope: "col" }, make("button", { type: "button", onclick: () => sortBy(k) }, ...(column.title ? column.title() : [column.name])));
    if (column.numeric) head.className = "number";
    table.querySelector("thead tr").append(head);
    return head;
  });
  table.querySelector("thead tr").append(make("th", { scope: "col" }, make("span", {}, "Files")));
  const labels = new Set(candidates.map(c => c.label));
  for (const label of labels) controls.model.append(make("option", { value: label }, label));
  controls.model.closest("label").hidden = labels.size < 2;

  columns.forEach((column, k) => ["", "−"].forEach(sign => controls.sort.append(
    make("option", { value: `${sign}${k}` }, `${column.name} ${sign ? "↓" : "↑"}`))));
  const sortBy = k => sort({ k, down: sorting && sorting.k === k ? !sorting.down : false });
  const sort = order => {
    sorting = order;
    controls.sort.value = order ? `${order.down ? "−" : ""}${order.k}` : "";
    heads.forEach((head, i) => order && i === order.k ? head.setAttribute("aria-sort", order.down ? "descending" : "ascending") : head.removeAttribute("aria-sort"));
    page = 0;
    show();
  };
  // Words that are element symbols must all be in the crystal; any other word may be anywhere in the row's text.
  const symbols = new Map(Object.entries(elements).map(([z, e]) => [e.symbol, Number(z)]));
  const matches = (c, words) => words.every(word => symbols.has(word) ? c.numbers.includes(symbols.get(word))
    : `${c.formula} ${c.symbol} ${c.group} ${c.id} ${c.nearest ? `${c.nearest.formula} ${c.nearest.id} ${c.nearest.kind}` : ""}`.toLowerCase().includes(word.toLowerCase()));
  const chosen = () => {
    const words = controls.search.value.trim().split(/[\s,]+/).filter(Boolean);
    const most = controls.most.value === "" ? Infinity : Number(controls.most.value);
    const rows = candidates.filter(c => (!controls.model.value || c.label === controls.model.value)
      && ["sun", "stable", "novel", "valid"].every(flag => !controls[flag].checked || c[flag])
      && (!controls.unflagged.checked || !c.flags.some(flag => flag.level === "red"))
      && (most === Infinity || (c.energy !== null && c.energy <= most)) && matches(c, words));
    if (!sorting) return rows;
    const { key } = columns[sorting.k], sign = sorting.down ? -1 : 1;
    return rows.map((c, k) => [key(c), k, c]).sort(([p, i], [q, j]) => {
      if (p === null || q === null) return (p === null) - (q === null) || i - j; // unknown values last, either way
      return sign * (typeof p === "string" ? p.localeCompare(q) : p - q) || i - j;
    }).map(([, , c]) => c);
  };
  const show = () => {
    const rows = chosen(), pages = Math.max(1, Math.ceil(rows.length / PAGE));
    page = Math.min(page, pages - 1);
    body.replaceChildren(...rows.slice(page * PAGE, (page + 1) * PAGE).map(c => make("tr", { "data-id": c.id },
      ...columns.map(column => make(column.head ? "th" : "td",
        { ...(column.head ? { scope: "row" } : { "data-label": column.name }), ...(column.numeric ? { class: "number" } : {}) }, make("span", {}, ...column.show(c)))),
      make("td", { "data-label": "Files", class: "files" }, make("span", {}, make("button", { type: "button", onclick: () => open(c), "aria-label": `View ${c.formula}` }, "View"), " ",
        make("button", { type: "button", onclick: () => saveCif(c), "aria-label": `Download ${c.formula} as CIF` }, "CIF"))))));
    document.getElementById("count").textContent = rows.length < candidates.length
      ? `${rows.length} of ${candidates.length} candidates` : rows.length === 1 ? "1 candidate" : `${rows.length} candidates`;
    document.getElementById("page").textContent = `page ${page + 1} of ${pages}`;
    document.getElementById("previous").disabled = page === 0;
    document.getElementById("next").disabled = page === pages - 1;
  };
  controls.sort.addEventListener("change", () => {
    const value = controls.sort.value;
    sort(value === "" ? null : { k: Number(value.replace("−", "")), down: value.startsWith("−") });
  });
  document.getElementById("filters").addEventListener("input", () => { page = 0; show(); });
  document.getElementById("filters").addEventListener("submit", event => event.preventDefault());
  document.getElementById("previous").addEventListener("click", () => { page--; show(); });
  document.getElementById("next").addEventListener("click", () => { page++; show(); });
  document.getElementById("all-cif").addEventListener("click", () => save("candidates.cif", "chemical/x-cif",
    chosen().map(c => c.cif.replace(/^data_.*$/m, `data_${c.file}`)).join("\n")));
  document.getElementById("all-csv").addEventListener("click", () => {
    const fields = ["id", "formula", "group", "energy", "heldOut", "relaxed", "rmsd", "gap", "constant", "reward", "logProb", "atoms", "stable", "novel", "sun", "valid"];
    const flagged = c => c.flags.filter(flag => flag.level !== "note").map(flag => flag.name).join(" ");
    const cell = x => x === null ? "" : /[",\n]/.test(String(x)) ? `"${String(x).replaceAll('"', '""')}"` : String(x);
    save("candidates.csv", "text/csv", [[...fields, "nearest", "flags"].join(","),
      ...chosen().map(c => [...fields.map(f => cell(c[f])), cell(c.nearest ? c.nearest.id : null), cell(flagged(c))].join(","))].join("\n"));
  });
  show();
})();
