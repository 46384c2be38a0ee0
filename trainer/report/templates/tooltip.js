// Values at the pointer, by mouse, touch, or the arrow keys in a focused chart. A chart's data-tips is a list of
// {name, colour, points: [[x, y, headline, value], ...]}, with x and y in the coordinates of its SVG.
for (const chart of document.querySelectorAll("[data-tips]")) {
  const svg = chart.querySelector("svg"), curves = JSON.parse(chart.dataset.tips);
  const xs = [...new Set(curves.flatMap(curve => curve.points.map(point => point[0])))].sort((a, b) => a - b);
  const near = (curve, x) => curve.points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
  const box = chart.appendChild(document.createElement("div"));
  const layer = svg.appendChild(document.createElementNS(svg.namespaceURI, "g"));
  let at = -1;
  box.className = "tip";
  box.setAttribute("role", "status");

  const mark = (name, attributes) => {
    const node = layer.appendChild(document.createElementNS(svg.namespaceURI, name));
    for (const key in attributes) node.setAttribute(key, attributes[key]);
  };
  const hide = () => { layer.replaceChildren(); box.style.display = "none"; };
  const show = index => {
    hide();
    at = Math.max(0, Math.min(xs.length - 1, index));
    const view = svg.viewBox.baseVal, x = xs[at];
    const shown = curves.map(curve => [curve, near(curve, x)]).filter(([, point]) => Math.abs(point[0] - x) < 4);
    const first = shown.find(([, point]) => point[0] === x)[1];
    mark("line", {x1: x, x2: x, y1: 20, y2: view.height - 32, stroke: "var(--mark)"});
    box.replaceChildren(first[2]);
    for (const [curve, point] of shown) {
      mark("circle", {cx: point[0], cy: point[1], r: 3.5, fill: `var(--${curve.colour})`, stroke: "var(--card)"});
      const row = box.appendChild(document.createElement("div")), value = document.createElement("b");
      value.textContent = point[3];
      row.style.color = `var(--${curve.colour})`;
      row.append(curve.name ? curve.name + " " : "", value);
    }
    box.style.display = "block";
    const scale = svg.clientWidth / view.width, room = svg.clientWidth - box.offsetWidth;
    const left = x * scale < svg.clientWidth / 2 ? x * scale + 12 : x * scale - box.offsetWidth - 12;
    box.style.left = Math.max(0, Math.min(room, left)) + "px";
  };
  const follow = event => {
    const frame = svg.getBoundingClientRect();
    const x = (event.clientX - frame.left) * svg.viewBox.baseVal.width / frame.width;
    show(xs.reduce((best, each, index) => Math.abs(each - x) < Math.abs(xs[best] - x) ? index : best, 0));
  };
  chart.addEventListener("pointermove", follow);
  chart.addEventListener("pointerdown", follow);
  chart.addEventListener("pointerleave", hide);
  chart.addEventListener("blur", hide);
  chart.addEventListener("keydown", event => {
    const to = {ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: xs.length - 1}[event.key];
    if (to !== undefined) { show(to); event.preventDefault(); }
    if (event.key === "Escape") hide();
  });
}
