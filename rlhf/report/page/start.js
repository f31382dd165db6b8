// What the page does when it is opened: theme, place in the navigation, curves, rollouts; and looking for news while served.
"use strict";

(function () {
  const root = document.documentElement, button = document.getElementById("theme");
  const themes = ["auto", "light", "dark"];
  let kept = {};
  try { kept = JSON.parse(sessionStorage.getItem("rlhf") || "{}"); } catch { /* storage is off: nothing is kept */ }
  const keep = (change) => {
    kept = { ...kept, ...change };
    try { sessionStorage.setItem("rlhf", JSON.stringify(kept)); } catch { /* the same */ }
  };
  const theme = (name) => {
    root.dataset.theme = name;
    button.textContent = { auto: "Auto", light: "Light", dark: "Dark" }[name];
    button.setAttribute("aria-label", "Colours: " + name);
    document.dispatchEvent(new Event("themechange"));
  };
  theme(kept.theme || "auto");
  button.addEventListener("click", () => {
    const next = themes[(themes.indexOf(root.dataset.theme) + 1) % themes.length];
    keep({ theme: next });
    theme(next);
  });

  const links = new Map(Array.from(document.querySelectorAll("nav a"), (link) => [link.hash.slice(1), link]));
  const passing = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (!entry.isIntersecting) return;
    links.forEach((link, id) => (id === entry.target.id ? link.setAttribute("aria-current", "true") : link.removeAttribute("aria-current")));
  }), { rootMargin: "-20% 0px -70% 0px" });
  document.querySelectorAll("main section[id]").forEach((section) => passing.observe(section));

  const form = document.getElementById("rollout-filters");
  rlhf.curves();
  Promise.resolve(rlhf.table()).then(() => {
    if (!form || !kept.filters) return;
    for (const [name, value] of kept.filters) if (form.elements[name]) form.elements[name].value = value;
    form.dispatchEvent(new Event("input"));
    keep({ filters: null });
  });

  // Served by `rlhf inspect --serve`: asks now and then whether the run went on, and shows the new page in the same place.
  const state = root.dataset.live;
  if (state === undefined) return;
  const news = document.getElementById("news");
  const reload = () => {
    keep({ scroll: scrollY, filters: form ? Array.from(new FormData(form)) : null });
    location.reload();
  };
  news.querySelector("button").addEventListener("click", reload);
  if (kept.scroll !== undefined) { scrollTo(0, kept.scroll); keep({ scroll: undefined }); }
  setInterval(async () => {
    try {
      const now = await (await fetch("state")).text();
      if (now === state) return;
      if (document.querySelector("dialog[open]") || document.hidden) news.hidden = false;
      else reload();
    } catch { /* the server has ended: the page stays as it is */ }
  }, 3000);
})();
