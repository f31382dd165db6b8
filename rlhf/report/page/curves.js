// The curves (uPlot): values of all lines on hover; runs that were given beside this one are dashed.
"use strict";

rlhf.curves = async function () {
  const charts = await rlhf.json("curves");
  if (!charts) return;
  const dashes = [[], [6, 4], [2, 3], [9, 3, 2, 3]];
  const drawn = new Map();
  const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (entry.isIntersecting) { seen.unobserve(entry.target); draw(entry.target); }
  }), { rootMargin: "400px" });
  document.querySelectorAll("[data-chart]").forEach((place) => seen.observe(place));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  document.addEventListener("themechange", redraw);
  new ResizeObserver(() => drawn.forEach((chart, place) => {
    if (Math.abs(chart.width - place.clientWidth) > 1) chart.setSize({ width: place.clientWidth, height: 190 });
  })).observe(document.querySelector("main"));

  function redraw() {
    drawn.forEach((chart, place) => { chart.destroy(); draw(place); });
  }

  function draw(place) {
    const chart = charts[+place.dataset.chart], style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const axis = { stroke: colour("--grey"), grid: { stroke: colour("--rule"), width: 1 }, ticks: { show: false }, font: "12px system-ui, sans-serif" };
    const series = chart.lines.map((line) => ({
      label: line.name, stroke: colour("--line-" + (line.colour % 6)), dash: dashes[line.run % dashes.length],
      width: line.run ? 1.2 : 2, spanGaps: true, points: { show: chart.steps.length < 40, size: 5 },
      value: (_plot, value) => rlhf.number(value),
    }));
    const values = (_plot, ticks) => ticks.map((tick) => rlhf.number(tick));
    drawn.set(place, new uPlot({
      width: place.clientWidth, height: 190, padding: [8, 8, 0, 0],
      scales: { x: { time: false, range: (_plot, low, high) => (low === high ? [low - 1, high + 1] : [low, high]) } },
      axes: [{ ...axis, size: 28, incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000] }, { ...axis, size: 54, values }],
      cursor: { sync: { key: chart.stage }, points: { size: 7 } },
      series: [{ label: chart.axis }, ...series],
      bands: [],
    }, [chart.steps, ...chart.lines.map((line) => line.values)], place));
  }
};
