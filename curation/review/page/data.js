// The data set: typed arrays per column, decoded once.

const content = JSON.parse(document.getElementById('data').textContent);
document.getElementById('data').remove();
const ARRAYS = { f4: Float32Array, f8: Float64Array, i1: Int8Array, i2: Int16Array, i4: Int32Array };

function decodeNumbers(column) {
  const binary = atob(column.data);
  const bytes = new Uint8Array(binary.length);
  for (let k = 0; k < bytes.length; k++) bytes[k] = binary.charCodeAt(k);
  return new ARRAYS[column.kind](bytes.buffer);
}

// {values, codes} of texts, or a typed array with NaN where nothing is known.
function decodeColumn(column) {
  return column.kind === 'text' ? { values: column.values, codes: decodeNumbers(column.codes) } : decodeNumbers(column);
}

// Rows with named columns: `number(name, row)` is NaN and `text(name, row)` is '' where nothing is known.
class Table {
  constructor(columns, numRows) {
    this.numRows = numRows;
    this.names = Object.keys(columns);
    this.columns = {};
    for (const name of this.names) this.columns[name] = decodeColumn(columns[name]);
  }
  isText(name) { return this.columns[name].codes !== undefined; }
  number(name, row) { return this.columns[name][row]; }
  text(name, row) {
    const column = this.columns[name];
    const code = column.codes[row];
    return code < 0 ? '' : column.values[code];
  }
}

const clips = new Table(content.columns, content.num_clips);
const sources = new Table(content.sources.columns, content.sources.uris.length);
const sourceUris = content.sources.uris;

const isKept = new Uint8Array(clips.numRows);
{
  const { values, codes } = clips.columns.decision;
  const keep = values.indexOf('keep');
  for (let row = 0; row < clips.numRows; row++) isKept[row] = keep >= 0 && codes[row] === keep ? 1 : 0;
}
const seconds = clips.columns.duration_s.map((value) => (Number.isNaN(value) ? 0 : value));

const sourceRows = new Map(sources.columns.source_id.values.map((id, code) => [id, code]));
{
  const { values, codes } = sources.columns.source_id;
  for (let row = 0; row < sources.numRows; row++) sourceRows.set(values[codes[row]], row);
}
const sourceRowOf = (row) => sourceRows.get(clips.text('source_id', row)) ?? -1;

// The first place where a clip's source was found, and the last part of it.
function uriOf(row) {
  const source = sourceRowOf(row);
  return source < 0 ? '' : sourceUris[source][0] ?? '';
}
const fileName = (uri) => uri.slice(uri.lastIndexOf('/') + 1) || uri;

const rowOfClip = new Map();
{
  const { values, codes } = clips.columns.clip_id;
  for (let row = 0; row < clips.numRows; row++) rowOfClip.set(values[codes[row]], row);
}

// Rows of each value of a text column, in the order of the rows; those without a value are left out.
function groupRows(name) {
  const { values, codes } = clips.columns[name];
  const groups = values.map((value) => ({ name: value, rows: [] }));
  for (let row = 0; row < clips.numRows; row++) if (codes[row] >= 0) groups[codes[row]].rows.push(row);
  return groups;
}
