// Which clips are listed, and in what order.

const NOT_STATED = '\u0000';
const NO_FILTERS = {
  decision: '', split: '', rule: '', onlyRule: false, kind: '', licence: '', change: '', identity: '', source: '', text: '',
  ranges: [], sort: '', descending: false,
};
let filters = structuredClone(NO_FILTERS);

const numberNames = clips.names.filter((name) => !clips.isText(name) && !name.startsWith('strip') && !/_pts$/.test(name)
  && clips.columns[name].some((value) => !Number.isNaN(value)));

let haystacks = null;  // what the text search looks at, a lower-case text for each clip

function haystackOf(row) {
  if (!haystacks) {
    const names = ['clip_id', 'identity_id', 'attribution', 'licence', 'consent', 'provenance', 'shard', 'failed_rules'];
    const present = names.filter((name) => name in clips.columns);
    haystacks = Array.from({ length: clips.numRows }, (_, k) => {
      const uris = sourceRowOf(k) < 0 ? [] : sourceUris[sourceRowOf(k)];
      return [...present.map((name) => clips.text(name, k)), ...uris].join('\n').toLowerCase();
    });
  }
  return haystacks[row];
}

// A test of one text column by code; '' lets everything pass.
function codeTest(name, wanted) {
  if (!wanted) return null;
  const { values, codes } = clips.columns[name];
  const code = wanted === NOT_STATED ? -1 : values.indexOf(wanted);
  return code < 0 && wanted !== NOT_STATED ? () => false : (row) => codes[row] === code;
}

function ruleTest({ rule, onlyRule }) {
  if (!rule) return null;
  const { values, codes } = clips.columns.failed_rules;
  const fits = values.map((names) => {
    const list = names.split(' ');
    return onlyRule ? list.length === 1 && list[0] === rule : list.includes(rule);
  });
  return (row) => codes[row] >= 0 && fits[codes[row]];
}

function changeTest(change) {
  if (change === 'survives') return (row) => judge.survives(row);
  if (change === 'changed') return (row) => judge.survives(row) !== Boolean(isKept[row]);
  if (change === 'gained') return (row) => judge.survives(row) && !isKept[row];
  if (change === 'lost') return (row) => !judge.survives(row) && isKept[row];
  return null;
}

// Ranges that come from plots are `halfOpen`: their upper end belongs to the next one.
function rangeTest({ column, low, high, halfOpen }) {
  const values = clips.columns[column];
  if (low === null && high === null) return null;
  const isBelow = halfOpen ? (value) => value < high : (value) => value <= high;
  return (row) => (low === null || values[row] >= low) && (high === null || isBelow(values[row]));
}

// Rows that pass all filters, sorted; unknown values come last in either direction.
function matchingRows() {
  const words = filters.text.toLowerCase().split(/\s+/).filter(Boolean);
  const tests = [
    codeTest('decision', filters.decision), codeTest('split', filters.split), codeTest('kind', filters.kind),
    codeTest('licence', filters.licence), codeTest('identity_id', filters.identity), codeTest('source_id', filters.source),
    ruleTest(filters), changeTest(filters.change), ...filters.ranges.map(rangeTest),
    words.length ? (row) => words.every((word) => haystackOf(row).includes(word)) : null,
  ].filter(Boolean);
  const rows = [];
  for (let row = 0; row < clips.numRows; row++) if (tests.every((test) => test(row))) rows.push(row);
  if (!filters.sort) return filters.descending ? rows.reverse() : rows;
  const sign = filters.descending ? -1 : 1;
  const column = clips.columns[filters.sort];
  const keys = column.codes ?? column;  // codes of texts follow their alphabet
  const isUnknown = column.codes ? (key) => key < 0 : (key) => Number.isNaN(key);
  return rows.sort((a, b) => {
    const x = keys[a], y = keys[b];
    if (isUnknown(x) || isUnknown(y)) return isUnknown(x) - isUnknown(y) || a - b;
    return (x - y) * sign || a - b;
  });
}

function labelled(label, control) {
  return h('label.field', {}, h('span', {}, label), control);
}

function choice(name, options, onchange) {
  const select = h('select', { onchange: () => { filters[name] = select.value; onchange(); } });
  for (const [value, text] of options) select.append(h('option', { value }, text));
  select.dataset.filter = name;
  return select;
}

// Values of a text column with their counts, as options.
function valueOptions(name, any, notStated = null) {
  const { values, codes } = clips.columns[name];
  const counts = new Uint32Array(values.length);
  let numUnknown = 0;
  for (const code of codes) code < 0 ? numUnknown++ : counts[code]++;
  const options = [['', any], ...values.map((value, k) => [value, `${value} (${formatCount(counts[k])})`])];
  if (notStated && numUnknown) options.push([NOT_STATED, `${notStated} (${formatCount(numUnknown)})`]);
  return options;
}

function ruleOptions() {
  const counts = new Map();
  const { values, codes } = clips.columns.failed_rules;
  const perCode = new Uint32Array(values.length);
  for (const code of codes) if (code >= 0) perCode[code]++;
  values.forEach((names, k) => {
    for (const name of names.split(' ').filter(Boolean)) counts.set(name, (counts.get(name) ?? 0) + perCode[k]);
  });
  const sorted = [...counts].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
  return [['', 'any'], ...sorted.map(([name, count]) => [name, `${ruleName(name)} (${formatCount(count)})`])];
}

// One line "measure from low to high" of the filters.
function rangeRow(range, onchange, onremove) {
  const select = h('select', { 'aria-label': 'measure', onchange: () => { range.column = select.value; onchange(); } });
  for (const name of numberNames) select.append(h('option', { value: name }, nameAndUnit(name).join(' ')));
  select.value = range.column;
  const bound = (key, placeholder) => {
    const input = h('input', { type: 'number', step: 'any', placeholder, 'aria-label': `${placeholder} of the measure`, value: range[key] ?? '' });
    input.addEventListener('input', () => { range[key] = input.value === '' ? null : Number(input.value); onchange(); });
    return input;
  };
  const remove = h('button.icon', { type: 'button', title: 'Remove this range', 'aria-label': 'Remove this range', onclick: onremove }, '×');
  return h('div.range', {}, select, bound('low', 'least'), bound('high', range.halfOpen ? 'below' : 'most'), remove);
}
