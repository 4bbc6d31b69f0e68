// The JSON interface, as functions. An error is an Error whose message can be shown.

async function json(promise) {
  let response;
  try {
    response = await promise;
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not respond. Is it still running?");
  }
  if (response.ok) return response.json();
  const problem = await response.json().catch(() => ({}));
  const error = new Error(sentence(problem.detail || `The server responds with status ${response.status}.`));
  error.status = response.status;
  error.wait = Number(response.headers.get("Retry-After")) || 0;
  throw error;
}

function sentence(text) {
  return text[0].toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

const get = (path) => json(fetch(path));

export const collection = () => get("api/collection");
export const map = () => get("api/map");

export function search(files, options, signal) {
  const body = new FormData();
  for (const file of files) body.append("file", file, "picture");
  body.append("options", JSON.stringify(options));
  return json(fetch("api/search", { method: "POST", body, signal }));
}

export function explain(search, answer) {
  return json(fetch("api/explain", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ search, answer }),
  }));
}

export const image = (id, size, version) => `api/image/${id}?v=${version}&size=${size}`;
