// Small plots drawn as SVG. Bars stretch with their box; words around them are HTML and do not.

// Edges of about `target` bins of round width over all but the outermost half percent of the values.
function roundBins(values, target) {
  const known = values.filter((value) => Number.isFinite(value)).sort();
  if (!known.length) return null;
  let low = known[Math.floor(known.length * 0.005)], high = known[Math.ceil(known.length * 0.995) - 1];
  if (low === high) { low -= Math.abs(low) * 0.1; high += Math.abs(high) * 0.1 || 1; }
  const rough = (high - low) / target;
  const power = 10 ** Math.floor(Math.log10(rough));
  const width = power * [1, 2, 5, 10].find((step) => step * power >= rough);
  const first = Math.floor(low / width), last = Math.ceil(high / width - 1e-4);
  const tidy = (value) => Number(value.toPrecision(10));
  return { low: tidy(first * width), high: tidy(last * width), width: tidy(width), num: Math.max(1, last - first) };
}

// The lower edge of a bin.
const edgeOf = (bins, k) => Number((bins.low + k * bins.width).toPrecision(10));

// A bin or cell in words; null: no bound.
function rangeName(low, high, inWords) {
  if (low === null) return high === null ? 'all' : `below ${inWords(high)}`;
  return high === null ? `${inWords(low)} and more` : `${inWords(low)} to ${inWords(high)}`;
}

// Counts of kept and of rejected clips in each bin; what lies outside is counted in the outermost ones.
function countBins(values, bins, rows = null) {
  const kept = new Uint32Array(bins.num), rejected = new Uint32Array(bins.num);
  const count = rows ? rows.length : values.length;
  for (let k = 0; k < count; k++) {
    const row = rows ? rows[k] : k;
    const value = values[row];
    if (Number.isNaN(value)) continue;
    let bin = Math.min(bins.num - 1, Math.max(0, Math.floor((value - bins.low) / bins.width + 1e-9)));
    if (bin && value < edgeOf(bins, bin)) bin--;
    (isKept[row] ? kept : rejected)[bin]++;
  }
  return { kept, rejected };
}

// Stacked bars, kept below rejected. `onbar(bin)` makes them buttons.
function stackedBars(kept, rejected, labelOf, onbar = null) {
  const num = kept.length;
  let top = 1;
  for (let k = 0; k < num; k++) top = Math.max(top, kept[k] + rejected[k]);
  const svg = h('svg.bars', { viewBox: `0 0 ${num} 100`, preserveAspectRatio: 'none', 'aria-hidden': 'true' });
  for (let k = 0; k < num; k++) {
    const total = kept[k] + rejected[k];
    if (!total) continue;
    const low = (kept[k] / top) * 100, all = Math.max((total / top) * 100, 0.8);
    const group = h('g.bar', {}, h('title', {}, `${labelOf(k)}: ${formatCount(kept[k])} kept, ${formatCount(rejected[k])} rejected`));
    if (onbar) { group.classList.add('link'); group.addEventListener('click', () => onbar(k)); }
    group.append(h('rect.hit', { x: k, y: 0, width: 1, height: 100 }));
    if (rejected[k]) group.append(h('rect.rejected', { x: k + 0.06, y: 100 - all, width: 0.88, height: all - low }));
    if (kept[k]) group.append(h('rect.kept', { x: k + 0.06, y: 100 - low, width: 0.88, height: low }));
    svg.append(group);
  }
  return { svg, top };
}

function axis(bins, column) {
  const middle = bins.low + bins.width * Math.round(bins.num / 2);
  return h('div.axis', {}, ...[bins.low, middle, bins.high].map((v) => h('span', {}, formatMeasure(column, v))));
}

