// The first view: figures of the whole data set, and plots that lead to the clips behind them.

function figure(value, label, note = '') {
  return h('div.figure-card', {}, h('div.value', {}, value), h('div.label', {}, label), h('div.soft', {}, note));
}

function panel(title, note, ...children) {
  return h('div.panel', {}, h('h2', {}, title, note && h('span.soft', {}, note)), children);
}

// `rows` are those that the filters in `wanted` let pass.
function rangePanel(title, column, rows = null, wanted = {}) {
  const onrange = (low, high) => showClips({ ...wanted, ranges: [{ column, low, high, halfOpen: true }] });
  return panel(title, '', histogram(column, { rows, onrange }));
}

function identityPanel() {
  const groups = groupRows('identity_id');
  const bounds = [1, 2, 3, 5, 9, 17, 33, 65, 129, 257, Infinity];
  const items = [];
  for (let k = 0; k + 1 < bounds.length; k++) {
    const inside = groups.filter(({ rows }) => rows.length >= bounds[k] && rows.length < bounds[k + 1]);
    const last = bounds[k + 1] - 1;
    const name = last === bounds[k] ? plural(last, 'clip') : Number.isFinite(last) ? `${bounds[k]}–${last} clips` : `${bounds[k]} and more`;
    items.push({ name, value: inside.length, note: '', onclick: () => showIdentities(bounds[k]) });
  }
  while (items.length > 3 && !items.at(-1).value) items.pop();
  return panel('Identities by number of clips', '', namedBars(items));
}

const REASON_OF = { source: 'source not usable', track: 'face in no clip', index: 'index', scan: 'scan', crop: 'crop', pack: 'pack' };

function reasonPanels(reasons) {
  const ofClips = reasons.filter((reason) => reason.what === 'clip');
  const others = reasons.filter((reason) => reason.what !== 'clip');
  const bars = (items) => namedBars(items.map((r) => ({
    name: r.what === 'clip' ? ruleName(r.reason) : `${ruleName(r.reason)} · ${REASON_OF[r.what] ?? r.what}`,
    value: r.num,
    note: r.hours === null ? '' : formatHours(r.hours),
    title: r.examples.join('\n'),
    kind: 'rejected',
    onclick: r.what === 'clip' ? () => showClips({ rule: r.reason }) : null,
  })));
  const nothing = h('p.soft.empty', {}, 'Nothing.');
  return [
    panel('Why clips were rejected', 'a clip may fail several rules', ofClips.length ? bars(ofClips) : nothing),
    panel('What became no clip', 'sources and faces', others.length ? bars(others) : nothing),
  ];
}

function figuresTable(heading, rows, action) {
  const body = rows.map((row) => {
    const link = shortened('button.link', row.label);
    link.addEventListener('click', () => action(row));
    return h('tr', {}, h('td', {}, link), row.cells.map((cell) => h('td.number', {}, cell)));
  });
  return h('table', {}, h('thead', {}, h('tr', {}, heading.map((name, k) => h(k ? 'th.number' : 'th', {}, name)))), h('tbody', {}, body));
}

function buildOverview() {
  const { sources: from, clips: all, shards, splits, licences, reasons } = content.totals;
  const videos = [];
  const kept = [];
  for (let row = 0; row < clips.numRows; row++) {
    if (clips.text('kind', row) === 'video') videos.push(row);
    if (isKept[row]) kept.push(row);
  }
  const poseRows = kept.length ? kept : Array.from({ length: clips.numRows }, (_, row) => row);
  const hasWeights = kept.some((row) => !Number.isNaN(clips.number('weight', row)));
  fill(byId('overview'),
    h('div.figures', {},
      figure(formatCount(all.kept), 'clips kept', `of ${plural(all.num, 'candidate')}`),
      figure(formatHours(all.kept_hours), 'kept', `of ${formatHours(all.hours)} cropped`),
      figure(formatCount(all.kept_frames), 'frames', `in ${plural(shards.num, 'shard')}, ${formatBytes(shards.bytes)}`),
      figure(formatCount(all.kept_identities), 'identities', `of ${formatCount(all.identities)} seen`),
      figure(formatCount(all.kept_sources), 'sources used', `of ${formatCount(from.ok)} usable, ${formatCount(from.num)} listed`)),
    h('p.legend.soft', {}, h('span.swatch.kept'), 'kept', h('span.swatch.rejected'), 'rejected',
      h('span', {}, 'bars and cells lead to their clips'), h('span.end', {}, `recipe ${content.recipe_hash}, analyser ${content.analyser}`)),
    h('div.panels', {},
      panel('Head pose', kept.length ? 'kept clips, mean of each' : 'all clips, mean of each', poseMap(poseRows, (yaw, pitch) => showClips({
        decision: kept.length ? 'keep' : '',
        ranges: [['yaw_deg', yaw], ['pitch_deg', pitch]].map(([column, [low, high]]) => ({ column, low, high, halfOpen: true })),
      }))),
      rangePanel('Duration of videos', 'duration_s', videos, { kind: 'video' }),
      rangePanel('Height of the face in the source', 'face_height_median_px'),
      rangePanel('Sharpness', 'sharpness'),
      identityPanel(),
      h('div.panel', {},
        h('h2', {}, 'Splits', h('span.soft', {}, 'kept clips')),
        figuresTable(['split', 'clips', 'time', 'frames', 'identities'], splits.map((s) => ({
          label: s.name ?? 'none',
          name: s.name,
          cells: [formatCount(s.clips), formatHours(s.hours), formatCount(s.frames), formatCount(s.identities)],
        })), (row) => showClips({ split: row.name ?? '', decision: 'keep' })),
        h('h2.second', {}, 'Licences', h('span.soft', {}, 'kept clips')),
        figuresTable(['licence', 'clips', 'time', 'candidates'], licences.map((l) => ({
          label: l.name || 'not stated',
          name: l.name || NOT_STATED,
          cells: [formatCount(l.clips), formatHours(l.hours), formatCount(l.candidates)],
        })), (row) => showClips({ licence: row.name })),
        all.licences > licences.length && h('p.soft.more', {}, `and ${formatCount(all.licences - licences.length)} more: `,
          h('code', {}, `python -m manifests ${quoteForShell(content.folder)} licences`))),
      reasonPanels(reasons),
      hasWeights ? rangePanel('Sampling weight', 'weight', kept, { decision: 'keep' }) : rangePanel('Exposure', 'exposure')));
}
