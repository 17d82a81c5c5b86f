// The rules of selection, applied again to every clip whenever a threshold moves.

class Judge {
  constructor(encoded, table, seconds) {
    this.numRows = table.numRows;
    this.seconds = seconds;
    this.numFailed = new Uint8Array(this.numRows);
    const known = new Set(encoded.map((rule) => rule.name));
    this.otherReasons = new Map();  // reasons of `select` that no threshold decides, and how many clips have them
    const { values, codes } = table.columns.failed_rules;
    const others = values.map((names) => names.split(' ').filter((name) => name && !known.has(name)));
    this.isLocked = new Uint8Array(this.numRows);
    for (let row = 0; row < this.numRows; row++) {
      for (const name of codes[row] < 0 ? [] : others[codes[row]]) {
        this.isLocked[row] = 1;
        this.otherReasons.set(name, (this.otherReasons.get(name) ?? 0) + 1);
      }
    }
    this.rules = encoded.map((rule) => ({
      ...rule,
      column: rule.column ? decodeColumn(rule.column) : table.columns[rule.measure],
      on: rule.on && decodeNumbers(rule.on),
      off: rule.off && decodeNumbers(rule.off),
      initial: rule.value,
      fails: new Uint8Array(this.numRows),
    }));
    for (const rule of this.rules) this.apply(rule);
  }

  set(rule, value) {
    rule.value = value;
    this.apply(rule);
  }

  isChanged(rule) { return JSON.stringify(rule.value) !== JSON.stringify(rule.initial); }

  apply(rule) {
    const { fails, column, value } = rule;
    const { numFailed, numRows } = this;
    for (let row = 0; row < numRows; row++) numFailed[row] -= fails[row];
    if (rule.kind === 'switch') {
      const passes = value ? rule.on : rule.off;
      for (let row = 0; row < numRows; row++) fails[row] = 1 - passes[row];
    } else if (rule.kind === 'choice') {
      const isWanted = column.values.map((name) => value.length === 0 || value.includes(name));
      for (let row = 0; row < numRows; row++) fails[row] = column.codes[row] >= 0 && !isWanted[column.codes[row]] ? 1 : 0;
    } else if (value === null) {
      fails.fill(0);
    } else {
      // SQL writes small and huge thresholds with an exponent: a DOUBLE; others are decimals, which take the column's type.
      const size = Math.abs(value);
      const isDecimal = size === 0 || (size >= 1e-4 && size < 1e16);
      const limit = rule.is_single && isDecimal ? Math.fround(value) : value;
      // NaN is unknown and passes: every comparison with it is false.
      if (rule.compare === '>=') for (let row = 0; row < numRows; row++) fails[row] = column[row] < limit ? 1 : 0;
      else for (let row = 0; row < numRows; row++) fails[row] = column[row] > limit ? 1 : 0;
    }
    for (let row = 0; row < numRows; row++) numFailed[row] += fails[row];
  }

  survives(row) { return this.numFailed[row] === 0 && !this.isLocked[row]; }

  // Clips and hours that survive, how many of them `select` rejected before, and how many it kept do not survive.
  totals() {
    let num = 0, seconds = 0, gained = 0, lost = 0;
    for (let row = 0; row < this.numRows; row++) {
      if (this.numFailed[row] === 0 && !this.isLocked[row]) {
        num++;
        seconds += this.seconds[row];
        if (!isKept[row]) gained++;
      } else if (isKept[row]) lost++;
    }
    return { num, hours: seconds / 3600, gained, lost };
  }

  // Whether a clip is rejected for nothing but being a copy of one that falls, too: `select` would look for the next best.
  missesNextBest() {
    const rule = this.rules.find(({ name }) => name === 'duplicate');
    for (let row = 0; row < this.numRows; row++) {
      if (!rule.fails[row] || this.numFailed[row] > 1 || this.isLocked[row]) continue;
      const best = rowOfClip.get(clips.text('duplicate_of', row));
      if (best !== undefined && !this.survives(best)) return true;
    }
    return false;
  }

  // Clips that a rule rejects, and those that only it rejects.
  costs(rule) {
    let alone = 0, only = 0, onlySeconds = 0;
    for (let row = 0; row < this.numRows; row++) {
      if (rule.fails[row]) {
        alone++;
        if (this.numFailed[row] === 1 && !this.isLocked[row]) { only++; onlySeconds += this.seconds[row]; }
      }
    }
    return { alone, only, onlyHours: onlySeconds / 3600 };
  }

  isActive(rule) { return rule.kind === 'switch' || (rule.kind === 'choice' ? rule.value.length > 0 : rule.value !== null); }

  // Lines of the recipe's section [select] and options of the command line for every threshold that was moved, and a
  // name that the command line would take for an option.
  changes() {
    const lines = [], options = [];
    let dashed = '';
    for (const rule of this.rules.filter((r) => this.isChanged(r))) {
      const option = `--select.${rule.option.replaceAll('_', '-')}`;
      if (rule.kind === 'switch') {
        lines.push(`${rule.option} = ${rule.value}`);
        options.push(rule.value ? option : option.replace('--select.', '--select.no-'));
      } else if (rule.kind === 'choice') {
        lines.push(`${rule.option} = [${rule.value.map((v) => JSON.stringify(v)).join(', ')}]`);
        options.push([option, ...rule.value.map(quoteForShell)].join(' '));
        dashed ||= rule.value.find((name) => name.startsWith('-')) ?? '';
      } else {
        lines.push(`${rule.option} = ${rule.value === null ? '"none"' : tomlNumber(rule.value)}`);
        options.push(`${option} ${rule.value === null ? 'none' : tomlNumber(rule.value)}`);
      }
    }
    return { lines, options, dashed };
  }
}

const tomlNumber = (value) => (Number.isInteger(value) && Math.abs(value) < 1e15 ? value.toFixed(1) : String(value));
const quoteForShell = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);

const judge = new Judge(content.rules, clips, seconds);
const judgeListeners = [];
const judgeChanged = () => { for (const listener of judgeListeners) listener(); };
