// The page: the conversation, the two dials, and what is asked of the server.

import {chosen, named, readings} from "./dial.js";
import {Card, Pane} from "./pane.js";
import {Ramp} from "./ramp.js";
import {answer, map, model} from "./stream.js";

const at = id => document.getElementById(id);
const card = new Card(at("card"), at("says"));
const turns = [];
let facts, ramp, ways = [], moved = false, running = null;

const key = () => at("key").value.trim();
/** How the prompt is to be read; the first way is the server's own. */
const readingNow = () => ways[at("reading").selectedIndex];
const budgetNow = () => chosen(facts, moved, Number(at("budget").value));

async function connect() {
  try {
    const found = await model(key());
    facts = {...found.depth, id: found.id};
    at("length").max = found.max_tokens;
    at("length").value = Math.min(at("length").value, found.max_tokens);
  } catch (error) {
    at("model").textContent = error.status === 401 ? "this server wants an API key (Options)" : error.message;
    if (error.status === 401) {
      at("options").open = true;
      at("key").focus();
    } else setTimeout(connect, 2000);
    return;
  }
  ramp = new Ramp(facts.always_on, facts.layers);
  at("model").textContent = `${facts.id} · ${facts.layers} layers, ${facts.always_on} of them always on`;
  at("least").textContent = `${facts.always_on} layers`;
  at("most").textContent = facts.layers;
  const depths = Array.from({length: facts.layers - facts.always_on + 1}, (_, i) => facts.always_on + i);
  at("ramp").replaceChildren(...depths.map(depth => {
    const step = document.createElement("i");
    step.style.backgroundColor = ramp.of(depth).paper;
    return step;
  }));
  const dial = at("budget");
  dial.disabled = facts.floor === null;
  dial.min = facts.floor === null ? 1 : Math.ceil(facts.floor * 100) / 100;
  dial.value = facts.budget ?? 1;
  ways = readings(facts);
  at("reading").replaceChildren(...ways.map(way => new Option(way.says)));
  at("reading").disabled = ways.length === 1;
  moved = false;
  turned();
}

function turned() {
  if (!facts) return;
  const says = at("lossless").checked ? ["lossless", "the text of all layers, drafted"] : named(budgetNow(), facts).says;
  const strong = document.createElement("b");
  strong.textContent = says[0];
  at("dial-says").replaceChildren(strong, ` ${says[1]}`);
  at("reading").disabled = ways.length === 1 || at("lossless").checked;
}

function messages() {
  const system = at("system").value.trim();
  const told = turns.flatMap(turn => [{role: "user", content: turn.question}, {role: "assistant", content: turn.pane.said}]);
  return [...(system ? [{role: "system", content: system}] : []), ...told];
}

async function fill(pane, body, signal) {
  const path = facts.chat ? "v1/chat/completions" : "v1/completions";
  let finish = null;
  try {
    for await (const chunk of answer(path, body, key(), signal)) {
      const choice = chunk.choices[0];
      if (chunk.usage) pane.read = chunk.usage.prompt_cost;
      if (!choice) continue;
      pane.add(choice.depth);
      finish = choice.finish_reason ?? finish;
      follow();
    }
    pane.end(finish === "length" ? "cut at its length" : "");
  } catch (error) {
    if (error.name === "AbortError") pane.end("stopped");
    else pane.fail(error.message);
    throw error;
  }
}

function follow() {
  const root = document.documentElement;
  if (root.scrollHeight - innerHeight - scrollY < 160) scrollTo(0, root.scrollHeight);
}

function laidOut(question, titles) {
  at("start").hidden = true;
  const turn = document.createElement("section"), asked = document.createElement("p"), panes = document.createElement("div");
  turn.className = "turn";
  asked.className = "question";
  asked.textContent = question;
  panes.className = titles.length > 1 ? "panes two" : "panes";
  const made = titles.map(title => new Pane(title, facts.layers, ramp, card));
  panes.append(...made.map(pane => pane.root));
  turn.append(asked, panes);
  at("talk").append(turn);
  scrollTo(0, document.documentElement.scrollHeight);
  return made;
}

async function ask(question) {
  const budget = budgetNow(), lossless = at("lossless").checked, compare = at("compare").checked;
  const seed = at("seed").value, temperature = at("temperature").value, text = [...messages(), {role: "user", content: question}];
  const common = {
    model: facts.id, stream: true, return_depth: true,
    ...(temperature === "" ? {} : {temperature: Number(temperature)}),
    max_tokens: Number(at("length").value), ...(seed === "" ? {} : {seed: Number(seed)}),
    ...(facts.chat ? {messages: text} : {prompt: question}),
  };
  const way = readingNow(), read = way === ways[0] ? {} : {prompt_budget: way.value};
  const dial = lossless ? {lossless: true} : {...(budget === null ? {} : {budget}), ...read};
  const name = lossless ? "Lossless" : named(budget, facts).title;
  const panes = laidOut(question, compare ? [name, named(1, facts).title] : [name]);
  running = new AbortController();
  busy(true);
  at("says").textContent = "Answering";
  try {
    await fill(panes[0], {...common, ...dial}, running.signal);
    // one after the other, so that neither slows the other down
    if (compare) await fill(panes[1], {...common, budget: 1, prompt_budget: "same"}, running.signal);
  } catch { /* the pane says it */ }
  const drawn = lossless ? {budget: 1, prompt_budget: "same"} : dial;  // on the dials of its last answer
  if (panes[0].tokens.length) turns.push({question, pane: panes[0], drawn});
  at("says").textContent = `${panes[0].said} ${panes[0].summary}`;
  running = null;
  busy(false);
}

function busy(on) {
  at("send").textContent = on ? "Stop" : "Send";
  for (const id of ["html", "parquet", "reset"]) at(id).disabled = on || !turns.length;
}

async function keep(format) {
  const last = turns.at(-1), title = turns[0].question.slice(0, 100);
  const body = {messages: messages(), ...last.drawn, format, title};
  at("says").textContent = "Drawing the map";
  try {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await map(body, key()));
    link.download = `depth-map.${format}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
    at("says").textContent = "The map is saved";
  } catch (error) {
    at("model").textContent = at("says").textContent = error.message;
  }
}

at("composer").addEventListener("submit", event => {
  event.preventDefault();
  const question = at("question").value.trim();
  if (running) running.abort();
  else if (question && facts) {
    at("question").value = "";
    ask(question);
  }
});
at("question").addEventListener("keydown", event => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  if (!running) at("composer").requestSubmit();
});
at("examples").addEventListener("click", event => {
  if (event.target.tagName !== "BUTTON") return;
  at("question").value = event.target.textContent;
  at("question").focus();
});
at("reset").addEventListener("click", () => {
  turns.length = 0;
  for (const turn of document.querySelectorAll(".turn")) turn.remove();
  at("start").hidden = false;
  busy(false);
  at("question").focus();
});
at("html").addEventListener("click", () => keep("html"));
at("parquet").addEventListener("click", () => keep("parquet"));
at("key").addEventListener("change", connect);
at("budget").addEventListener("input", () => { moved = true; });
for (const id of ["budget", "lossless"]) at(id).addEventListener("input", turned);
connect();
