// The token view: one episode, each token shaded by a number of it. Arrow keys move over tokens, j and k over episodes.
"use strict";

rlhf.tokenView = function (episodes) {
  const { element, number } = rlhf;
  const dialog = document.getElementById("tokens");
  const find = (name) => dialog.querySelector("[data-part=" + name + "]");
  const shades = { reward: "Reward", kl: "KL", value: "Value", advantage: "Advantage", logprob: "Log-prob" };
  const details = [
    ["reward", "Reward"], ["reward_score", "Score part"], ["reward_penalty", "Penalty part"], ["reward_kl", "KL part"],
    ["kl", "KL"], ["logprob", "Log-prob"], ["ref_logprob", "Reference"], ["value", "Value"], ["advantage", "Advantage"],
  ];
  let shown = { episode: -1, tokens: [], spans: [], at: 0 }, shade = "reward";

  find("shades").append(...Object.entries(shades).map(([name, text]) => element("label", {},
    element("input", { type: "radio", name: "shade", value: name, checked: name === shade }), element("span", { text }))));
  find("shades").addEventListener("change", (event) => { shade = event.target.value; paint(); tell(shown.at); });
  find("close").addEventListener("click", () => dialog.close());
  find("next").addEventListener("click", () => step(1));
  find("previous").addEventListener("click", () => step(-1));
  dialog.addEventListener("close", () => history.replaceState(null, "", location.pathname + location.search));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("keydown", keys);
  find("talk").addEventListener("pointerover", (event) => { if (event.target.dataset.token) tell(+event.target.dataset.token); });
  find("talk").addEventListener("focusin", (event) => { if (event.target.dataset.token) tell(+event.target.dataset.token); });
  find("talk").addEventListener("click", (event) => { if (event.target.dataset.token) event.target.focus(); });
  rlhf.openTokens = open;
  const named = /^#episode-(\d+)$/.exec(location.hash);
  if (named && +named[1] < episodes.count) open(+named[1]);

  async function open(episode) {
    const [tokens, talk] = await Promise.all([rlhf.tokens(episodes, episode), rlhf.talk(episodes, episode)]);
    shown = { episode, tokens, spans: [], at: 0 };
    const of = (name) => episodes.numbers[name][episode];
    find("title").textContent = "Iteration " + of("iteration") + ", prompt " + of("index")
      + (of("sample_index") ? ", sample " + of("sample_index") : "");
    find("facts").replaceChildren(...facts(of));
    find("talk").replaceChildren(...conversation(talk, episode));
    paint();
    tell(worst(tokens));
    history.replaceState(null, "", "#episode-" + episode);
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
  }

  function facts(of) {
    const fact = (name, value) => element("div", {}, element("dt", { text: name }), element("dd", { text: value }));
    const parts = "score " + number(of("score"), true) + ", penalty " + number(of("reward_penalty"), true)
      + ", KL " + number(of("reward_kl"), true);
    return [
      fact("Score", number(of("score"), true)), fact("Reward as trained on", number(of("reward"), true)), fact("Made of", parts),
      fact("KL, nats", number(of("kl"))), fact("Tokens", String(of("length"))), fact("Stopped by", episodes.stops[shown.episode] || "\u2013"),
      ...episodes.components.map((name) => fact(name.slice("component/".length), number(of(name)))),
    ];
  }

  function conversation(talk, episode) {
    const messages = talk || [["user", 0, episodes.prompts[episode]], ["assistant", 1, null]];
    return messages.map(([role, turn, content]) => {
      const spoken = content === null ? shown.tokens.map((token, index) => [token, index]).filter(([token]) => token.turn === turn) : [];
      const text = element("div", { class: "text" });
      if (spoken.length) text.append(...spoken.map(([token, index]) => span(token, index)));
      else text.textContent = content === null ? episodes.responses[episode] : content;
      const who = content === null ? "Policy" : turn === 0 ? "Prompt, " + role : "Environment, " + role;
      return element("div", { class: "message" + (content === null ? " own" : "") }, element("h4", { text: who }), text);
    });
  }

  function span(token, index) {
    const visible = token.text === "" ? "\u00B7" : token.text.replaceAll("\n", "\u21B5\n");
    const made = element("span", { class: "token", "data-token": index, tabindex: index === 0 ? 0 : -1, role: "button", text: visible });
    shown.spans.push(made);
    return made;
  }

  function paint() {
    const values = shown.tokens.map((token) => token[shade]), known = values.filter(Number.isFinite);
    const most = known.reduce((size, value) => Math.max(size, Math.abs(value)), 0) || 1;
    shown.spans.forEach((made, index) => {
      const value = values[index], strength = Number.isFinite(value) ? Math.abs(value) / most : 0;
      made.style.setProperty("--strength", (72 * Math.sqrt(strength)).toFixed(0) + "%");
      made.classList.toggle("low", value < 0);
      made.setAttribute("aria-label", "Token " + (index + 1) + ", " + JSON.stringify(shown.tokens[index].text)
        + ", " + shades[shade] + " " + number(value, true));
    });
    find("scale").replaceChildren(
      element("span", { text: number(-most) }), element("i", { "aria-hidden": "true" }), element("span", { text: number(most, true) }));
  }

  function tell(index) {
    const token = shown.tokens[index];
    if (!token) { find("token").replaceChildren(element("p", { text: "No tokens were kept of this episode." })); return; }
    shown.spans.forEach((made, each) => { made.tabIndex = each === index ? 0 : -1; made.classList.toggle("chosen", each === index); });
    shown.at = index;
    const cells = details.map(([name, text]) =>
      element("div", { class: name === shade ? "shaded" : "" }, element("dt", { text }), element("dd", { text: number(token[name], name !== "logprob" && name !== "ref_logprob") })));
    find("token").replaceChildren(
      element("p", {}, element("b", { text: JSON.stringify(token.text) }),
        element("small", { text: " token " + (index + 1) + " of " + shown.tokens.length })),
      element("dl", {}, ...cells));
  }

  function worst(tokens) {
    return tokens.reduce((least, token, index) => (token.reward < tokens[least].reward ? index : least), 0);
  }

  function keys(event) {
    const moves = { ArrowRight: 1, ArrowLeft: -1 }, steps = { j: 1, k: -1 };
    if (event.target.type === "radio") return;
    if (event.key in moves && shown.spans.length) {
      const at = Math.min(Math.max(shown.at + moves[event.key], 0), shown.spans.length - 1);
      shown.spans[at].focus();
      event.preventDefault();
    } else if (event.key in steps) step(steps[event.key]);
  }

  function step(by) {
    const order = rlhf.episodesInOrder(), next = order[order.indexOf(shown.episode) + by];
    if (next !== undefined) open(next);
  }
};
