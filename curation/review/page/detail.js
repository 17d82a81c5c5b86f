// Everything about one clip.

let openRow = -1;
let opener = null;

function rulesTable(row) {
  const failed = new Set(clips.text('failed_rules', row).split(' ').filter(Boolean));
  const lines = [];
  for (const rule of judge.rules) {
    const isOff = rule.kind === 'number' ? rule.initial === null : rule.kind === 'choice' ? !rule.initial.length : false;
    let value = '', threshold = '', allowed;
    if (rule.kind === 'number') {
      const measure = rule.measure.includes(' ') ? rule.option : rule.measure;
      value = formatMeasure(measure, rule.column[row]);
      const limit = isOff ? '' : formatMeasure(measure, rule.initial);
      if (value === limit && rule.column[row] !== rule.initial) value = String(Number(rule.column[row].toPrecision(6)));  // 119.97 of at least 120
      threshold = isOff ? 'off' : `${rule.compare === '>=' ? '≥' : '≤'} ${limit}`;
    } else if (rule.kind === 'choice') {
      value = rule.column.codes[row] < 0 ? '–' : rule.column.values[rule.column.codes[row]] || 'not stated';
      threshold = isOff ? 'any' : rule.initial.length > 1 ? `one of ${formatCount(rule.initial.length)}` : rule.initial[0];
      if (!isOff) allowed = rule.initial.join('\n');
    } else {
      threshold = rule.initial ? 'on' : 'off';
    }
    const verdict = failed.has(rule.name) ? h('span.bad', {}, 'fails') : isOff || value === '–' ? h('span.soft', {}, '·') : h('span.good', {}, 'passes');
    const words = rule.kind === 'choice' ? '.words' : '';
    lines.push(h(failed.has(rule.name) ? 'tr.failed' : 'tr', { title: `${rule.meaning}\n${rule.condition.replace('{value}', rule.option)}` },
      h('td', {}, ruleName(rule.name)), shortened(`td.number${words}`, value), shortened(`td.number.soft${words}`, threshold, allowed), h('td', {}, verdict)));
  }
  for (const name of failed) {
    if (!judge.otherReasons.has(name)) continue;
    lines.unshift(h('tr.failed', {}, h('td', {}, ruleName(name)), h('td'), h('td'), h('td', {}, h('span.bad', {}, 'fails'))));
  }
  return h('table.rules', {}, h('thead', {}, h('tr', {}, h('th', {}, 'rule'), h('th.number', {}, 'value'), h('th.number', {}, 'threshold'), h('th'))), h('tbody', {}, lines));
}

function pairs(entries) {
  return h('dl', {}, entries.map(([name, value, title]) => h('div', { title: title ?? '' }, h('dt', {}, name), h('dd', {}, value))));
}

function measurePairs(row) {
  return clips.names.filter((name) => !clips.isText(name) && !name.startsWith('strip')).map((name) => {
    return [nameAndUnit(name)[0], formatMeasure(name, clips.number(name, row)), name];
  });
}

function thumbnails(rows, most = 12) {
  return h('div.thumbs', {}, rows.slice(0, most).map((row) => {
    const button = h('button.thumb', { type: 'button', title: clipLabel(row), 'aria-label': clipLabel(row), onclick: () => openDetail(row) });
    button.classList.add(isKept[row] ? 'is-kept' : 'is-rejected');
    button.append(player(row, button));
    return button;
  }));
}

// The clip that a copy points to, and all of its copies.
function copiesOf(row) {
  const first = rowOfClip.get(clips.text('duplicate_of', row)) ?? row;
  const name = clips.text('clip_id', first);
  const { values, codes } = clips.columns.duplicate_of;
  const code = values.indexOf(name);
  const copies = [];
  if (code >= 0) for (let k = 0; k < clips.numRows; k++) if (codes[k] === code) copies.push(k);
  return copies.length ? [first, ...copies] : [];
}

