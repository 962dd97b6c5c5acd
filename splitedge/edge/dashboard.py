"""The dashboards: pages without any outside resource, drawn in the browser from `/status` and `/records`.

Everything that came from a request or the network is put in as text, never as markup.
"""

from __future__ import annotations

from string import Template

#: What a page is sent with: nothing but its own inline script and style, and requests to its own origin.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

_STYLE = """:root { color-scheme: light dark; --ink: #1c2733; --dim: #5d6b7a; --line: #d5dce3; --paper: #fff;
        --ok: #1a7f4b; --bad: #b3261e; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9ee; --dim: #93a1af; --line: #33404d; --paper: #12181f; --ok: #4cc38a;
          --bad: #ff8a80; } }
body { font: 15px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       margin: 0 auto; padding: 1.2rem; max-width: 70rem; }
h1 { font-size: 1.2rem; margin: 0 0 .2rem; } h2 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p { margin: 0; } .dim { color: var(--dim); } .ok { color: var(--ok); } .bad { color: var(--bad); }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .8rem;
     margin: 1rem 0; }
dt { color: var(--dim); font-size: .85rem; } dd { margin: 0; font-size: 1.25rem; }
svg { width: 100%; height: 9rem; display: block; border-bottom: 1px solid var(--line); }
.legend span { margin-right: 1rem; white-space: nowrap; }
.legend i { display: inline-block; width: .8em; height: .8em; margin-right: .35em; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--line);
         vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.ends { display: flex; justify-content: space-between; font-size: .85rem; }
@media (max-width: 45rem) {  /* the reason on a line of its own below its request */
  thead { display: none; } tr { display: grid; grid-template-columns: 3.5rem 1fr auto;
    border-bottom: 1px solid var(--line); padding: .3rem 0; }
  td { border: 0; padding: 0 .5rem 0 0; } td.more { display: none; } td.why { grid-column: 1 / -1; } }
"""

_SCRIPT = """
const at = id => document.getElementById(id);
function node(tag, text, kind) {
  const e = document.createElement(tag);
  if (text !== undefined) e.textContent = text;
  if (kind) e.className = kind;
  return e;
}
const ms = s => s === null ? "–" : (s * 1000).toFixed(s < 0.1 ? 1 : 0) + " ms";
const rate = b => b === null ? "–"
  : b >= 1e6 ? (b / 1e6).toFixed(1) + " Mbit/s" : (b / 1e3).toFixed(0) + " kbit/s";
const part = p => p === null ? "–" : (p * 100).toFixed(1) + " %";
async function get(path) {
  const answer = await fetch(path, {cache: "no-store"});
  if (!answer.ok) throw new Error(path + " answered " + answer.status);
  return answer.json();
}
"""


_FRAME = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>splitedge</title>
<style>
$style</style>
</head>
<body>
$body
<noscript>This page draws itself with JavaScript; the same is in /status, /records and /metrics.</noscript>
<script>
"use strict";
$common
$script</script>
</body>
</html>
"""


def page(body: str, script: str) -> str:
    """A page.

    Args:
        body: what is shown.
        script: what fills it in, from `node`, `at`, `get` and the formats that all pages have.
    """
    return Template(_FRAME).substitute(
        style=_STYLE, body=body.strip(), common=_SCRIPT.strip(), script=script.lstrip()
    )


PAGE = page(
    """<h1 id="name">splitedge</h1>
<p id="link" class="dim" role="status">loading</p>
<dl id="figures"></dl>
<h2>Routes over the last five minutes</h2>
<svg id="routes" viewBox="0 0 600 120" preserveAspectRatio="none" role="img"
     aria-label="Requests by route, one bar for five seconds"></svg>
<p class="ends dim"><span>5 min ago</span><span>now</span></p>
<p id="legend" class="legend dim"></p>
<h2>Last decisions</h2>
<div class="scroll"><table>
<thead><tr><th>request</th><th>route</th><th class="n">latency</th><th class="n">bytes up</th>
<th class="n">confidence</th><th>why</th></tr></thead>
<tbody id="rows"></tbody></table></div>
""",
    """
const colours = {local: "#7a8794", exit: "#c58a1b", split: "#2a72c3", cloud: "#7d4cc4", error: "#b3261e"};
function figures(s) {
  const r = s.requests;
  const all = [["p50", ms(r.p50_s)], ["p95", ms(r.p95_s)], ["deadlines met", part(r.met)],
    ["in flight", s.in_flight], ["degraded", r.degraded + " of " + r.kept], ["errors", r.errors],
    ["goodput (mean)", rate(s.link.goodput_bps[0])], ["goodput (10th pct.)", rate(s.link.goodput_bps[1])],
    ["RTT (mean)", ms(s.link.rtt_s[0])], ["circuit", s.link.circuit]];
  if (s.battery !== null) all.push(["battery", part(s.battery)]);
  at("figures").replaceChildren(...all.map(([k, v]) => {
    const d = node("div"); d.append(node("dt", k), node("dd", v)); return d; }));
}
function bars(routes) {
  const sums = routes.counts.map(c => Object.values(c).reduce((a, b) => a + b, 0));
  const top = Math.max(1, ...sums), w = 600 / routes.counts.length, out = [];
  routes.counts.forEach((c, i) => {
    let y = 120;
    for (const name of Object.keys(colours)) {
      const h = 118 * (c[name] || 0) / top;
      if (!h) continue;
      const r = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      y -= h;
      const shape = {x: i * w + 0.5, y: y, width: w - 1, height: h, fill: colours[name]};
      for (const [k, v] of Object.entries(shape)) r.setAttribute(k, v);
      out.push(r);
    }
  });
  at("routes").replaceChildren(...out);
  at("legend").replaceChildren(...Object.entries(colours).map(([name, colour]) => {
    const s = node("span"), i = node("i"); i.style.background = colour; s.append(i, name); return s; }),
    node("span", "highest bar: " + top + " requests in " + routes.bucket_s + " s"));
}
function row(r) {
  const tr = node("tr"), c = r.confidence;
  tr.append(node("td", r.request), node("td", r.option || r.error, r.error ? "bad" : ""),
    node("td", ms(r.latency_s), "n"), node("td", r.bytes_up, "n more"),
    node("td", c === null ? "–" : c.toFixed(3), "n more"),
    node("td", (r.degraded ? "degraded: " : "") + r.reason, "why"));
  return tr;
}
async function draw() {
  try {
    const [s, records] = await Promise.all([get("status"), get("records?count=25")]);
    at("name").textContent = "splitedge: " + s.model + (s.draining ? " (shutting down)" : "");
    at("link").textContent = s.link.up ? "Cloud connected" : "No cloud: " + s.link.reason;
    at("link").className = s.link.up ? "ok" : s.link.configured ? "bad" : "dim";
    figures(s); bars(s.routes);
    at("rows").replaceChildren(...records.records.map(row));
  } catch (e) {
    at("link").textContent = "The daemon does not answer: " + e.message;
    at("link").className = "bad";
  }
  setTimeout(draw, document.hidden ? 10000 : 2000);
}
draw();
""",
)
