// Clips that belong together: of one person, or of the same footage.

const MEMBERS_SHOWN = 6;
let identityGroups = null;
let identityGrid = null;
let leastClips = 1;
let identityText = '';

function allIdentities() {
  identityGroups ??= groupRows('identity_id');
  return identityGroups;
}

function membersOf(identity) {
  const code = clips.columns.identity_id.values.indexOf(identity);
  return code < 0 ? [] : allIdentities()[code].rows;
}

function identityLine({ name, rows }) {
  const kept = rows.filter((row) => isKept[row]);
  const total = kept.reduce((sum, row) => sum + seconds[row], 0);
  const splits = [...new Set(kept.map((row) => clips.text('split', row)).filter(Boolean))];
  const from = new Set(rows.map((row) => clips.columns.source_id.codes[row])).size;
  const shown = [...kept, ...rows.filter((row) => !isKept[row])];
  return h('div.identity', {},
    h('div.caption', {},
      h('button.link.title', { type: 'button', title: `${name}: filter the clips by this identity`, onclick: () => showClips({ identity: name }) }, name),
      h('span', {}, `${formatCount(kept.length)} of ${plural(rows.length, 'clip')} kept`),
      h('span.soft', {}, `${formatHours(total / 3600)} · ${plural(from, 'source')}`),
      h('span.tags', {}, splits.map((split) => tag(split, splits.length > 1 ? 'warn' : '')), splits.length > 1 && tag('in several splits', 'bad'))),
    thumbnails(shown, MEMBERS_SHOWN),
    rows.length > MEMBERS_SHOWN && h('button.link.more', { type: 'button', onclick: () => showClips({ identity: name }) }, `+${formatCount(rows.length - MEMBERS_SHOWN)}`));
}

function refreshIdentities() {
  const text = identityText.toLowerCase();
  const order = byId('identity-order')?.value ?? 'clips';
  const sum = (group) => group.rows.reduce((total, row) => total + (isKept[row] ? seconds[row] : 0), 0);
  const key = order === 'time' ? sum : (group) => group.rows.length;
  const shown = allIdentities()
    .filter(({ name, rows }) => rows.length >= leastClips && (!text || name.toLowerCase().includes(text) || rows.some((row) => haystackOf(row).includes(text))))
    .map((group) => ({ group, key: key(group) })).sort((a, b) => b.key - a.key || (a.group.name < b.group.name ? -1 : 1)).map(({ group }) => group);
  identityGrid.make = (index) => identityLine(shown[index]);
  byId('identity-count').textContent = `${formatCount(shown.length)} of ${plural(allIdentities().length, 'identity', 'identities')}`;
  identityGrid.setCount(shown.length);
}

function showIdentities(least) {
  leastClips = least;
  showTab('identities');
  byId('least-clips').value = least;
  refreshIdentities();
}

function buildIdentities() {
  const height = () => (innerWidth < 900 ? 134 : 96);
  identityGrid = new VirtualGrid({ label: 'Identities', minWidth: 640, height, gap: 0, make: () => h('div') });
  const search = h('input', { type: 'search', placeholder: 'Search identities and their sources', 'aria-label': 'Search identities' });
  search.addEventListener('input', () => { identityText = search.value; refreshIdentities(); });
  const least = h('input', { type: 'number', id: 'least-clips', min: 1, value: leastClips });
  least.addEventListener('input', () => { leastClips = Number(least.value) || 1; refreshIdentities(); });
  const order = h('select', { id: 'identity-order', onchange: refreshIdentities }, h('option', { value: 'clips' }, 'number of clips'), h('option', { value: 'time' }, 'time kept'));
  fill(byId('identities'), h('div.toolbar', {}, h('strong', { id: 'identity-count' }), search, h('label', {}, 'at least ', least, ' clips'), h('label', {}, 'order ', order)), identityGrid.element);
}

const COMPARED = ['duration_s', 'crop_size_px', 'face_height_median_px', 'sharpness', 'upscale_factor', 'start_s', 'staged_bytes'];

function copyCard(row, first) {
  const card = h('div.copy', {});
  card.classList.add(isKept[row] ? 'is-kept' : 'is-rejected');
  const open = h('button.thumb', { type: 'button', 'aria-label': clipLabel(row), onclick: () => openDetail(row) });
  open.append(player(row, open));
  const facts = COMPARED.map((name) => {
    const value = formatMeasure(name, clips.number(name, row));
    const isOther = row !== first && value !== formatMeasure(name, clips.number(name, first));
    return h(isOther ? 'div.differs' : 'div', {}, h('dt', {}, nameAndUnit(name)[0]), h('dd', {}, value));
  });
  add(card, [h('div.copy-head', {}, h('span.title', { title: uriOf(row) }, fileName(uriOf(row))),
    h('span.tags', {}, row === first && tag('best copy', 'good'), decisionTags(row))),
  wholeStrip(row), h('div.copy-body', {}, open, h('dl', {}, facts))]);
  return card;
}

function buildDuplicates() {
  const box = byId('duplicates');
  const groups = groupRows('duplicate_of').filter(({ rows }) => rows.length).map(({ name, rows }) => [rowOfClip.get(name), ...rows].filter((row) => row !== undefined));
  if (!groups.length) {
    fill(box, h('p.soft.empty', {}, 'No clip is marked as a copy of another one.'));
    return;
  }
  groups.sort((a, b) => b.length - a.length || a[0] - b[0]);
  const numCopies = groups.reduce((sum, rows) => sum + rows.length - 1, 0);
  const grid = new VirtualGrid({
    label: 'Groups of copies', minWidth: 1e6, height: () => (innerWidth < 900 ? Math.round(innerWidth / 2) + 214 : 256), gap: 0,
    make: (index) => h('div.copies', {}, groups[index].map((row) => copyCard(row, groups[index][0]))),
  });
  fill(box, h('div.toolbar', {}, h('strong', {}, `${plural(numCopies, 'copy', 'copies')} of ${plural(groups.length, 'clip')}`), h('span.soft', {}, 'what differs from the best copy is marked')), grid.element);
  grid.setCount(groups.length);
}
