// Talk to the server: one streamed answer, the model's facts, a map as a file.

export class Wrong extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

function headers(key) {
  return {"Content-Type": "application/json", ...(key ? {Authorization: `Bearer ${key}`} : {})};
}

async function checked(response) {
  if (response.ok) return response;
  let message = `the server answered ${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch { /* no JSON: the status says enough */ }
  throw new Wrong(response.status, message);
}

/** The model this server has. */
export async function model(key) {
  return (await (await checked(await fetch("v1/models", {headers: headers(key)}))).json()).data[0];
}

/** The map of a conversation, as a Blob. */
export async function map(body, key) {
  const options = {method: "POST", headers: headers(key), body: JSON.stringify(body)};
  return (await checked(await fetch("v1/depth/map", options))).blob();
}

/** Server-sent events of one answer: each chunk as an object. Throws Wrong for what the server refuses. */
export async function* answer(path, body, key, signal) {
  const options = {method: "POST", headers: headers(key), body: JSON.stringify(body), signal};
  const reader = (await checked(await fetch(path, options))).body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  while (true) {
    const {done, value} = await reader.read();
    if (done) throw new Wrong(0, "the connection ended before the answer did");
    const events = (rest + decoder.decode(value, {stream: true})).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Wrong(500, chunk.error.message);
      yield chunk;
    }
  }
}
