// What the two dials ask of a model, and what that is called.

/** The budget of the next answer; null is the model as it was trained: nobody moved the dial, or there is no curve to
    move it along. */
export function chosen(facts, moved, value) {
  return facts.floor === null || !moved ? facts.budget : value;
}

/** {title, says}: of an answer, and beside the dial. */
export function named(budget, facts) {
  if (budget === null) return {title: "As trained", says: ["as trained", "the routers decide, without a budget"]};
  if (budget === 1) return facts.own ? {title: "All layers", says: ["1.00", "every layer for every token"]}
    : {title: "Dense", says: ["1.00", "the untouched base"]};
  return {title: `Adaptive, budget ${budget.toFixed(2)}`, says: [budget.toFixed(2), "of the dense cost, on the mean"]};
}

/** How a prompt can be read, {value, says}, the server's own way first; one entry where there is no choice. */
export function readings(facts) {
  const own = facts.prompt_budget, fixed = facts.prompt_floor === null || (facts.floor === null && facts.budget === 1);
  return (fixed ? [own] : [own, ...[1, "same"].filter(value => value !== own)]).map(value => ({value, says: readAt(value)}));
}

/** What a prompt budget is called. */
export function readAt(value) {
  return value === 1 ? "read in full" : value === "same" ? "as the answer" : `read at ${value.toFixed(2)}`;
}
