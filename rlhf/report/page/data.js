// The blocks that rlhf/report/episodes.py and curves.py wrote into the page: base64 of gzip. They are opened when asked for.
"use strict";

const rlhf = { blocks: new Map() };

/** The bytes of a block; a block is unpacked once. Null where the page has no such block. */
rlhf.bytes = function (name) {
  if (!rlhf.blocks.has(name)) {
    const element = document.getElementById("block-" + name);
    rlhf.blocks.set(name, element ? unpack(element.textContent) : Promise.resolve(null));
  }
  return rlhf.blocks.get(name);

  async function unpack(text) {
    const packed = Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));
    const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).arrayBuffer();
  }
};

/** A block of JSON; null where the page has no such block. */
rlhf.json = async function (name) {
  const bytes = await rlhf.bytes(name);
  return bytes && JSON.parse(new TextDecoder().decode(bytes));
};

/** Half-precision numbers as floats. */
rlhf.halves = (function () {
  let table = null;
  function value(bits) {
    const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
    if (exponent === 0) return sign * fraction * 2 ** -24;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
  }
  return (bits) => {
    table = table || Float32Array.from({ length: 65536 }, (_, index) => value(index));
    return Float32Array.from(bits, (each) => table[each]);
  };
})();

const TOKEN_NUMBERS = ["logprob", "kl", "reward_score", "reward_penalty", "reward_kl", "reward", "value", "advantage"];

/** All episodes, as columns by name; `null` without rollouts. */
rlhf.episodes = async function () {
  const head = await rlhf.json("episodes");
  if (!head) return null;
  const starts = new Uint32Array(head.tokens.length + 1);
  head.tokens.forEach((count, index) => { starts[index + 1] = starts[index] + count; });
  const text = (name) => head.texts[name].codes.map((code) => (code < 0 ? "" : head.texts[name].values[code]));
  return {
    ...head, starts, count: head.tokens.length, prompts: text("prompt"), stops: text("stop_reason"),
    stopReasons: head.texts.stop_reason.values, responses: await rlhf.json("responses"),
  };
};

/** The tokens of one episode: [{text, turn, logprob, kl, ...}]. */
rlhf.tokens = async function (episodes, number) {
  const block = Math.floor(number / episodes.per_block), first = block * episodes.per_block;
  const offset = episodes.starts[first], last = Math.min(first + episodes.per_block, episodes.count);
  const count = episodes.starts[last] - offset, from = episodes.starts[number] - offset;
  const own = episodes.tokens[number], bytes = await rlhf.bytes("tokens-" + block);
  if (!own) return [];
  const codes = new Uint32Array(bytes, 4 * from, own), turns = new Uint8Array(bytes, 4 * count + from, own);
  const numbers = TOKEN_NUMBERS.map((_, place) => {
    const start = 5 * count + 2 * (place * count + from);
    return rlhf.halves(new Uint16Array(bytes.slice(start, start + 2 * own)));
  });
  return Array.from(codes, (code, index) => {
    const token = { text: episodes.vocabulary[code], turn: turns[index] };
    TOKEN_NUMBERS.forEach((name, place) => { token[name] = numbers[place][index]; });
    if (Number.isNaN(token.reward)) token.reward = token.reward_score + token.reward_penalty + token.reward_kl;
    token.ref_logprob = token.logprob - token.kl;
    return token;
  });
};

/** The conversation as [role, turn, content], content null where the policy spoke; null for one prompt, one response. */
rlhf.talk = async function (episodes, number) {
  const talk = await rlhf.json("talk-" + Math.floor(number / episodes.per_block));
  return talk && talk[number % episodes.per_block];
};

/** Three digits and a real minus; a dash for what is not known. */
rlhf.number = function (value, signed) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "\u2013";
  const size = Math.abs(value);
  let text = size >= 999.5 ? value.toFixed(0) : size !== 0 && size < 0.001 ? value.toExponential(1) : String(+value.toPrecision(3));
  text = text.replaceAll("-", "\u2212");
  return signed && value > 0 ? "+" + text : text;
};

/** An element; texts are always text, never markup. */
rlhf.element = function (tag, options, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options || {})) {
    if (name === "text") made.textContent = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children);
  return made;
};
