// One rule as a card: switched on or off, its threshold, and where the clips lie.

const NUM_STEPS = 400;

function numberCard(rule, onmove) {
  const bins = roundBins(rule.column, 60);
  const measure = /[ /]/.test(rule.measure) ? '' : rule.measure;
  const show = (value) => (measure ? formatMeasure(measure, value) : formatNumber(value));
  let low = bins ? bins.low : 0, high = bins ? bins.high : 1;
  if (rule.initial !== null) { low = Math.min(low, rule.initial); high = Math.max(high, rule.initial); }
  const span = high - low;
  const step = 10 ** Math.floor(Math.log10(span / NUM_STEPS * 2));
  const restingPlace = rule.initial ?? (rule.compare === '>=' ? low : high);
  const enabled = h('input', { type: 'checkbox', checked: rule.value !== null, 'aria-label': `${ruleName(rule.name)}: on` });
  const slider = h('input', { type: 'range', min: low, max: high, step: 'any', value: restingPlace, 'aria-label': `${ruleName(rule.name)}: threshold` });
  const number = h('input', { type: 'number', step: 'any', min: rule.may_be_negative ? '' : 0, value: restingPlace, 'aria-label': `${ruleName(rule.name)}: value` });
  const cut = h('div.cut'), costs = h('span.costs');
  slider.dataset.rule = number.dataset.rule = enabled.dataset.rule = rule.name;

  const card = h('div.rule', {},
    h('div.rule-head', {}, h('label.check', {}, enabled, h('strong', {}, ruleName(rule.name))), costs),
    h('div.soft', { title: rule.condition.replace('{value}', rule.option) }, rule.meaning),
    h('div.track-box', {}, bins ? h('div.behind', {}, barsBehind(rule, bins, low, high), cut) : h('p.soft.empty', {}, 'Not measured in this data set.'), slider,
      h('div.axis', {}, h('span', {}, show(low)), h('span', {}, show(high)))),
    h('label.value', {}, h('code', {}, `${rule.option} ${rule.compare === '>=' ? '≥' : '≤'}`), number));

  const move = (value) => {
    judge.set(rule, value);
    draw();
    onmove();
  };
  const read = () => (number.value === '' || !number.validity.valid || !Number.isFinite(Number(number.value)) ? null : Number(number.value));
  slider.addEventListener('input', () => {
    const rounded = Number((Math.round(slider.valueAsNumber / step) * step).toPrecision(10));
    number.value = rounded;
    enabled.checked = true;
    move(rounded);
  });
  slider.addEventListener('keydown', (event) => {
    const steps = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 }[event.key];
    if (!steps) return;
    event.preventDefault();
    slider.value = slider.valueAsNumber + steps * Math.max(step, span / 200);
    slider.dispatchEvent(new Event('input'));
  });
  number.addEventListener('input', () => {
    const value = read();
    if (value === null) return;
    slider.value = value;
    enabled.checked = true;
    move(value);
  });
  number.addEventListener('blur', () => { if (read() === null) number.value = slider.value = rule.value ?? restingPlace; });
  enabled.addEventListener('change', () => move(enabled.checked ? read() ?? restingPlace : null));

  function draw() {
    const { value } = rule;
    card.classList.toggle('off', value === null);
    card.classList.toggle('changed', judge.isChanged(rule));
    const share = value === null ? (rule.compare === '>=' ? 0 : 1) : Math.min(1, Math.max(0, (value - low) / span));
    cut.style.left = rule.compare === '>=' ? '0' : `${share * 100}%`;
    cut.style.width = `${(rule.compare === '>=' ? share : 1 - share) * 100}%`;
    cut.classList.toggle('right', rule.compare === '>=');
  }
  const reset = () => {
    judge.set(rule, rule.initial);
    enabled.checked = rule.initial !== null;
    number.value = slider.value = restingPlace;
    draw();
  };
  draw();
  return { card, costs, reset };
}

function barsBehind(rule, bins, low, high) {
  const { kept, rejected } = countBins(rule.column, bins);
  const label = (k) => `${formatNumber(bins.low + k * bins.width)} to ${formatNumber(bins.low + (k + 1) * bins.width)}`;
  const { svg } = stackedBars(kept, rejected, label);
  const span = high - low;
  Object.assign(svg.style, { marginLeft: `${((bins.low - low) / span) * 100}%`, width: `${((bins.high - bins.low) / span) * 100}%` });
  return svg;
}

function switchCard(rule, onmove) {
  const box = h('input', { type: 'checkbox', checked: rule.value });
  box.dataset.rule = rule.name;
  const costs = h('span.costs');
  const card = h('div.rule', {}, h('div.rule-head', {}, h('strong', {}, ruleName(rule.name)), costs), h('div.soft', {}, rule.meaning),
    h('label.check', {}, box, h('code', {}, rule.option)));
  const draw = () => card.classList.toggle('changed', judge.isChanged(rule));
  box.addEventListener('change', () => { judge.set(rule, box.checked); draw(); onmove(); });
  return { card, costs, reset: () => { judge.set(rule, rule.initial); box.checked = rule.initial; draw(); } };
}

function choiceCard(rule, onmove) {
  const names = [...new Set([...rule.initial, ...rule.column.values])].filter(Boolean);
  const costs = h('span.costs');
  const boxes = names.map((name) => {
    const box = h('input', { type: 'checkbox', checked: rule.value.includes(name), value: name });
    box.addEventListener('change', () => { judge.set(rule, boxes.filter((b) => b.checked).map((b) => b.value)); draw(); onmove(); });
    return box;
  });
  const card = h('div.rule', {}, h('div.rule-head', {}, h('strong', {}, ruleName(rule.name)), costs),
    h('div.soft', {}, names.length ? `${rule.meaning}: one of those checked; none checked allows any` : 'No source states one.'),
    h('div.choices', {}, boxes.map((box) => h('label.check', {}, box, shortened('span', box.value)))));
  const draw = () => card.classList.toggle('changed', judge.isChanged(rule));
  const reset = () => { judge.set(rule, rule.initial); for (const box of boxes) box.checked = rule.initial.includes(box.value); draw(); };
  return { card, costs, reset };
}
