// The table of rollouts: search, filters, sorting (Tabulator). A row opens the token view (tokens.js).
"use strict";

rlhf.table = async function () {
  const place = document.getElementById("rollout-table");
  if (!place) return;
  const episodes = await rlhf.episodes();
  const numbers = { score: "Score", reward: "Reward", kl: "KL", length: "Tokens" };
  episodes.components.forEach((name) => { numbers[name] = name.slice("component/".length); });
  const rows = Array.from({ length: episodes.count }, (_, n) => {
    const row = { n, prompt: episodes.prompts[n], response: episodes.responses[n], stop: episodes.stops[n] };
    for (const [name, values] of Object.entries(episodes.numbers)) row[name] = values[n];
    return row;
  });

  const { element, number } = rlhf;
  const table = new Tabulator(place, {
    data: rows,
    height: "min(34rem, 75vh)",
    layout: "fitColumns",
    responsiveLayout: "hide",
    nestedFieldSeparator: false,
    index: "n",
    placeholder: "No rollout fits these filters",
    rowHeight: 40,
    columnDefaults: { headerSortTristate: true, titleFormatter: (cell) => element("span", { text: cell.getValue() }) },
    columns: columns(numbers, episodes),
  });

  function columns(numbers, episodes) {
    const open = {
      title: "Tokens of the episode", field: "n", width: 46, headerSort: false, responsive: 0, hozAlign: "center",
      titleFormatter: () => element("span", { class: "unseen", text: "Open" }),
      formatter: (cell) => element("button", {
        class: "open", type: "button", text: "\u25B8",
        "aria-label": "Open the tokens of iteration " + cell.getData().iteration + ", prompt " + cell.getData().index,
      }),
    };
    const text = (title, field, responsive) => ({
      title, field, widthGrow: 3, minWidth: 140, responsive, formatter: (cell) => element("span", { text: cell.getValue() || "" }),
    });
    const numeric = (title, field, width, responsive) => ({
      title, field, width, responsive, hozAlign: "right", headerHozAlign: "right", sorter: bySize,
      formatter: (cell) => element("span", { text: number(cell.getValue()) }),
    });
    return [
      open,
      numeric("Iteration", "iteration", 108, 1),
      text("Prompt", "prompt", 3),
      text("Response", "response", 0),
      numeric("Score", "score", 84, 0),
      numeric("Reward", "reward", 92, 2),
      numeric("KL", "kl", 70, 2),
      numeric("Tokens", "length", 88, 4),
      { title: "Stop", field: "stop", width: 78, responsive: 5, formatter: (cell) => element("span", { text: cell.getValue() }) },
      ...episodes.components.map((name) => numeric(numbers[name], name, 56 + 8 * Math.max(6, numbers[name].length), 6)),
    ];
  }

  // Unknown values last, whichever way round.
  function bySize(a, b, _first, _second, _column, direction) {
    if (a === null || b === null) return a === b ? 0 : (a === null) === (direction === "asc") ? 1 : -1;
    return a - b;
  }

  const form = document.getElementById("rollout-filters");
  const shown = document.getElementById("rollout-count");
  fillChoices();
  form.addEventListener("input", later(filter, 150));
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", () => setTimeout(() => { table.clearSort(); filter(); }));
  document.querySelectorAll("[data-view]").forEach((button) => button.addEventListener("click", () => {
    const [field, direction] = button.dataset.view.split(" ");
    table.setSort(field, direction);
  }));
  table.on("rowClick", (_event, row) => rlhf.openTokens(row.getData().n));
  table.on("dataFiltered", (_filters, kept) => { say(kept.length); });
  table.on("tableBuilt", () => { say(rows.length); document.body.dataset.rollouts = "ready"; });
  rlhf.episodesInOrder = () => table.getRows("active").map((row) => row.getData().n);
  rlhf.tokenView(episodes);

  function say(count) {
    shown.textContent = count === rows.length ? rows.length.toLocaleString("en") + " episodes"
      : count.toLocaleString("en") + " of " + rows.length.toLocaleString("en") + " episodes";
  }

  function fillChoices() {
    const choose = (name, choices) => form.elements[name].append(
      ...choices.map(([value, text]) => element("option", { value, text })));
    choose("stop", episodes.stopReasons.map((reason) => [reason, reason]));
    choose("column", Object.entries(numbers));
    const last = rows.reduce((most, row) => Math.max(most, row.iteration), 1);
    for (const name of ["first", "last"]) form.elements[name].max = last;
    form.elements.last.placeholder = String(last);
  }

  function filter() {
    const field = (name) => form.elements[name].value.trim();
    const limit = (name, otherwise) => (field(name) === "" ? otherwise : Number(field(name)));
    const words = field("search").toLowerCase(), stop = field("stop"), column = field("column");
    const [first, last] = [limit("first", 1), limit("last", Infinity)];
    const [low, high] = [limit("low", -Infinity), limit("high", Infinity)], bounded = field("low") !== "" || field("high") !== "";
    const prompt = field("prompt") === "" ? null : Number(field("prompt"));
    table.setFilter((row) =>
      row.iteration >= first && row.iteration <= last && (prompt === null || row.index === prompt)
      && (!stop || row.stop === stop)
      && (!bounded || (row[column] !== null && row[column] >= low && row[column] <= high))
      && (!words || row.prompt.toLowerCase().includes(words) || (row.response || "").toLowerCase().includes(words)));
  }

  function later(action, wait) {
    let timer = 0;
    return () => { clearTimeout(timer); timer = setTimeout(action, wait); };
  }
};
