// What AgentHub's reference documents in JavaScript, against BASE with KEY: one JSON line for each step.
import { createRequire } from "node:module";

// The documented `headers` option is that of the package's versions before 3.
const EventSource = createRequire(import.meta.url)("eventsource-2");
const [base, key, organization, instance] = process.argv.slice(2);
const say = (step, value) => console.log(JSON.stringify({ step, value }));

const listed = await fetch(`${base}/instances/by_org_id/${organization}`, { headers: { Authorization: `Bearer ${key}` } });
say("list", await listed.json());

const response = await fetch(`${base}/instances/${organization}/${instance}/exec`, {
  method: "POST",
  headers: { Authorization: `Bearer ${key}`, "Content-Type": "application/json" },
  body: JSON.stringify(["python3", "--version"]),
});
say("exec", await response.text());

const eventSource = new EventSource(`${base}/instances/${organization}/${instance}/logs?follow=true`, {
  headers: { Authorization: `Bearer ${key}` },
});
eventSource.onopen = () => say("open", null);
eventSource.onmessage = (event) => {
  const logEntry = JSON.parse(event.data);
  say("log", `[${logEntry.level}] ${logEntry.message}`);
  if (logEntry.message.includes("the last line")) {
    eventSource.close();
  }
};
