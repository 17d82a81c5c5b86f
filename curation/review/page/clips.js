// The list of clips with its filters.

let shownRows = [];
let clipGrid = null;
let isListStale = true;
let layout = 'cards';

function decisionTags(row) {
  const split = clips.text('split', row);
  const isCopy = clips.text('duplicate_of', row) !== '';
  if (isKept[row] && !isCopy) return [tag(split || 'kept', 'good')];
  const rules = clips.text('failed_rules', row).split(' ').filter((name) => name && !(isCopy && name === 'duplicate'));
  if (!rules.length && !isCopy) return [tag(clips.text('decision', row) || 'undecided')];
  return [isCopy && tag('copy', 'warn'), rules.length > 0 && tag(ruleName(rules[0]), 'bad'), rules.length > 1 && tag(`+${rules.length - 1}`, 'bad')];
}

function shortFacts(row) {
  const facts = [];
  if (clips.text('kind', row) === 'still') facts.push('still');
  else facts.push(formatMeasure('duration_s', clips.number('duration_s', row)));
  facts.push(`face ${formatMeasure('face_height_px', clips.number('face_height_median_px', row))}`);
  return facts.join(' · ');
}

function clipLabel(row) {
  const reasons = clips.text('failed_rules', row).split(' ').filter(Boolean).map(ruleName).join(', ');
  return `${fileName(uriOf(row))}, ${shortFacts(row)}, ${isKept[row] ? 'kept' : `rejected: ${reasons || 'no rule'}`}`;
}

function clipCard(row, open = openDetail) {
  const card = h('button.card', { type: 'button', 'aria-label': clipLabel(row), onclick: () => open(row) });
  card.classList.add(isKept[row] ? 'is-kept' : 'is-rejected');
  const name = fileName(uriOf(row));
  add(card, [player(row, card), h('span.caption', {},
    h('span.title', { title: uriOf(row) }, name), h('span.soft', {}, shortFacts(row)), h('span.tags', {}, decisionTags(row)))]);
  return card;
}

function clipLine(row) {
  const line = h('button.line', { type: 'button', 'aria-label': clipLabel(row), onclick: () => openDetail(row) });
  line.classList.add(isKept[row] ? 'is-kept' : 'is-rejected');
  add(line, [h('span.caption', {}, h('span.title', { title: uriOf(row) }, fileName(uriOf(row))),
    h('span.soft', {}, shortFacts(row)), h('span.tags', {}, decisionTags(row))), wholeStrip(row)]);
  return line;
}

const SHAPES = {
  cards: () => [innerWidth < 600 ? 136 : 164, (width) => width + 70],
  strips: () => (innerWidth < 900 ? [280, (width) => Math.round((width - 16) / content.strip_frames) + 46] : [600, (width) => Math.round((width - 232) / content.strip_frames) + 16]),
};

function setLayout(name) {
  layout = name;
  for (const button of document.querySelectorAll('#layouts button')) button.setAttribute('aria-pressed', button.dataset.layout === name);
  clipGrid.setShape(...SHAPES[name]());
}

function refreshClips() {
  if (byId('clips').hidden) { isListStale = true; return; }
  isListStale = false;
  shownRows = matchingRows();
  let total = 0;
  const people = new Set();
  const codes = clips.columns.identity_id.codes;
  for (const row of shownRows) { total += seconds[row]; if (codes[row] >= 0) people.add(codes[row]); }
  byId('clip-count').textContent = `${formatCount(shownRows.length)} of ${plural(clips.numRows, 'clip')}`;
  byId('clip-sum').textContent = `${formatHours(total / 3600)} · ${plural(people.size, 'identity', 'identities')}`;
  byId('nothing').hidden = shownRows.length > 0;
  clipGrid.setCount(shownRows.length);
}

