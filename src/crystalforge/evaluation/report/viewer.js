// A crystal on a canvas: atoms as shaded spheres, bonds, the unit cell. No WebGL, so that a page can hold dozens of
// them, on any device and in print. Rotates with the mouse, a finger or the arrow keys; + and - zoom, 0 resets.
"use strict";

const BOND_SLACK = 1.18; // times the sum of the covalent radii (Cordero et al. 2008)
const IMAGE_EDGE = 0.02; // fractional; atoms this close to a face are drawn on the opposite face too
const MOST_ATOMS = 600; // drawn at most; larger cells lose the repeated atoms on their faces
const FIRST = [-0.55, -Math.PI / 2]; // radians about the vertical and the horizontal: c points up, seen from a little above
const BALL = 0.42; // Å per square root of the covalent radius: atoms are drawn small, so that one sees past them

class CrystalView {
  constructor(canvas, crystal, elements) {
    this.canvas = canvas;
    this.elements = elements;
    this.build(crystal);
    this.reset();
    canvas.tabIndex = 0;
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label",
      `Crystal structure of ${crystal.formula}, space group ${crystal.symbol}. Arrow keys rotate, plus and minus zoom.`);
    this.listen();
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  build(crystal) {
    const cell = [crystal.lattice.slice(0, 3), crystal.lattice.slice(3, 6), crystal.lattice.slice(6, 9)];
    const place = f => [0, 1, 2].map(k => f[0] * cell[0][k] + f[1] * cell[1][k] + f[2] * cell[2][k]);
    const middle = place([0.5, 0.5, 0.5]);
    const centred = f => place(f).map((x, k) => x - middle[k]);
    const atoms = [];
    const add = (z, f) => atoms.push({ z, at: centred(f), style: this.elements[z] });
    const faces = crystal.numbers.length * 8 <= MOST_ATOMS || crystal.numbers.length <= 60;
    crystal.numbers.forEach((z, i) => {
      const f = [0, 1, 2].map(k => { const x = crystal.frac[3 * i + k]; return x - Math.floor(x + 1e-6); });
      const shifts = f.map(x => !faces ? [0] : x < IMAGE_EDGE ? [0, 1] : x > 1 - IMAGE_EDGE ? [0, -1] : [0]);
      for (const a of shifts[0]) for (const b of shifts[1]) for (const c of shifts[2])
        add(z, [f[0] + a, f[1] + b, f[2] + c]);
    });
    this.atoms = atoms;
    // Between two metals there are bonds only where there is nothing else: lines from Sr to Ti would hide the oxygen.
    const onlyMetals = crystal.numbers.every(z => this.elements[z].metal);
    this.bonds = [];
    let size = BALL; // smaller where atoms are too close for it
    for (let i = 0; i < atoms.length; i++) for (let j = i + 1; j < atoms.length; j++) {
      const p = atoms[i], q = atoms[j];
      const d = Math.hypot(p.at[0] - q.at[0], p.at[1] - q.at[1], p.at[2] - q.at[2]);
      if (d > 0.1) size = Math.min(size, 0.7 * d / (Math.sqrt(p.style.radius) + Math.sqrt(q.style.radius)));
      if (!onlyMetals && p.style.metal && q.style.metal) continue;
      if (d > 0.4 && d < BOND_SLACK * (p.style.radius + q.style.radius)) this.bonds.push([i, j]);
    }
    for (const atom of atoms) atom.radius = size * Math.sqrt(atom.style.radius);
    const corner = k => centred([k & 1, (k >> 1) & 1, (k >> 2) & 1]);
    this.edges = [];
    for (let k = 0; k < 8; k++) for (const bit of [1, 2, 4]) if (!(k & bit)) this.edges.push([corner(k), corner(k | bit)]);
    this.pieces = []; // of the edges: short, so that they pass behind atoms, and none inside an atom
    for (const [from, to] of this.edges) {
      const count = Math.min(48, Math.ceil(4 * Math.hypot(...from.map((x, k) => x - to[k]))));
      for (let s = 0; s < count; s++) {
        const [p, q] = [between(from, to, s / count), between(from, to, (s + 1) / count)];
        const inside = atom => Math.hypot(...[0, 1, 2].map(k => (p[k] + q[k]) / 2 - atom.at[k])) < 0.97 * atom.radius;
        if (!atoms.some(inside)) this.pieces.push([p, q]);
      }
    }
    this.axes = [1, 2, 4].map(bit => corner(bit)); // the ends of a, b and c
    this.extent = Math.max(2, ...atoms.map(a => Math.hypot(...a.at) + a.radius), ...this.edges.map(e => 1.06 * Math.hypot(...e[0])));
  }