// A histogram of one measure of all clips (or of `rows`), whose bars lead to the clips in them.
function histogram(column, { target = 36, rows = null, onrange = null } = {}) {
  const values = clips.columns[column];
  const bins = roundBins(rows ? Float64Array.from(rows, (row) => values[row]) : values, target);
  if (!bins) return h('p.soft.empty', {}, 'Not measured in this data set.');
  const { kept, rejected } = countBins(values, bins, rows);
  const range = (k) => [k === 0 ? null : edgeOf(bins, k), k === bins.num - 1 ? null : edgeOf(bins, k + 1)];
  const label = (k) => rangeName(...range(k), (value) => formatMeasure(column, value));
  const onbar = onrange && ((k) => onrange(...range(k)));
  const { svg, top } = stackedBars(kept, rejected, label, onbar);
  const box = h('div.plot', { role: 'img', 'aria-label': `Histogram of ${nameAndUnit(column)[0]}, largest bin ${top} clips` });
  add(box, [h('span.top', {}, formatCount(top)), svg, axis(bins, column)]);
  return box;
}

// Bars with their names beside them: [{name, value, note, title, onclick, kind}].
function namedBars(items) {
  const top = Math.max(...items.map((item) => item.value), 1);
  return h('div.named-bars', {}, items.map((item) => {
    const bar = h('span.track', {}, h('span.fill', { style: { width: `${Math.max((item.value / top) * 100, 0.6)}%` } }));
    if (item.kind) bar.classList.add(item.kind);
    const parts = [h('span.label', {}, item.name), bar, h('span.figure', {}, formatCount(item.value)), h('span.soft.note', {}, item.note ?? '')];
    const title = item.title ?? '';
    return item.onclick ? h('button.row', { type: 'button', title, onclick: item.onclick }, parts) : h('div.row', { title }, parts);
  }));
}

// Clips by where they look: yaw from left to right, pitch from bottom to top, 5 degrees a cell; the outer ones hold all beyond.
function poseMap(rows, oncell) {
  const yaw = clips.columns.yaw_deg, pitch = clips.columns.pitch_deg;
  const step = 5, limits = { yaw: 75, pitch: 50 };
  const wide = (2 * limits.yaw) / step, high = (2 * limits.pitch) / step;
  const counts = new Uint32Array(wide * high);
  const place = (value, limit, num) => Math.min(num - 1, Math.max(0, Math.floor((value + limit) / step)));
  let top = 1;
  for (const row of rows) {
    if (Number.isNaN(yaw[row]) || Number.isNaN(pitch[row])) continue;
    const cell = place(pitch[row], limits.pitch, high) * wide + place(yaw[row], limits.yaw, wide);
    top = Math.max(top, ++counts[cell]);
  }
  const svg = h('svg.heat', { viewBox: `0 0 ${wide} ${high}`, preserveAspectRatio: 'none', 'aria-hidden': 'true' });
  svg.append(h('line.cross', { x1: wide / 2, x2: wide / 2, y1: 0, y2: high }), h('line.cross', { x1: 0, x2: wide, y1: high / 2, y2: high / 2 }));
  counts.forEach((count, cell) => {
    if (!count) return;
    const x = cell % wide, y = Math.floor(cell / wide);
    const range = (k, num, limit) => [k === 0 ? null : k * step - limit, k === num - 1 ? null : (k + 1) * step - limit];
    const ranges = [range(x, wide, limits.yaw), range(y, high, limits.pitch)];
    const [yawName, pitchName] = ranges.map(([from, to]) => rangeName(from, to, (value) => `${value}°`));
    const rect = h('rect.link', { x: x + 0.04, y: high - 1 - y + 0.04, width: 0.92, height: 0.92, rx: 0.12, 'fill-opacity': (0.12 + 0.88 * Math.sqrt(count / top)).toFixed(3) });
    rect.append(h('title', {}, `yaw ${yawName}, pitch ${pitchName}: ${plural(count, 'clip')}`));
    rect.addEventListener('click', () => oncell(...ranges));
    svg.append(rect);
  });
  return h('div.plot.pose', { role: 'img', 'aria-label': `Map of head poses, fullest cell ${top} clips` },
    h('span.high', {}, `pitch ${limits.pitch}°`), svg, h('span.low', {}, `−${limits.pitch}°`),
    h('div.axis', {}, h('span', {}, `−${limits.yaw}°`), h('span', {}, 'yaw 0°'), h('span', {}, `${limits.yaw}°`)));
}
