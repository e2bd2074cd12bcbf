"use strict";
// The views of a report: one set of outlines, drawn flat as a map or put up to its heights. No library, no network.

const UNKNOWN = [130, 130, 130];
const PICKED = [0, 229, 255];
const GROUND_COLOUR = [208, 208, 204];
const TINT_WIDTH = 1024;
const FIELD_OF_VIEW = 0.6; // radians from the lower to the upper edge
const NOTHING = 0xffffffff;
const SLOW_MS = 120;
const FAR_M = 3; // metres per pixel
const UNKNOWN_HEIGHT_M = 0.3; // flat, but not in the ground

function bytes(text) {
  const raw = atob(text), out = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) out[i] = raw.charCodeAt(i);
  return out;
}
const floats = (text) => new Float32Array(bytes(text).buffer);
const wholes = (text) => new Uint32Array(bytes(text).buffer);

// ---- colours ----

function colourAt(stops, t) {
  const at = Math.min(Math.max(t, 0), 1) * (stops.length - 1), i = Math.min(Math.floor(at), stops.length - 2), f = at - i;
  return [0, 1, 2].map((c) => Math.round(stops[i][c] * (1 - f) + stops[i + 1][c] * f));
}

function colourOf(mode, value) {
  if (!Number.isFinite(value)) return UNKNOWN;
  if (mode.categories) return mode.categories[value].colour;
  return colourAt(mode.stops, (value - mode.low) / (mode.high - mode.low));
}

const css = (c) => `rgb(${c[0]},${c[1]},${c[2]})`;

function element(tag, text, className) {
  const e = document.createElement(tag);
  if (text !== undefined) e.textContent = text;
  if (className) e.className = className;
  return e;
}

function drawLegend(holder, mode) {
  holder.replaceChildren(element("span", mode.unit ? `${mode.label} (${mode.unit})` : mode.label, "legend-title"));
  const swatch = (colour, label) => {
    const box = element("span", undefined, "swatch");
    box.style.background = css(colour);
    holder.append(box, element("span", label, "swatch-label"));
  };
  if (mode.categories) mode.categories.forEach((c) => swatch(c.colour, c.label));
  else {
    const bar = element("span", undefined, "bar");
    bar.style.background = `linear-gradient(to right, ${mode.stops.map(css).join(",")})`;
    const number = (v) => String(Math.round(v * 100) / 100).replace("-", "−");
    holder.append(element("span", (mode.open_low ? "≤ " : "") + number(mode.low)), bar,
      element("span", (mode.open_high ? "≥ " : "") + number(mode.high)));
  }
  if (mode.unknown) swatch(UNKNOWN, `unknown: ${mode.unknown}`);
  swatch(PICKED, "chosen");
}

// ---- geometry: walls and roofs share their corners, the shader makes the faces flat ----

function buildMesh(shapes, heights, flat) {
  const { xy, ringSize, ringOwner, triangles } = shapes;
  const n = xy.length / 2, levels = flat ? 1 : 2;
  const position = new Float32Array(n * levels * 3), owner = new Uint32Array(n * levels);
  const isKnown = (b) => Number.isFinite(heights[b]);
  let walls = 0;
  ringOwner.forEach((b, r) => { if (!flat && isKnown(b)) walls += ringSize[r]; });
  const faces = new Uint32Array(triangles.length + walls * 6);
  const edges = new Uint32Array(n * 2 + walls * 2);
  // Roofs first: alone they are what a slow machine draws while the view moves.
  faces.set(triangles);
  let start = 0, f = triangles.length, e = 0;
  ringOwner.forEach((b, r) => {
    const size = ringSize[r], top = flat ? 0 : isKnown(b) ? heights[b] : UNKNOWN_HEIGHT_M;
    for (let k = 0; k < size; k++) {
      const i = start + k, j = start + (k + 1) % size;
      position[3 * i] = xy[2 * i]; position[3 * i + 1] = xy[2 * i + 1]; position[3 * i + 2] = top;
      owner[i] = b;
      edges[e++] = i; edges[e++] = j;
      if (flat) continue;
      position[3 * (n + i)] = xy[2 * i]; position[3 * (n + i) + 1] = xy[2 * i + 1];
      owner[n + i] = b;
      if (!isKnown(b)) continue;
      faces[f++] = i; faces[f++] = j; faces[f++] = n + j;
      faces[f++] = i; faces[f++] = n + j; faces[f++] = n + i;
      edges[e++] = i; edges[e++] = n + i;
    }
    start += size;
  });
  return { position, owner, faces, edges: edges.subarray(0, e), roofs: triangles.length };
}