  reset() {
    this.turn = [1, 0, 0, 0, 1, 0, 0, 0, 1]; // rotation matrix by rows
    this.zoom = 1;
    this.rotate(0, FIRST[1]);
    this.rotate(FIRST[0], 0);
    this.rotate(0, 0.3);
  }

  // Rotate by dx about the screen's vertical and by dy about its horizontal axis, in radians.
  rotate(dx, dy) {
    const [c, s, d, t] = [Math.cos(dx), Math.sin(dx), Math.cos(dy), Math.sin(dy)];
    const step = [c, 0, s, t * s, d, -t * c, -d * s, t, d * c];
    const old = this.turn, turned = [];
    for (let i = 0; i < 3; i++) for (let j = 0; j < 3; j++)
      turned.push(step[3 * i] * old[j] + step[3 * i + 1] * old[3 + j] + step[3 * i + 2] * old[6 + j]);
    this.turn = turned;
  }

  listen() {
    const canvas = this.canvas, fingers = new Map();
    const apart = () => { const [p, q] = [...fingers.values()]; return Math.hypot(p[0] - q[0], p[1] - q[1]); };
    canvas.addEventListener("pointerdown", event => {
      canvas.setPointerCapture(event.pointerId);
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
    });
    canvas.addEventListener("pointermove", event => {
      if (!fingers.has(event.pointerId)) return;
      const before = fingers.get(event.pointerId), gap = fingers.size === 2 ? apart() : 0;
      fingers.set(event.pointerId, [event.clientX, event.clientY]);
      if (fingers.size === 2) this.scale(apart() / Math.max(gap, 1));
      else this.rotate((event.clientX - before[0]) * 0.011, (event.clientY - before[1]) * 0.011);
      this.draw();
    });
    for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, event => fingers.delete(event.pointerId));
    canvas.addEventListener("wheel", event => {
      if (document.activeElement !== canvas && !event.ctrlKey) return; // the page scrolls until the view has focus
      event.preventDefault();
      this.scale(Math.exp(-event.deltaY * 0.0012));
      this.draw();
    }, { passive: false });
    const keys = {
      ArrowLeft: () => this.rotate(-0.15, 0), ArrowRight: () => this.rotate(0.15, 0),
      ArrowUp: () => this.rotate(0, -0.15), ArrowDown: () => this.rotate(0, 0.15),
      "+": () => this.scale(1.15), "=": () => this.scale(1.15), "-": () => this.scale(1 / 1.15), "0": () => this.reset(),
    };
    canvas.addEventListener("keydown", event => {
      if (!keys[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      keys[event.key]();
      this.draw();
    });
  }

  scale(factor) { this.zoom = Math.min(6, Math.max(0.4, this.zoom * factor)); }

  draw() {
    const canvas = this.canvas, density = Math.min(window.devicePixelRatio || 1, 2);
    const width = canvas.clientWidth, height = canvas.clientHeight;
    if (!width || !height) return;
    canvas.width = Math.round(width * density);
    canvas.height = Math.round(height * density);
    const pen = canvas.getContext("2d");
    pen.setTransform(density, 0, 0, density, 0, 0);
    pen.clearRect(0, 0, width, height);
    const unit = 0.46 * Math.min(width, height) / this.extent * this.zoom, far = 3.4 * this.extent, t = this.turn;
    const project = ([x, y, z]) => {
      const u = t[0] * x + t[1] * y + t[2] * z, v = t[3] * x + t[4] * y + t[5] * z, w = t[6] * x + t[7] * y + t[8] * z;
      const near = far / (far - w); // mild perspective
      return { x: width / 2 + u * unit * near, y: height / 2 - v * unit * near, w, k: unit * near };
    };
    const fog = w => Math.max(0, Math.min(0.55, 0.28 - 0.3 * w / this.extent)); // the far side fades into the paper
    const points = this.atoms.map(atom => project(atom.at));
    const things = [];
    const line = (p, q, wide, color, dash) => things.push({ w: (p.w + q.w) / 2 - 0.02, draw: () => {
      pen.lineWidth = wide; pen.strokeStyle = color; pen.setLineDash(dash || []);
      pen.beginPath(); pen.moveTo(p.x, p.y); pen.lineTo(q.x, q.y); pen.stroke();
    } });
    for (const [from, to] of this.pieces) {
      const [p, q] = [project(from), project(to)];
      line(p, q, 1.1, `rgba(70,84,98,${0.75 - fog((p.w + q.w) / 2)})`);
    }
    for (const [i, j] of this.bonds) {
      const p = this.atoms[i], q = this.atoms[j], m = project(between(p.at, q.at, 0.5));
      const long = Math.hypot(p.at[0] - q.at[0], p.at[1] - q.at[1], p.at[2] - q.at[2]);
      for (const [atom, other] of [[p, q], [q, p]]) { // each half from just inside its atom's surface to the middle
        const end = project(between(atom.at, other.at, Math.min(0.5, 0.85 * atom.radius / long)));
        line(end, m, Math.max(1.5, 0.12 * m.k), shade(atom.style.color, -0.12, fog((end.w + m.w) / 2)));
      }
    }
    this.atoms.forEach((atom, i) => things.push({ w: points[i].w, draw: () => {
      const p = points[i], r = Math.max(2, atom.radius * p.k), f = fog(p.w);
      const light = pen.createRadialGradient(p.x - 0.35 * r, p.y - 0.4 * r, 0.05 * r, p.x, p.y, r);
      light.addColorStop(0, shade(atom.style.color, 0.72, f));
      light.addColorStop(0.45, shade(atom.style.color, 0.05, f));
      light.addColorStop(1, shade(atom.style.color, -0.42, f));
      pen.setLineDash([]);
      pen.fillStyle = light;
      pen.beginPath(); pen.arc(p.x, p.y, r, 0, 2 * Math.PI); pen.fill();
      pen.lineWidth = 0.6; pen.strokeStyle = shade(atom.style.color, -0.6, f); pen.stroke();
    } }));
    things.sort((p, q) => p.w - q.w).forEach(thing => thing.draw());
    pen.font = "600 12px system-ui, sans-serif"; pen.fillStyle = "#52606d"; pen.textAlign = "center"; pen.textBaseline = "middle";
    pen.lineWidth = 4; pen.strokeStyle = "rgba(245,247,249,0.9)"; pen.setLineDash([]);
    this.axes.forEach((end, k) => {
      const origin = this.edges[0][0], long = Math.hypot(...end.map((x, i) => x - origin[i]));
      const p = project(end.map((x, i) => x + 0.09 * this.extent * (x - origin[i]) / long));
      pen.strokeText("abc"[k], p.x, p.y);
      pen.fillText("abc"[k], p.x, p.y);
    });
  }
}

// The point at the fraction s of the way from p to q.
function between(p, q, s) { return p.map((x, k) => x + s * (q[k] - x)); }

// An RGB colour made lighter (amount > 0) or darker, then mixed with the background by `fog`.
function shade([r, g, b], amount, fog) {
  const mix = x => {
    const lit = amount > 0 ? x + (255 - x) * amount : x * (1 + amount);
    return Math.round(lit + (246 - lit) * fog);
  };
  return `rgb(${mix(r)},${mix(g)},${mix(b)})`;
}
