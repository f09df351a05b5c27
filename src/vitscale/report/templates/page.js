"use strict";
// Each chart is drawn to the width it has. The SVG under it stays for print, and where drawing fails.
(function () {
  const OPTIONS = {
    ast: true, mode: "vega-lite", renderer: "svg", actions: false, defaultStyle: false, tooltip: { disableDefaultStyle: true },
  };

  // `around`: pixels that labels and axes take beside the panels; a guess until a first drawing has told.
  function fitted(source, width, around) {
    const spec = JSON.parse(source);
    const columns = width < 560 ? 1 : spec.usermeta.panels;
    if (spec.spec) spec.columns = columns;
    (spec.spec || spec).width = Math.max(90, Math.floor((width - around) / columns));
    const legend = spec.config.legend;
    legend.columns = Math.max(1, Math.min(legend.columns, Math.floor((width - around) / spec.usermeta.legend_item_px)));
    if (width < 560) {
      spec.config.axisY = { labelLimit: Math.floor(width * 0.46), labelFontSize: 10 };
      legend.labelLimit = width - around - 40;
    }
    return spec;
  }

  async function draw(box) {
    const source = document.getElementById("spec-" + box.dataset.chart).textContent;
    const width = Math.floor(box.parentElement.clientWidth);
    if (box.drawnWidth === width || width === 0) return;
    box.drawnWidth = width;
    let around = 90;
    for (let attempt = 0; attempt < 3; attempt++) {
      const spec = fitted(source, width, around);
      const drawn = await window.vegaEmbed(box, spec, OPTIONS);
      if (box.drawn) box.drawn.finalize();
      box.drawn = drawn;
      const spare = width - Number(box.querySelector("svg").getAttribute("width"));
      if (spare >= 0 && spare <= 8) break;
      around -= spare - 2;
    }
    box.parentElement.classList.add("drawn");
  }

  async function drawAll() {
    for (const box of document.querySelectorAll(".chart")) {
      try {
        await draw(box);
      } catch (error) {
        box.parentElement.classList.remove("drawn");
        console.error(error);
      }
    }
    document.documentElement.dataset.drawn = "true";
  }

  let waiting;
  window.addEventListener("resize", function () {
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 150);
  });
  let opened = [];
  window.addEventListener("beforeprint", function () {
    opened = Array.from(document.querySelectorAll("details:not([open])"));
    for (const one of opened) one.open = true;
  });
  window.addEventListener("afterprint", function () {
    for (const one of opened) one.open = false;
  });
  drawAll();
})();