// ---- 4 x 4 matrices, column by column ----

function product(a, b) {
  const out = new Float32Array(16);
  for (let c = 0; c < 4; c++) for (let r = 0; r < 4; r++)
    for (let k = 0; k < 4; k++) out[4 * c + r] += a[4 * k + r] * b[4 * c + k];
  return out;
}

const VERTEX = `#version 300 es
precision highp float; precision highp int; precision highp sampler2D;
layout(location = 0) in vec3 position; layout(location = 1) in uint owner;
uniform mat4 camera; uniform vec3 target; uniform sampler2D tint; uniform uint picked; uniform vec3 pickedColour;
out vec3 place; flat out vec3 colour; flat out uint building;
void main() {
  place = position - target; building = owner;
  colour = owner == picked ? pickedColour : texelFetch(tint, ivec2(owner % ${TINT_WIDTH}u, owner / ${TINT_WIDTH}u), 0).rgb;
  gl_Position = camera * vec4(place, 1.0);
}`;
const FACES = `#version 300 es
precision highp float; precision highp int;
in vec3 place; flat in vec3 colour; flat in uint building;
uniform float shade, alpha; uniform uint picked; out vec4 pixel;
void main() {
  vec3 normal = normalize(cross(dFdx(place), dFdy(place)));
  float light = abs(normal.z) > 0.7 ? 1.0 : 0.62 + 0.2 * abs(dot(normal.xy, vec2(0.53, 0.85)));
  pixel = vec4(colour * mix(1.0, light, shade), building == picked ? 0.9 : alpha);
}`;
const LINES = `#version 300 es
precision highp float; precision highp int;
in vec3 place; flat in vec3 colour; flat in uint building;
uniform float darken; out vec4 pixel;
void main() { pixel = vec4(colour * darken, 1.0); }`;
const NUMBERS = `#version 300 es
precision highp float; precision highp int;
in vec3 place; flat in vec3 colour; flat in uint building; out vec4 pixel;
void main() {
  uint v = building + 1u;
  pixel = vec4(float(v & 255u), float((v >> 8) & 255u), float((v >> 16) & 255u), float(v >> 24)) / 255.0;
}`;
const GROUND_VERTEX = `#version 300 es
layout(location = 0) in vec2 corner; layout(location = 1) in vec2 at;
uniform mat4 camera; uniform vec3 target; out vec2 where;
void main() { where = at; gl_Position = camera * vec4(vec3(corner, 0.0) - target, 1.0); }`;
const GROUND = `#version 300 es
precision highp float; in vec2 where; uniform sampler2D picture; uniform float fade; out vec4 pixel;
void main() { pixel = vec4(mix(texture(picture, where).rgb, vec3(1.0), fade), 1.0); }`;

