// Building the page. Texts of the data set only ever become text nodes and properties, never markup.

const SVG = new Set(['svg', 'g', 'rect', 'line', 'text', 'title', 'path']);

// h('div.card', {onclick, title, hidden}, child, ...): an element; children are nodes, texts or lists of them.
function h(tag, properties = {}, ...children) {
  const [name, ...classes] = tag.split('.');
  const isSvg = SVG.has(name);
  const element = isSvg ? document.createElementNS('http://www.w3.org/2000/svg', name) : document.createElement(name);
  if (classes.length) element.setAttribute('class', classes.join(' '));
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith('on')) element.addEventListener(key.slice(2), value);
    else if (key === 'style') Object.assign(element.style, value);
    else if (isSvg || key.includes('-') || key === 'role' || key === 'for') element.setAttribute(key, value);
    else element[key] = value;
  }
  add(element, children);
  return element;
}

function add(element, children) {
  for (const child of [children].flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) element.append(child);
  }
}

function fill(element, ...children) {
  element.replaceChildren();
  add(element, children);
}

const byId = (id) => document.getElementById(id);

// An element with at most 48 characters of a text; where that is not all of it, all is its title.
function shortened(tag, text, all = text) {
  const letters = Array.from(text);
  const shown = letters.length > 48 ? `${letters.slice(0, 47).join('')}…` : text;
  return h(tag, shown === all ? {} : { title: all }, shown);
}

// At most one call a frame, with the latest arguments.
function everyFrame(action) {
  let latest = null;
  return (...values) => {
    if (latest === null) requestAnimationFrame(() => { const last = latest; latest = null; action(...last); });
    latest = values;
  };
}

// A place on the user's machine or on the web, as a link where a browser can follow it; anything else stays text.
function placeLink(uri) {
  const isFile = uri.startsWith('/');
  const isWeb = /^https?:\/\//i.test(uri);
  if (!isWeb && !(isFile && location.protocol === 'file:')) return h('span.place', {}, uri);
  const href = isWeb ? uri : `file://${uri.split('/').map(encodeURIComponent).join('/')}`;
  return h('a.place', { href, target: '_blank', rel: 'noopener noreferrer' }, uri);
}

function copyButton(label, text) {
  const button = h('button.small', { type: 'button' }, label);
  button.addEventListener('click', async () => {
    const value = text();
    try {
      await navigator.clipboard.writeText(value);
    } catch {
      const area = h('textarea', { value });  // pages from files may not have the clipboard
      document.body.append(area);
      area.select();
      document.execCommand('copy');
      area.remove();
    }
    button.textContent = 'Copied';
    setTimeout(() => { button.textContent = label; }, 1200);
  });
  return button;
}

const tag = (text, kind = '') => h(`span.tag${kind ? `.${kind}` : ''}`, {}, text);