function sourceFacts(row) {
  const source = sourceRowOf(row);
  if (source < 0) return h('p.soft', {}, 'Its source is not listed any more.');
  const facts = [
    ['kind', sources.text('kind', source)],
    ['picture', `${sources.number('width_px', source)} × ${sources.number('height_px', source)} px`],
    ['codec', [sources.text('container', source).split(',')[0], sources.text('codec', source)].filter(Boolean).join(', ')],
    ['length', formatMeasure('duration_s', sources.number('duration_s', source))],
    ['rate', formatMeasure('a_fps', sources.number('fps', source))],
    ['size', formatBytes(sources.number('size_bytes', source))],
    ['source id', clips.text('source_id', row)],
    ['from', `frame ${clips.number('start_frame', row)} to ${clips.number('end_frame', row)}`],
  ];
  return [h('ul.places', {}, sourceUris[source].map((uri) => h('li', {}, placeLink(uri)))), pairs(facts),
    h('button.small', { type: 'button', onclick: () => { closeDetail(); showClips({ source: clips.text('source_id', row) }); } }, 'All clips of this source')];
}

function openDetail(row) {
  if (openRow < 0) opener = document.activeElement;
  openRow = row;
  const uri = uriOf(row);
  const identity = clips.text('identity_id', row);
  const members = identity ? membersOf(identity).filter((other) => other !== row) : [];
  const copies = copiesOf(row);
  const box = byId('detail');
  const large = player(row);
  let provenance = {};
  try { provenance = JSON.parse(clips.text('provenance', row) || '{}'); } catch { /* shown as nothing */ }
  const rights = [['licence', clips.text('licence', row) || 'not stated'], ['attribution', clips.text('attribution', row) || '–'],
    ['consent', clips.text('consent', row) || 'not stated'], ...Object.entries(provenance)];
  const section = (title, ...children) => h('section', {}, h('h3', {}, title), children);
  fill(box,
    h('div.detail-head', {}, h('h2', { title: uri }, fileName(uri)),
      h('button.icon', { type: 'button', id: 'previous', 'aria-label': 'Previous clip', title: 'Previous clip (←)', onclick: () => stepDetail(-1) }, '‹'),
      h('button.icon', { type: 'button', id: 'next', 'aria-label': 'Next clip', title: 'Next clip (→)', onclick: () => stepDetail(1) }, '›'),
      h('button.icon', { type: 'button', id: 'close', 'aria-label': 'Close', title: 'Close (Esc)', onclick: closeDetail }, '×')),
    h('div.detail-body', {},
      h('div.hero', {}, large, h('div', {}, h('div.tags', {}, tag(clips.text('decision', row) === 'keep' ? 'kept' : clips.text('decision', row) === 'reject' ? 'rejected' : 'undecided', isKept[row] ? 'good' : 'bad'),
        clips.text('split', row) && tag(clips.text('split', row)), tag(clips.text('kind', row)), copies.length > 0 && tag(clips.text('duplicate_of', row) ? 'copy' : 'has copies', 'warn')),
        pairs([['clip', clips.text('clip_id', row)], ['length', clips.text('kind', row) === 'still' ? 'a still' : formatMeasure('duration_s', clips.number('duration_s', row))],
          ['shard', clips.text('shard', row) || 'not packed'], ['identity', identity || 'not known']]))),
      clips.number('strip_frames', row) !== 1 && wholeStrip(row),
      section('Rules', rulesTable(row)),
      copies.length > 0 && section('Same footage', thumbnails(copies.filter((other) => other !== row))),
      identity && section(`Same identity (${formatCount(members.length + 1)})`, members.length ? thumbnails(members) : h('p.soft', {}, 'No other clip.'),
        members.length > 0 && h('button.small', { type: 'button', onclick: () => { closeDetail(); showClips({ identity }); } }, 'Filter by this identity')),
      section('Source', sourceFacts(row)),
      section('Rights and provenance', pairs(rights)),
      section('Measures', h('div.measures', {}, pairs(measurePairs(row))))));
  box.hidden = false;
  box.querySelector('.detail-body').scrollTop = 0;
  large.play?.();
  byId('close').focus({ preventScroll: true });
  history.replaceState(null, '', `#clip=${encodeURIComponent(clips.text('clip_id', row))}`);
}

function closeDetail() {
  if (openRow < 0) return;
  openRow = -1;
  byId('detail').hidden = true;
  byId('detail').replaceChildren();
  history.replaceState(null, '', `#${currentTab}`);
  if (opener?.isConnected && opener !== document.body) opener.focus();
  else if (currentTab === 'clips') clipGrid.focus(clipGrid.current);
}

// To the next clip of the list; to its first where the open one is not in it.
function stepDetail(step) {
  if (isListStale) shownRows = matchingRows();
  const at = shownRows.indexOf(openRow);
  const next = shownRows[at < 0 ? 0 : at + step];
  if (next !== undefined) openDetail(next);
}