class View {
  // `flat`: a map, seen from above without perspective; else buildings stand and the view turns.
  constructor(canvas, report, flat) {
    Object.assign(this, { canvas, report, flat, mode: null, waiting: false });
    const gl = this.gl = canvas.getContext("webgl2", { antialias: true, alpha: false });
    if (!gl) throw new Error("this browser offers no WebGL 2");
    // A ring around the chosen building: its colour alone is lost among thousands, and on some readers.
    this.pin = element("span", undefined, "pin");
    canvas.after(this.pin);
    this.build();
    this.reset();
    this.listen();
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => { this.build(); if (this.mode) this.colour(this.mode); this.redraw(); });
    // It also tells once at the beginning, when nothing has changed.
    new ResizeObserver(() => { if (this.size()) this.redraw(); }).observe(canvas);
  }

  build() {
    const gl = this.gl;
    this.programs = {
      faces: this.program(VERTEX, FACES), lines: this.program(VERTEX, LINES),
      numbers: this.program(VERTEX, NUMBERS), ground: this.program(GROUND_VERTEX, GROUND),
    };
    const mesh = buildMesh(this.report.shapes, this.report.columns.height_m, this.flat);
    this.city = this.upload(mesh);
    if (this.report.missed) {
      const mesh = buildMesh(this.report.missed, [], true);
      mesh.owner.fill(0); // all of one colour
      this.missed = this.upload(mesh);
    }
    this.rows = Math.max(1, Math.ceil(this.report.count / TINT_WIDTH));
    this.tint = this.texture(TINT_WIDTH, this.rows, new Uint8Array(4 * TINT_WIDTH * this.rows), gl.NEAREST);
    const [r, g, b] = this.report.missed_colour || [0, 0, 0];
    this.missedTint = this.texture(1, 1, new Uint8Array([r, g, b, 255]), gl.NEAREST);
    this.pickTarget = null;
    this.ground = gl.createVertexArray();
    gl.bindVertexArray(this.ground);
    this.attribute(0, 2, new Float32Array(this.report.ground.flat()));
    this.attribute(1, 2, new Float32Array([0, 0, 1, 0, 0, 1, 1, 1]));
    const image = this.report.image;
    this.picture = this.texture(1, 1, new Uint8Array([...GROUND_COLOUR, 255]), gl.NEAREST);
    if (image) {
      gl.bindTexture(gl.TEXTURE_2D, this.picture);
      gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, gl.RGBA, gl.UNSIGNED_BYTE, image);
      gl.generateMipmap(gl.TEXTURE_2D);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_LINEAR);
      gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.LINEAR);
    }
    gl.bindVertexArray(null);
  }

  program(vertex, fragment) {
    const gl = this.gl, program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source); gl.compileShader(shader); gl.attachShader(program, shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) throw new Error(gl.getShaderInfoLog(shader));
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    const at = {};
    for (let i = 0; i < gl.getProgramParameter(program, gl.ACTIVE_UNIFORMS); i++) {
      const name = gl.getActiveUniform(program, i).name;
      at[name] = gl.getUniformLocation(program, name);
    }
    return { program, at };
  }

  attribute(index, size, data) {
    const gl = this.gl;
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
    gl.enableVertexAttribArray(index);
    if (data instanceof Uint32Array) gl.vertexAttribIPointer(index, size, gl.UNSIGNED_INT, 0, 0);
    else gl.vertexAttribPointer(index, size, gl.FLOAT, false, 0, 0);
  }

  upload(mesh) {
    const gl = this.gl, vao = gl.createVertexArray();
    gl.bindVertexArray(vao);
    this.attribute(0, 3, mesh.position);
    this.attribute(1, 1, mesh.owner);
    gl.bindVertexArray(null);
    const indices = (data) => {
      const buffer = gl.createBuffer();
      gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, buffer);
      gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, data, gl.STATIC_DRAW);
      return { buffer, count: data.length };
    };
    return { vao, faces: indices(mesh.faces), edges: indices(mesh.edges), roofs: mesh.roofs };
  }

  texture(width, height, data, filter) {
    const gl = this.gl, texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA8, width, height, 0, gl.RGBA, gl.UNSIGNED_BYTE, data);
    for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, filter);
    for (const name of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, name, gl.CLAMP_TO_EDGE);
    return texture;
  }

  colour(mode) {
    this.mode = mode;
    const data = new Uint8Array(4 * TINT_WIDTH * this.rows), gl = this.gl;
    for (let i = 0; i < this.report.count; i++) data.set(colourOf(mode, mode.values[i]), 4 * i);
    gl.bindTexture(gl.TEXTURE_2D, this.tint);
    gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, TINT_WIDTH, this.rows, gl.RGBA, gl.UNSIGNED_BYTE, data);
    this.redraw();
  }

  // ---- camera ----

  reset() {
    const [left, bottom, right, top] = this.report.extent;
    this.target = [(left + right) / 2, (bottom + top) / 2, 0];
    this.yaw = this.flat ? 0 : 0.5;
    this.pitch = this.flat ? Math.PI / 2 : 0.7;
    this.fitted = false;
    this.size();
    this.redraw();
  }

  fit() {
    // `reach`: half of what is seen from the lower to the upper edge, metres at the target.
    const [left, bottom, right, top] = this.report.extent;
    const aspect = this.canvas.width / this.canvas.height;
    const width = right - left, depth = top - bottom;
    this.reach = this.flat ? 0.53 * Math.max(depth, width / aspect)
      : 0.48 * Math.hypot(width, depth) * Math.max(1, 1.25 / aspect);
    this.fitted = true;
  }

  camera() {
    const aspect = this.canvas.width / this.canvas.height;
    const [cy, sy, cp, sp] = [Math.cos(this.yaw), Math.sin(this.yaw), Math.cos(this.pitch), Math.sin(this.pitch)];
    // Axes of the screen in metres: right, up, and towards the eye.
    const right = [cy, sy, 0], up = [-sy * sp, cy * sp, cp], eye = [sy * cp, -cy * cp, sp];
    const far = this.reach / Math.tan(FIELD_OF_VIEW / 2);
    const turn = new Float32Array([
      right[0], up[0], eye[0], 0, right[1], up[1], eye[1], 0, right[2], up[2], eye[2], 0, 0, 0, this.flat ? 0 : -far, 1,
    ]);
    if (this.flat)
      return product(new Float32Array([1 / (this.reach * aspect), 0, 0, 0, 0, 1 / this.reach, 0, 0, 0, 0, -1e-4, 0, 0, 0, 0, 1]), turn);
    const [l, b, r, t] = this.report.extent;
    const end = far + 2 * Math.hypot(r - l, t - b) + 2000, near = Math.max(far / 50, 0.5), s = 1 / Math.tan(FIELD_OF_VIEW / 2);
    return product(new Float32Array([
      s / aspect, 0, 0, 0, 0, s, 0, 0, 0, 0, -(end + near) / (end - near), -1, 0, 0, -2 * end * near / (end - near), 0,
    ]), turn);
  }

  // ---- drawing ----

  redraw() {
    if (this.waiting) return;
    this.waiting = true;
    requestAnimationFrame(() => {
      this.waiting = false;
      if (this.moving && this.slow) return this.draw(true);
      const began = performance.now(), pixel = new Uint8Array(4);
      this.draw();
      // Drawing goes on behind; reading a pixel waits for it.
      this.gl.readPixels(0, 0, 1, 1, this.gl.RGBA, this.gl.UNSIGNED_BYTE, pixel);
      this.slow = performance.now() - began > SLOW_MS;
    });
  }

  // Draws while a hand is at it; on a slow machine in full only when it rests.
  follow() {
    this.moving = true;
    clearTimeout(this.rest);
    this.rest = setTimeout(() => { this.moving = false; if (this.slow) this.redraw(); }, 300);
    this.redraw();
  }

  // Fits the drawing to the element; true where that has changed.
  size() {
    const ratio = window.devicePixelRatio || 1, canvas = this.canvas;
    const width = Math.max(1, Math.round(canvas.clientWidth * ratio)), height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    const changed = canvas.width !== width || canvas.height !== height;
    if (changed) {
      canvas.width = width; canvas.height = height;
      if (this.pickTarget) this.gl.deleteFramebuffer(this.pickTarget);
      this.pickTarget = null;
    }
    if (!this.fitted) this.fit();
    return changed;
  }

  use(name, camera) {
    const { program, at } = this.programs[name], gl = this.gl;
    gl.useProgram(program);
    gl.uniformMatrix4fv(at.camera, false, camera);
    gl.uniform3fv(at.target, this.target);
    if (at.tint) gl.uniform1i(at.tint, 0);
    if (at.picked) gl.uniform1ui(at.picked, this.report.picked < 0 ? NOTHING : this.report.picked);
    if (at.pickedColour) gl.uniform3fv(at.pickedColour, PICKED.map((v) => v / 255));
    return at;
  }

  elements(mesh, what, kind, count = mesh[what].count) {
    const gl = this.gl;
    gl.bindVertexArray(mesh.vao);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, mesh[what].buffer);
    gl.drawElements(kind, count, gl.UNSIGNED_INT, 0);
    gl.bindVertexArray(null);
  }

  draw(roofsOnly = false) {
    const gl = this.gl;
    this.size();
    const camera = this.camera();
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.viewport(0, 0, this.canvas.width, this.canvas.height);
    const paper = this.flat && !this.report.image ? GROUND_COLOUR.map((v) => v / 255) : [1, 1, 1];
    gl.clearColor(...paper, 1);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.activeTexture(gl.TEXTURE0);
    gl.disable(gl.DEPTH_TEST);
    gl.disable(gl.BLEND);
    const ground = this.use("ground", camera);
    gl.bindTexture(gl.TEXTURE_2D, this.picture);
    gl.uniform1f(ground.fade, this.report.image ? (this.flat ? 0.1 : 0.35) : 0);
    gl.bindVertexArray(this.ground);
    gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
    gl.bindTexture(gl.TEXTURE_2D, this.tint);
    if (this.flat) {
      gl.enable(gl.BLEND);
      gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA);
    } else {
      gl.enable(gl.DEPTH_TEST);
      // Faces lie a little behind the lines along their edges.
      gl.enable(gl.POLYGON_OFFSET_FILL);
      gl.polygonOffset(1, 1);
    }
    const faces = this.use("faces", camera);
    gl.uniform1f(faces.shade, this.flat ? 0 : 1);
    gl.uniform1f(faces.alpha, this.flat ? (this.report.image ? 0.5 : 0.85) : 1);
    if (this.missed && this.mode && this.mode.shows_missed) {
      gl.bindTexture(gl.TEXTURE_2D, this.missedTint);
      const picked = this.report.picked;
      gl.uniform1ui(faces.picked, NOTHING);
      this.elements(this.missed, "faces", gl.TRIANGLES);
      gl.uniform1ui(faces.picked, picked < 0 ? NOTHING : picked);
      gl.bindTexture(gl.TEXTURE_2D, this.tint);
    }
    this.elements(this.city, "faces", gl.TRIANGLES, roofsOnly ? this.city.roofs : undefined);
    gl.disable(gl.POLYGON_OFFSET_FILL);
    const lines = this.use("lines", camera);
    // Dark edges tell neighbours apart; from far away there would be nothing but edges.
    const near = Math.min(Math.max(1.3 - this.metresPerPixel(), 0), 1);
    gl.uniform1f(lines.darken, this.flat && this.report.image ? 1 : 1 - 0.45 * near);
    // From far above, edges of walls are below a pixel and only cost time.
    const fine = this.flat || this.metresPerPixel() < FAR_M;
    if (!roofsOnly && fine) this.elements(this.city, "edges", gl.LINES);
    this.placePin(camera);
    this.canvas.dispatchEvent(new Event("drawn"));
  }

  placePin(camera) {
    const index = this.report.picked, middle = this.report.middles[index];
    this.pin.hidden = true;
    if (!middle) return;
    const height = this.report.columns.height_m[index], z = this.flat || !Number.isFinite(height) ? 0 : height;
    const place = [middle[0] - this.target[0], middle[1] - this.target[1], z - this.target[2], 1];
    const [x, y, , w] = [0, 1, 2, 3].map((r) => place.reduce((sum, v, k) => sum + camera[4 * k + r] * v, 0));
    if (w <= 0 || Math.abs(x) > w || Math.abs(y) > w) return;
    const size = Math.max(28, 2.6 * middle[2] / this.metresPerPixel());
    Object.assign(this.pin.style, {
      left: `${(x / w + 1) / 2 * this.canvas.clientWidth - size / 2}px`,
      top: `${(1 - y / w) / 2 * this.canvas.clientHeight - size / 2}px`, width: `${size}px`, height: `${size}px`,
    });
    this.pin.hidden = false;
  }

  // Index of the building at a point of the canvas (CSS pixels from its upper left corner), or -1.
  pick(x, y) {
    const gl = this.gl, width = this.canvas.width, height = this.canvas.height;
    if (!this.pickTarget) {
      this.pickTarget = gl.createFramebuffer();
      gl.bindFramebuffer(gl.FRAMEBUFFER, this.pickTarget);
      const colour = gl.createRenderbuffer(), depth = gl.createRenderbuffer();
      gl.bindRenderbuffer(gl.RENDERBUFFER, colour);
      gl.renderbufferStorage(gl.RENDERBUFFER, gl.RGBA8, width, height);
      gl.framebufferRenderbuffer(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.RENDERBUFFER, colour);
      gl.bindRenderbuffer(gl.RENDERBUFFER, depth);
      gl.renderbufferStorage(gl.RENDERBUFFER, gl.DEPTH_COMPONENT24, width, height);
      gl.framebufferRenderbuffer(gl.FRAMEBUFFER, gl.DEPTH_ATTACHMENT, gl.RENDERBUFFER, depth);
    }
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.pickTarget);
    gl.viewport(0, 0, width, height);
    const px = Math.floor(x * width / this.canvas.clientWidth);
    const py = height - 1 - Math.floor(y * height / this.canvas.clientHeight);
    gl.enable(gl.SCISSOR_TEST);
    gl.scissor(px, py, 1, 1);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.disable(gl.BLEND);
    gl.enable(gl.DEPTH_TEST);
    this.use("numbers", this.camera());
    this.elements(this.city, "faces", gl.TRIANGLES);
    const pixel = new Uint8Array(4);
    gl.readPixels(px, py, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, pixel);
    gl.disable(gl.SCISSOR_TEST);
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    return pixel[0] + 256 * pixel[1] + 65536 * pixel[2] + 16777216 * pixel[3] - 1;
  }

  // ---- mouse, fingers, keys ----

  listen() {
    const canvas = this.canvas, fingers = new Map();
    let moved = 0;
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (!fingers.size) moved = 0;
      fingers.set(event.pointerId, at(event));
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointermove", (event) => {
      const before = fingers.get(event.pointerId);
      if (!before) return;
      const now = at(event), dx = now[0] - before[0], dy = now[1] - before[1];
      moved += Math.hypot(dx, dy);
      if (moved <= 4) return;
      fingers.set(event.pointerId, now);
      if (fingers.size === 2) {
        const other = [...fingers].find(([id]) => id !== event.pointerId)[1];
        const gap = (p) => Math.max(Math.hypot(p[0] - other[0], p[1] - other[1]), 1);
        this.zoom(gap(before) / gap(now));
        this.move(dx / 2, dy / 2);
      } else if (this.flat || event.shiftKey || event.buttons & 2) this.move(dx, dy);
      else this.turn(dx / 200, dy / 200);
    });
    const up = (event) => {
      const known = fingers.delete(event.pointerId);
      if (known && event.type === "pointerup" && moved <= 4 && event.button === 0) this.report.choose(this.pick(...at(event)));
    };
    canvas.addEventListener("pointerup", up);
    canvas.addEventListener("pointercancel", up);
    canvas.addEventListener("contextmenu", (event) => event.preventDefault());
    canvas.addEventListener("dblclick", () => this.reset());
    // Before the view is clicked, the wheel scrolls the page over it.
    canvas.addEventListener("wheel", (event) => {
      if (document.activeElement !== canvas && !event.ctrlKey) return;
      event.preventDefault();
      this.zoom(Math.exp(Math.sign(event.deltaY) * Math.min(Math.abs(event.deltaY), 100) / 500), at(event));
    }, { passive: false });
    canvas.addEventListener("keydown", (event) => {
      const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (steps && (this.flat || event.shiftKey)) this.move(-40 * steps[0], -40 * steps[1]);
      else if (steps) this.turn(0.1 * steps[0], 0.1 * steps[1]);
      else if (event.key === "+" || event.key === "=") this.zoom(0.8);
      else if (event.key === "-") this.zoom(1.25);
      else if (event.key === "Home") this.reset();
      else return;
      event.preventDefault();
    });
  }

  turn(yaw, pitch) {
    this.yaw -= yaw;
    this.pitch = Math.min(Math.max(this.pitch + pitch, 0.05), Math.PI / 2);
    this.follow();
  }

  // Moves the ground with the pointer, CSS pixels.
  move(dx, dy) {
    const metres = 2 * this.reach / this.canvas.clientHeight, across = -dx * metres;
    const along = dy * metres / Math.max(Math.sin(this.pitch), 0.2);
    this.target[0] += across * Math.cos(this.yaw) - along * Math.sin(this.yaw);
    this.target[1] += across * Math.sin(this.yaw) + along * Math.cos(this.yaw);
    this.follow();
  }

  zoom(factor, at) {
    const [left, bottom, right, top] = this.report.extent;
    const before = this.reach;
    this.reach = Math.min(Math.max(before * factor, 3), 2 * Math.hypot(right - left, top - bottom) + 100);
    if (at) {
      const share = 1 - this.reach / before;
      this.move(-(at[0] - this.canvas.clientWidth / 2) * share * before / this.reach,
        -(at[1] - this.canvas.clientHeight / 2) * share * before / this.reach);
    }
    this.follow();
  }

  show(index) {
    const place = this.report.middles[index];
    if (!place) return;
    this.target = [place[0], place[1], 0];
    this.reach = Math.min(this.reach, Math.max(3 * place[2], 40));
    this.redraw();
  }

  metresPerPixel() { return 2 * this.reach / this.canvas.clientHeight; }
}

