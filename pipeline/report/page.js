// Values under the pointer. The charts are complete without this.
for (const svg of document.querySelectorAll("svg[data-chart]")) {
  const chart = JSON.parse(svg.dataset.chart);
  const [low, high] = chart.x;
  const figure = svg.parentElement;
  const guide = svg.querySelector(".guide");
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  figure.append(tip);
  const show = (v) => (chart.percent ? (100 * v).toFixed(1) + "%" : String(Number(v.toPrecision(4))));
  const nearest = (points, x) => {
    let a = 0, b = points.length - 1;
    while (b - a > 1) { const m = (a + b) >> 1; if (points[m][0] < x) a = m; else b = m; }
    return Math.abs(points[a][0] - x) <= Math.abs(points[b][0] - x) ? points[a] : points[b];
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const wanted = low + (event.clientX - box.left) / box.width * (high - low);
    const hits = chart.series.map((s) => [s, nearest(s.points, wanted)]);
    const x = hits.map(([, p]) => p[0]).reduce((a, b) => (Math.abs(a - wanted) <= Math.abs(b - wanted) ? a : b));
    const at = (x - low) / (high - low);
    guide.setAttribute("x1", 100 * at + "%");
    guide.setAttribute("x2", 100 * at + "%");
    guide.setAttribute("visibility", "visible");
    tip.replaceChildren(String(x));
    for (const [s, p] of hits) {
      if (p[0] !== x && s.points.length > 2) continue;
      const line = document.createElement("div"), dot = document.createElement("i");
      dot.style.setProperty("--c", `var(--c${s.color})`);
      line.append(dot, `${s.label} ${show(p[1])}`);
      tip.append(line);
    }
    tip.hidden = false;
    const left = box.left - figure.getBoundingClientRect().left + at * box.width;
    tip.style.left = (left + tip.offsetWidth + 20 > figure.clientWidth ? Math.max(left - tip.offsetWidth - 12, 0) : left + 12) + "px";
    tip.style.top = (svg.offsetTop + 12) + "px";
  });
  svg.addEventListener("pointerleave", () => { tip.hidden = true; guide.setAttribute("visibility", "hidden"); });
}
