// The sliders of all rules, and what would be left of the data set with them.

function buildThresholds() {
  const makers = { number: numberCard, switch: switchCard, choice: choiceCard };
  const cards = judge.rules.map((rule) => ({ rule, ...makers[rule.kind](rule, () => moved()) }));
  const count = h('span', { id: 'survivors' }), hours = h('span', { id: 'surviving-hours' });
  const abouts = [0, 1].map(() => h('span.about', { title: 'The best of several copies falls; select looks for the next best, which is not counted.' }, 'about '));
  const change = h('div.soft', { id: 'change' });
  const meter = h('div.meter', {}, h('span.fill'));
  const recipe = h('pre', { id: 'recipe-lines', tabIndex: 0 }), command = h('pre', { id: 'command', tabIndex: 0 });
  const look = h('button.small', { type: 'button', id: 'show-changes', onclick: () => showClips({ change: 'changed' }) }, 'Show the clips that change');
  const reset = h('button.small', { type: 'button', id: 'reset-thresholds', onclick: () => { for (const card of cards) card.reset(); moved(); } }, 'Back to the recipe');
  const others = [...judge.otherReasons].map(([name, num]) => `${ruleName(name)} (${formatCount(num)})`).join(', ');
  const { values: bests, codes: copies } = clips.columns.duplicate_of;
  const numCopies = copies.reduce((sum, code) => sum + (code >= 0), 0);
  const asWhole = content.totals.clips.num;
  const isSample = asWhole > clips.numRows;

  const nums = h('div.survivors', {}, h('div', {}, h('div.value', {}, abouts[0], count), h('div.label', {}, `of ${plural(clips.numRows, 'clip')}${isSample ? ' shown' : ''} survive`)), h('div', {}, h('div.value', {}, abouts[1], hours), h('div.label', {}, 'of material')));
  fill(byId('thresholds'),
    h('div.rules-grid', {}, cards.map((card) => card.card)),
    h('div.outcome', {}, nums, meter, change, h('div.buttons', {}, look, reset),
      others && h('p.soft', {}, `Not counted: clips with reasons that have no slider, ${others}. select decides about these anew.`),
      bests.length > 0 && h('p.soft', {}, `${plural(numCopies, 'copy of another clip', 'copies of other clips')}, as select has found them. It looks again among the clips that pass: where a best copy falls, the next best takes its place.`),
      h('details', { open: innerWidth >= 900 }, h('summary', {}, 'Recipe and command'),
        h('h3', {}, 'Recipe', copyButton('Copy', () => recipe.textContent)), recipe,
      h('h3', {}, 'Command', copyButton('Copy', () => command.textContent)), command,
      h('p.soft', {}, 'select decides again in seconds; run, with --recipe DATASET/recipe.toml for the same thresholds, then brings the shards up to date.'))));

  const countCosts = everyFrame(() => {
    for (const { rule, costs } of cards) {
      const { alone, only, onlyHours } = judge.costs(rule);
      costs.textContent = judge.isActive(rule) && alone ? `rejects ${formatCount(alone)}, only it ${formatCount(only)}` : judge.isActive(rule) ? 'rejects none' : 'off';
      costs.title = `${plural(only, 'clip')}, ${formatHours(onlyHours)}, would survive without this rule`;
    }
  });

  function moved() {
    const started = performance.now();
    const totals = judge.totals();
    count.textContent = formatCount(totals.num);
    hours.textContent = formatHours(totals.hours);
    const isAbout = judge.missesNextBest();
    for (const about of abouts) about.hidden = !isAbout;
    meter.firstChild.style.width = `${(100 * totals.num) / Math.max(1, clips.numRows)}%`;
    const parts = [];
    if (totals.gained) parts.push(`${formatCount(totals.gained)} newly kept`);
    if (totals.lost) parts.push(`${formatCount(totals.lost)} newly rejected`);
    change.textContent = parts.join(', ') || 'as select has decided';
    look.disabled = !parts.length;
    const { lines, options, dashed } = judge.changes();
    recipe.textContent = lines.length ? ['[select]', ...lines].join('\n') : '# nothing moved: as in recipe.toml';
    command.textContent = dashed
      ? `# no command: it would take ${JSON.stringify(dashed)} for an option. Put the recipe lines into a copy of recipe.toml, for run --recipe`
      : ['python -m curation select', `--output ${quoteForShell(content.folder)}`, ...options].join(' \\\n  ');
    reset.disabled = !lines.length;
    countCosts();
    judgeChanged();
    performance.measure('thresholds', { start: started, end: performance.now() });
  }
  moved();
}