// ---- the page ----

function scaleBar(view, holder) {
  const line = element("span", undefined, "scale-line"), label = element("span");
  holder.append(line, label);
  view.canvas.addEventListener("drawn", () => {
    const most = 140 * view.metresPerPixel(), power = 10 ** Math.floor(Math.log10(most));
    const metres = [5, 2, 1].map((k) => k * power).find((m) => m <= most);
    line.style.width = `${metres / view.metresPerPixel()}px`;
    label.textContent = metres >= 1000 ? `${metres / 1000} km` : `${metres} m`;
  });
}

const number = (value, digits, unit) =>
  Number.isFinite(value) ? `${value.toFixed(digits).replace("-", "−")}${unit ? ` ${unit}` : ""}` : "unknown";

function card(report, index) {
  const holder = document.getElementById("card");
  if (index < 0) {
    holder.replaceChildren(element("p", "Click a building, or a dot in a chart, to see its numbers here.", "faint"));
    return;
  }
  const c = report.columns, rows = [
    ["Median height", number(c.height_m[index], 1, "m")],
    ["16–84 % interval", Number.isFinite(c.height_p16_m[index]) && Number.isFinite(c.height_p84_m[index])
      ? `${number(c.height_p16_m[index], 1)} to ${number(c.height_p84_m[index], 1, "m")}` : "unknown"],
    ["Area", number(c.area_m2[index], 0, "m²")],
    ["Volume", number(c.area_m2[index] * c.height_m[index], 0, "m³")],
    ["Score", number(c.score[index], 2)],
  ];
  if (c.truth_m) {
    rows.push(["True height", number(c.truth_m[index], 1, "m")]);
    rows.push(["Error", number(c.error_m[index], 1, "m")]);
    rows.push(["Truth", c.matched[index] ? "matched" : "no true building here"]);
  }
  const table = element("table");
  for (const [name, value] of rows) {
    const row = element("tr");
    row.append(element("th", name), element("td", value));
    table.append(row);
  }
  holder.replaceChildren(element("h3", `Building ${report.ids[index]}`), table);
}

