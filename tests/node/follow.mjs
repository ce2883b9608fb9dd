// Follows event streams as a program under Node.js does, or a page in a browser, and prints what comes: one JSON object a line.
//
//   node follow.mjs node|browser URL TOKEN CHROMIUM FLAGS PATH...
//
// An event is {path, id, type}. The end that a 204 makes is {path, closed: true}. It ends with its standard input.

import { EventSource } from "eventsource";
import { chromium } from "playwright-core";

const [kind, url, token, executablePath, flags, ...paths] = process.argv.slice(2);
const say = (told) => process.stdout.write(JSON.stringify(told) + "\n");
process.stdin.on("end", () => process.exit(0)).resume();

function follow(Source, say, path, options) {
  const source = new Source(path, options);
  const name = path.replace(/^https?:\/\/[^/]*/, "");
  source.onmessage = (event) => say({ path: name, id: event.lastEventId, type: JSON.parse(event.data).type });
  source.onerror = () => {
    if (source.readyState === 2) say({ path: name, closed: true });
  };
}

if (kind === "node") {
  const authorized = (input, init) => fetch(input, { ...init, headers: { ...init.headers, Authorization: `Bearer ${token}` } });
  for (const path of paths) follow(EventSource, say, url + path, { fetch: authorized });
} else {
  const browser = await chromium.launch({ executablePath, args: JSON.parse(flags) });
  const page = await browser.newPage();
  await page.exposeFunction("say", say);
  await page.goto(`${url}/health`);
  const status = await page.evaluate(
    async (body) => (await fetch("/login", { method: "POST", body, headers: { "Content-Type": "application/json" } })).status,
    JSON.stringify({ token }),
  );
  if (status !== 200) throw new Error(`POST /login answered ${status}`);
  for (const path of paths) await page.evaluate(`(${follow})(EventSource, window.say, ${JSON.stringify(path)})`);
}
