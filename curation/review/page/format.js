// Figures and names in words.

const UNITS = { s: 's', px: 'px', deg: '°', fps: 'fps', bytes: 'B' };
const PLACES_OF_UNIT = { s: 2, px: 0, deg: 1, fps: 2 };

// "yaw_abs_p95_deg" -> ["yaw abs p95", "°"]
function nameAndUnit(column) {
  const cut = column.lastIndexOf('_');
  const unit = cut > 0 ? UNITS[column.slice(cut + 1)] : undefined;
  return unit ? [column.slice(0, cut).replaceAll('_', ' '), unit] : [column.replaceAll('_', ' '), ''];
}

function formatNumber(value) {
  if (Number.isNaN(value)) return '–';
  if (!Number.isFinite(value)) return 'not a number';
  if (Number.isInteger(value)) return value.toLocaleString('en');
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString('en');
  if (size > 0 && size < 0.001) return value.toExponential(1);
  return String(Number(value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3)));
}

function formatMeasure(column, value) {
  const [, unit] = nameAndUnit(column);
  if (Number.isNaN(value)) return '–';
  if (unit === 'B') return formatBytes(value);
  if (/_(frame|pts)$/.test(column)) return String(value);
  const places = PLACES_OF_UNIT[column.slice(column.lastIndexOf('_') + 1)];
  const text = places === undefined ? formatNumber(value) : Number(value.toFixed(places)).toLocaleString('en');
  return unit === '°' ? `${text}°` : unit ? `${text} ${unit}` : text;
}

const formatCount = (count) => count.toLocaleString('en');
const plural = (count, one, many = `${one}s`) => `${formatCount(count)} ${count === 1 ? one : many}`;

function formatHours(hours) {
  if (hours >= 100) return `${Math.round(hours).toLocaleString('en')} h`;
  if (hours >= 1) return `${hours.toFixed(1)} h`;
  if (!hours) return '0 s';
  return hours * 60 >= 1 ? `${(hours * 60).toFixed(1)} min` : `${(hours * 3600).toFixed(1)} s`;
}

function formatBytes(bytes) {
  const names = ['B', 'kB', 'MB', 'GB', 'TB'];
  let step = 0;
  while (bytes >= 1000 && step < names.length - 1) { bytes /= 1000; step++; }
  return `${bytes >= 100 || step === 0 ? Math.round(bytes) : bytes.toFixed(1)} ${names[step]}`;
}

const ruleName = (name) => name.replaceAll('_', ' ');