function middlesOf(shapes, count) {
  const boxes = Array.from({ length: count }, () => null);
  let start = 0;
  shapes.ringOwner.forEach((b, r) => {
    const box = boxes[b] || (boxes[b] = [Infinity, Infinity, -Infinity, -Infinity]);
    for (let i = start; i < start + shapes.ringSize[r]; i++) {
      const x = shapes.xy[2 * i], y = shapes.xy[2 * i + 1];
      box[0] = Math.min(box[0], x); box[1] = Math.min(box[1], y);
      box[2] = Math.max(box[2], x); box[3] = Math.max(box[3], y);
    }
    start += shapes.ringSize[r];
  });
  return boxes.map((b) => b && [(b[0] + b[2]) / 2, (b[1] + b[3]) / 2, Math.hypot(b[2] - b[0], b[3] - b[1]) / 2]);
}

function decodeShapes(s) {
  return { xy: floats(s.xy), ringSize: wholes(s.ring_size), ringOwner: wholes(s.ring_owner), triangles: wholes(s.triangles) };
}

async function open() {
  const began = performance.now();
  const source = document.getElementById("data");
  const data = JSON.parse(source.textContent);
  source.remove();
  const report = { ...data, picked: -1, columns: {}, views: {} };
  window.report = report;
  for (const [name, text] of Object.entries(data.columns)) report.columns[name] = floats(text);
  for (const mode of data.modes) mode.values = floats(mode.values);
  report.shapes = decodeShapes(data.shapes);
  report.missed = data.missed && decodeShapes(data.missed);
  report.middles = middlesOf(report.shapes, report.count);
  const picture = document.getElementById("picture");
  if (picture) { await picture.decode(); report.image = picture; }
  report.choose = (index, move) => {
    report.picked = index;
    card(report, index);
    for (const view of Object.values(report.views)) { if (move && index >= 0) view.show(index); view.redraw(); }
  };
  card(report, -1);

  const modes = Object.fromEntries(data.modes.map((mode) => [mode.key, mode]));
  const chooser = document.getElementById("mode"), legend = document.getElementById("legend");
  for (const mode of data.modes) chooser.append(new Option(mode.label, mode.key));
  const colour = () => {
    drawLegend(legend, modes[chooser.value]);
    for (const name of ["map", "city"]) if (report.views[name]) report.views[name].colour(modes[chooser.value]);
  };
  try {
    report.views.map = new View(document.getElementById("map"), report, true);
    report.views.city = new View(document.getElementById("city"), report, false);
    scaleBar(report.views.map, document.getElementById("map-scale"));
    if (modes.error && document.getElementById("errors")) {
      report.views.errors = new View(document.getElementById("errors"), report, true);
      report.views.errors.colour(modes.error);
      scaleBar(report.views.errors, document.getElementById("errors-scale"));
    }
  } catch (error) {
    document.body.classList.add("no-views");
    document.getElementById("trouble").textContent = `The views cannot be drawn: ${error.message}.`;
  }
  if (modes.error && document.getElementById("errors-legend")) drawLegend(document.getElementById("errors-legend"), modes.error);
  chooser.addEventListener("change", colour);
  colour();
  document.getElementById("home").addEventListener("click", () => Object.values(report.views).forEach((view) => view.reset()));
  await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  report.first_draw_ms = performance.now() - began;

  const settings = { displaylogo: false, displayModeBar: "hover", responsive: true,
    // Named one by one: among the usual ones is a button that sends the chart to a web site.
    modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]] };
  for (const [name, chart] of Object.entries(data.charts)) {
    const holder = document.getElementById(`chart-${name}`);
    await Plotly.newPlot(holder, chart.data, chart.layout, settings);
    holder.on("plotly_click", (event) => {
      const point = event.points[0];
      if (point.data.meta === "buildings") report.choose(point.customdata, true);
    });
  }
  report.charts_ms = performance.now() - began;
  report.ready = true;
}

open();
