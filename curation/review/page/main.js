// Views, keys and the start.

const TABS = [['overview', 'Overview'], ['clips', 'Clips'], ['thresholds', 'Thresholds'], ['identities', 'Identities'], ['duplicates', 'Duplicates']];
const builders = { overview: buildOverview, clips: buildClips, thresholds: buildThresholds, identities: buildIdentities, duplicates: buildDuplicates };
let currentTab = 'overview';

function showTab(name) {
  currentTab = name;
  for (const [id] of TABS) {
    byId(id).hidden = id !== name;
    byId(`tab-${id}`).setAttribute('aria-selected', id === name);
    byId(`tab-${id}`).tabIndex = id === name ? 0 : -1;
  }
  if (builders[name]) {
    const build = builders[name];
    delete builders[name];
    build();
    if (name === 'identities') refreshIdentities();
  }
  if (name === 'clips' && isListStale) refreshClips();
  if (openRow < 0) history.replaceState(null, '', `#${name}`);
}

function buildTabs() {
  const tabs = TABS.map(([id, label]) => h('button', { type: 'button', role: 'tab', id: `tab-${id}`, 'aria-controls': id, onclick: () => { closeDetail(); showTab(id); } }, label));
  byId('tabs').append(...tabs);
  byId('tabs').addEventListener('keydown', (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!step) return;
    const at = tabs.indexOf(document.activeElement);
    const next = tabs[(at + step + tabs.length) % tabs.length];
    next.focus();
    next.click();
  });
}

function onKey(event) {
  if (event.key === 'Escape' && openRow >= 0) { closeDetail(); return; }
  if (event.altKey || event.ctrlKey || event.metaKey || event.target.matches('input, select, textarea')) return;
  if (openRow >= 0 && event.key === 'ArrowLeft') stepDetail(-1);
  else if (openRow >= 0 && event.key === 'ArrowRight') stepDetail(1);
  else if (event.key === '/') { event.preventDefault(); closeDetail(); showTab('clips'); byId('search').focus(); }
}

function start() {
  document.title = `${content.name} · review`;
  byId('name').textContent = content.name;
  const all = content.totals.clips;
  byId('headline').textContent = `${formatCount(all.kept)} of ${plural(all.num, 'clip')} kept, ${formatHours(all.kept_hours)}`;
  if (all.num > clips.numRows) {
    byId('notice').textContent = `Shows ${formatCount(clips.numRows)} of ${formatCount(all.num)} clips, drawn evenly; plots and sliders count these, the figures at the top are of all.`;
    byId('notice').hidden = false;
  }
  buildTabs();
  builders.clips();  // its filters are what other views lead to
  delete builders.clips;
  const dark = matchMedia('(prefers-color-scheme: dark)');
  const setTheme = (name) => { document.documentElement.dataset.theme = name; };
  setTheme(dark.matches ? 'dark' : 'light');
  dark.addEventListener('change', () => setTheme(dark.matches ? 'dark' : 'light'));
  byId('theme').addEventListener('click', () => setTheme(document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark'));
  document.addEventListener('keydown', onKey);
  const follow = () => {
    let wanted = '';
    try { wanted = decodeURIComponent(location.hash.slice(1)); } catch { /* not one of this page's: the Overview */ }
    const row = wanted.startsWith('clip=') ? rowOfClip.get(wanted.slice(5)) : undefined;
    showTab(TABS.some(([id]) => id === wanted) ? wanted : row === undefined ? 'overview' : 'clips');
    if (row !== undefined) openDetail(row);
  };
  addEventListener('hashchange', follow);
  follow();
  performance.mark('ready');
  document.documentElement.dataset.ready = 'yes';
}

start();