// Puts the state of the filters into their controls.
function fillFilters() {
  const box = byId('filters');
  for (const select of box.querySelectorAll('select[data-filter]')) select.value = filters[select.dataset.filter];
  byId('only-rule').checked = filters.onlyRule;
  byId('search').value = filters.text;
  byId('sort').value = filters.sort;
  byId('direction').textContent = filters.descending ? '↓' : '↑';
  const ranges = byId('ranges');
  fill(ranges, filters.ranges.map((range) => rangeRow(range, refreshSoon, () => {
    filters.ranges.splice(filters.ranges.indexOf(range), 1);
    fillFilters();
    refreshClips();
  })));
  const chips = [];
  for (const name of ['identity', 'source']) {
    if (filters[name]) {
      chips.push(h('button.chip', { type: 'button', title: 'Show all again', onclick: () => { filters[name] = ''; fillFilters(); refreshClips(); } },
        `${name} ${name === 'source' ? fileName(sourceUris[sourceRows.get(filters.source)]?.[0] ?? filters.source) : filters.identity} ×`));
    }
  }
  fill(byId('chips'), chips);
}

const refreshSoon = everyFrame(() => refreshClips());

// Opens the list with these filters and no others.
function showClips(wanted) {
  filters = { ...structuredClone(NO_FILTERS), ...wanted };
  isListStale = true;
  fillFilters();
  showTab('clips');
}

function buildClips() {
  clipGrid = new VirtualGrid({
    label: 'Clips', canFocus: true, minWidth: 164, height: 234,
    make: (index) => (layout === 'cards' ? clipCard : clipLine)(shownRows[index]),
  });
  const search = h('input', { type: 'search', id: 'search', placeholder: 'Search names, ids, licences …  ( / )', 'aria-label': 'Search' });
  search.addEventListener('input', () => { filters.text = search.value; refreshSoon(); });
  const onlyRule = h('input', { type: 'checkbox', id: 'only-rule', onchange: () => { filters.onlyRule = onlyRule.checked; refreshClips(); } });
  const now = () => refreshClips();
  const fields = h('details', { id: 'filters', open: innerWidth >= 900 }, h('summary', {}, 'Filters'),
    labelled('Decision', choice('decision', valueOptions('decision', 'any', 'undecided'), now)),
    labelled('Failed rule', choice('rule', ruleOptions(), now)),
    h('label.check', {}, onlyRule, 'fails no other rule'),
    labelled('Split', choice('split', valueOptions('split', 'any'), now)),
    labelled('Kind', choice('kind', valueOptions('kind', 'any'), now)),
    labelled('Licence', choice('licence', valueOptions('licence', 'any', 'not stated'), now)),
    labelled('With the sliders', choice('change', [['', 'no matter'], ['survives', 'survives'], ['changed', 'changes'], ['gained', 'newly kept'], ['lost', 'newly rejected']], now)),
    h('div', { id: 'ranges' }),
    h('div.buttons', {},
      h('button.small', { type: 'button', id: 'add-range', onclick: () => { filters.ranges.push({ column: 'face_height_median_px', low: null, high: null }); fillFilters(); } }, '+ range of a measure'),
      h('button.small', { type: 'button', id: 'reset-filters', onclick: () => { filters = structuredClone(NO_FILTERS); fillFilters(); refreshClips(); } }, 'Show all')));
  const sort = h('select', { id: 'sort', 'aria-label': 'Order by', onchange: () => { filters.sort = sort.value; refreshClips(); } },
    h('option', { value: '' }, 'source and time'), h('option', { value: 'identity_id' }, 'identity'), h('option', { value: 'failed_rules' }, 'failed rules'),
    numberNames.map((name) => h('option', { value: name }, nameAndUnit(name)[0])));
  const direction = h('button.small', { type: 'button', id: 'direction', title: 'Turn the order', 'aria-label': 'Turn the order', onclick: () => { filters.descending = !filters.descending; fillFilters(); refreshClips(); } });
  const layouts = h('span.switch', { id: 'layouts', role: 'group', 'aria-label': 'Layout' }, ['cards', 'strips'].map((name) => {
    const button = h('button', { type: 'button', onclick: () => setLayout(name) }, name);
    button.dataset.layout = name;
    return button;
  }));
  fill(byId('clips'),
    h('div.side', {}, search, fields),
    h('div.list', {},
      h('div.toolbar', {}, h('strong', { id: 'clip-count', 'aria-live': 'polite' }), h('span.soft', { id: 'clip-sum' }), h('span', { id: 'chips' }),
        h('span.right', {}, h('label', {}, 'order ', sort), direction, layouts)),
      h('p.soft.empty', { id: 'nothing', hidden: true }, 'No clip passes all of these filters.'), clipGrid.element));
  fillFilters();
  setLayout('cards');
  judgeListeners.push(() => { if (filters.change) isListStale = true; });
}
