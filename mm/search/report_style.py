"""The look of mm's HTML pages: one style sheet, light and dark, for narrow and wide windows."""

from __future__ import annotations

STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f5f2; --card: #ffffff; --ink: #1d1d1f; --soft: #6b6a67; --line: #e3e1dc;
  --accent: #0b6e6e; --accent-soft: #d5ebe9; --well: #ecebe7;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #141516; --card: #1f2123; --ink: #ececea; --soft: #a2a19d; --line: #34373a;
    --accent: #5cc8c2; --accent-soft: #1d3f40; --well: #2a2c2f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; max-width: 1280px; padding: 2.5rem clamp(1rem, 4vw, 3rem) 4rem;
  background: var(--page); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "Noto Sans CJK SC", "PingFang SC",
    "Microsoft YaHei", sans-serif;
  overflow-wrap: anywhere;
}
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .35rem; letter-spacing: -.015em; }
h2 { font-size: 1.25rem; margin: 3rem 0 1rem; }
h3 { font-size: 1rem; margin: 0; }
.lead { color: var(--soft); margin: 0 0 1.75rem; }
.lead strong { color: var(--ink); font-weight: 600; }
.grid { display: grid; gap: 1.1rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 250px), 1fr)); }
.strip { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(min(46%, 210px), 1fr)); }
.card { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 12px; overflow: hidden; }
.frame { position: relative; aspect-ratio: 4 / 3; background: var(--well); }
.frame img { position: absolute; inset: 0; width: 100%; height: 100%; object-fit: contain; display: block; }
.body { padding: .75rem .9rem .95rem; }
.strip .body { padding: .5rem .65rem .6rem; }
.name { display: flex; gap: .6rem; justify-content: space-between; align-items: baseline; color: var(--soft);
  font-size: .82rem; }
.name span:first-child { min-width: 0; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.rank { font-weight: 650; color: var(--accent); }
.number { font-variant-numeric: tabular-nums; color: var(--soft); font-size: .82rem; white-space: nowrap; }
ul.captions { list-style: none; margin: .55rem 0 0; padding: 0; display: grid; gap: .5rem; }
ul.captions li { display: grid; grid-template-columns: auto 1fr auto; gap: .55rem; align-items: baseline; }
.strip ul.captions { font-size: .82rem; gap: .3rem; }
.tag { font-size: .7rem; font-weight: 650; letter-spacing: .03em; padding: .05rem .38rem; border-radius: 5px;
  background: var(--accent-soft); color: var(--accent); }
.query { display: flex; flex-wrap: wrap; align-items: center; gap: .8rem; margin: 1.6rem 0 .8rem; }
.query img { width: 76px; height: 57px; object-fit: cover; border-radius: 8px; border: 2px solid var(--accent); }
.query .text { font-size: 1.08rem; font-weight: 600; }
.match { display: grid; gap: 1.3rem; grid-template-columns: minmax(130px, 210px) minmax(0, 1fr); align-items: start;
  margin-bottom: 1.3rem; }
@media (max-width: 560px) { .match { grid-template-columns: minmax(0, 1fr); } }
table { width: 100%; border-collapse: collapse; }
th { text-align: left; color: var(--soft); font-size: .8rem; font-weight: 600; padding: 0 .6rem .4rem 0; }
td { border-top: 1px solid var(--line); padding: .55rem .6rem .55rem 0; vertical-align: middle; }
th:last-child, td:last-child { width: 40%; padding-right: 0; }
tr.best td:first-child { font-weight: 650; }
.meter { display: grid; grid-template-columns: minmax(0, 1fr) 3.6rem; gap: .6rem; align-items: center; }
.meter .number { text-align: right; }
.track { height: .6rem; border-radius: .3rem; background: var(--well); overflow: hidden; }
.fill { height: 100%; border-radius: .3rem; background: var(--accent); opacity: .45; }
tr.best .fill { opacity: 1; }
.none { color: var(--soft); }
footer { margin-top: 3.5rem; padding-top: 1rem; border-top: 1px solid var(--line); color: var(--soft);
  font-size: .82rem; }
@media print { body { background: none; } .card, .match { break-inside: avoid; } }
"""
