"""The dashboard of an edge that writes texts; see `dashboard`."""

from __future__ import annotations

from splitedge.edge.dashboard import page

PAGE = page(
    """<h1 id="name">splitedge</h1>
<p id="link" class="dim" role="status">loading</p>
<dl id="figures"></dl>
<h2>Tokens of the last texts, the newest on the right</h2>
<svg id="texts" viewBox="0 0 600 120" preserveAspectRatio="none" role="img"
     aria-label="Tokens by who decided them, one bar a text"></svg>
<p id="legend" class="legend dim"></p>
<h2>Last texts</h2>
<div class="scroll"><table>
<thead><tr><th>mode</th><th class="n">tokens</th><th class="n">first token</th><th class="n">a token</th>
<th class="n">bytes up</th><th>why</th></tr></thead>
<tbody id="rows"></tbody></table></div>
""",
    """const colours = {device: "#7a8794", "drafts found right": "#2a72c3", cloud: "#7d4cc4"};
const sum = (rows, key) => rows.reduce((a, r) => a + (r[key] || 0), 0);
function middle(rows, key) {
  const v = rows.map(r => r[key]).filter(x => x !== null).sort((a, b) => a - b);
  return v.length ? v[Math.floor(v.length / 2)] : null;
}
function figures(s, rows) {
  const written = sum(rows, "tokens"), judged = sum(rows, "proposed");
  const each = (key, digits) => written ? (sum(rows, key) / written).toFixed(digits) : "–";
  const all = [["TTFT (median)", ms(middle(rows, "ttft_s"))], ["TPOT (median)", ms(middle(rows, "tpot_s"))],
    ["being written", s.in_flight], ["failed", rows.filter(r => r.error).length + " of " + rows.length],
    ["degraded", rows.filter(r => r.degraded).length + " of " + rows.length],
    ["tokens by the cloud", written ? part(sum(rows, "cloud_tokens") / written) : "–"],
    ["drafts found right", judged ? part(sum(rows, "accepted") / judged) : "–"],
    ["bytes up a token", each("bytes_up", 0)], ["joules a token", each("energy_j", 3)],
    ["a token by the device", ms(s.draft_s === null ? s.head_s : s.draft_s)]];
  at("figures").replaceChildren(...all.map(([k, v]) => {
    const d = node("div"); d.append(node("dt", k), node("dd", v)); return d; }));
}
function bars(rows) {
  const shown = rows.slice(0, 60).reverse(), out = [];
  const top = Math.max(1, ...shown.map(r => r.tokens)), w = 600 / Math.max(20, shown.length);
  shown.forEach((r, i) => {
    const kinds = [Math.max(0, r.tokens - r.accepted - r.cloud_tokens), r.accepted, r.cloud_tokens];
    let y = 120;
    Object.values(colours).forEach((colour, k) => {
      const h = 118 * Math.min(kinds[k], r.tokens) / top;
      if (!h) return;
      const e = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      y -= h;
      const shape = {x: 600 - (shown.length - i) * w + 0.5, y: y, width: w - 1, height: h, fill: colour};
      for (const [name, v] of Object.entries(shape)) e.setAttribute(name, v);
      out.push(e);
    });
  });
  at("texts").replaceChildren(...out);
  at("legend").replaceChildren(...Object.entries(colours).map(([name, colour]) => {
    const s = node("span"), i = node("i"); i.style.background = colour; s.append(i, name); return s; }),
    node("span", "highest bar: " + top + " tokens"));
}
function row(r) {
  const tr = node("tr");
  tr.append(node("td", r.error || r.mode, r.error ? "bad" : ""), node("td", r.tokens, "n"),
    node("td", ms(r.ttft_s), "n"), node("td", ms(r.tpot_s), "n more"), node("td", r.bytes_up, "n more"),
    node("td", (r.degraded ? "degraded: " + r.reason + "; " : "") + r.why, "why"));
  return tr;
}
async function draw() {
  try {
    const [s, records] = await Promise.all([get("status"), get("records?count=100")]);
    const rows = records.records;
    at("name").textContent = "splitedge: " + s.model + (s.draining ? " (shutting down)" : "");
    at("link").textContent = s.cloud.up ? "Cloud connected" : "No cloud: " + s.cloud.reason;
    at("link").className = s.cloud.up ? "ok" : s.cloud.configured ? "bad" : "dim";
    figures(s, rows); bars(rows);
    at("rows").replaceChildren(...rows.slice(0, 25).map(row));
  } catch (e) {
    at("link").textContent = "The daemon does not answer: " + e.message;
    at("link").className = "bad";
  }
  setTimeout(draw, document.hidden ? 10000 : 2000);
}
draw();
""",
)
